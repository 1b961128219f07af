"""Fetching a published data set: archives and tables from their official address, whole or not at all.

A file arrives in the folder `.download` of the root. What has come of it stays there when the connection breaks or the
disk fills, and the next call goes on from there (HTTP Range), unless the server has another file by then. An archive is
unpacked beside its place and moved when whole. Then a record `NAME.json` is written into the root: address, size,
sha256 as computed from the file, files. What is fetched again must be the recorded file.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from mri_synth.data.nifti import whole_file
from mri_synth.data.stream import OtherSizeError, Stream
from mri_synth.errors import UserError
from mri_synth.weights.web import NoGoodError, pip_settings

log = logging.getLogger(__name__)

FOLDER = ".download"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def name_of(address: str) -> str:
    """The file's name at the end of an address."""
    return unquote(PurePosixPath(urlsplit(address).path).name)


def is_fetched(address: str, root: Path) -> bool:
    """Whether `fetch` has put this file into the root before."""
    name = name_of(address)
    return any((folder / f"{name}.json").exists() for folder in (root, root / FOLDER))


def fetch(address: str, root: Path, folder: str | None, licence: str, progress: bool = True) -> None:
    """Fetch one file into a root, unless it was; an archive is unpacked, and then removed.

    An archive that lies in the root already (fetched by hand) is taken as it is, and left there. Two processes that
    ask at once fetch once.

    Args:
        address: http or https, of a plain .tar archive, or of any file.
        root: of the data set; made where missing.
        folder: below the root, for what is in the archive; None: the file itself is wanted.
        licence: said before, with the size.
        progress: show a bar.

    Raises:
        UserError: it cannot be had whole, is not the file it was, is no sound archive, or the disk is full: with what
            was kept and the way out.
    """
    name, work = name_of(address), root / FOLDER
    with _disk(root):
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "lock"):
            _settle(root, name, folder)
            record = _record(root / f"{name}.json")
            if not record and _is_own(root, name, folder):
                return
            if record and (root / (folder or name)).exists():
                _compare(root, name, folder, record)
                return
            file = root / name if folder and (root / name).exists() else work / name
            if not (file.exists() and file.parent == root):
                _retrieve(address, file, record, 2 if folder else 1, licence, progress)
            made: dict[str, Any] = {"address": address, "bytes": file.stat().st_size, "sha256": _sha256(file)}
            if record and made["sha256"] != record["sha256"]:  # of a file that was laid there by hand
                raise _changed(root, name, record, f"sha256 {made['sha256'][:12]}...")
            if folder:
                made["files"] = _unpack(file, work / folder)
            with whole_file(work / f"{name}.json") as part:
                part.write_text(json.dumps(made, indent=1))
            if folder:
                (work / folder).rename(root / folder)
            _settle(root, name, folder)


def _is_own(root: Path, name: str, folder: str | None) -> bool:
    """Whether the file itself lies there without a record: it is the user's, and stays."""
    if folder is None:
        return (root / name).exists()
    if (root / folder).exists() and any((root / folder).iterdir()):
        raise UserError(f"{root / folder} is there, and was not fetched here; {name} would be unpacked to it. Say "
                        "data.download=false to use it as it is, or remove it")  # fmt: skip
    return False


def _settle(root: Path, name: str, folder: str | None) -> None:
    """The last steps, which also a killed process may have left to be done."""
    work = root / FOLDER
    pending = work / f"{name}.json"
    if not pending.exists():
        return
    if folder and not (root / folder).exists():  # killed before the folder was in place: unpacked again
        pending.unlink()
        return
    if not folder and (work / name).exists():
        (work / name).replace(root / name)
    pending.replace(root / f"{name}.json")
    (work / name).unlink(missing_ok=True)


def _record(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if {"address", "bytes", "sha256"} <= record.keys():
            return record
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: the record of what was fetched is damaged; delete it, and the file with it if in doubt")


def _compare(root: Path, name: str, folder: str | None, record: dict[str, Any]) -> None:
    """Whether what was fetched is still there: the one file by its hash, those of an archive by their sizes."""
    if folder is None:
        if _sha256(root / name) != record["sha256"]:
            raise UserError(
                f"{root / name} is no longer the file that was fetched from {record['address']} (sha256 "
                f"{record['sha256'][:12]}...). Delete it to fetch it again, or delete {name}.json beside it to keep "
                "it as your own"
            )
        return
    sizes = {f: (root / folder / f).stat().st_size if (root / folder / f).exists() else -1 for f in record["files"]}
    if other := [f for f, size in record["files"].items() if sizes[f] != size]:
        log.warning("%s: %d of %d files of %s are gone or changed, such as %s; to fetch it again delete the folder",
                    root / folder, len(other), len(sizes), name, other[0])  # fmt: skip


def _changed(root: Path, name: str, record: dict[str, Any], how: str) -> UserError:
    return UserError(
        f"{name} is not the file that was fetched before: {how}, was {record['bytes']} bytes, sha256 "
        f"{record['sha256'][:12]}...; refused, since figures on the two cannot be compared. If the publisher has a new "
        f"version and you want it, delete {root / f'{name}.json'} and run again"
    )


def _retrieve(address: str, file: Path, record: dict[str, Any] | None, times: int, licence: str,
              progress: bool) -> None:  # fmt: skip
    """Have pooch put the file in place, by our way of downloading and with the recorded hash."""
    import pooch

    part = file.with_name(f"{file.name}.part")

    def download(url: str, target: str | Path, _: Any) -> None:
        expected = record["bytes"] if record else None
        stream = Stream(url, part, pip_settings(), expected=expected, times=times, licence=licence, progress=progress)
        stream.run()
        part.replace(target)
        stream.note.unlink(missing_ok=True)

    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(address, record["sha256"] if record else None, file.name, file.parent, downloader=download)
    except OtherSizeError as error:
        assert record is not None
        raise _changed(file.parents[1], file.name, record, str(error)) from None
    except NoGoodError as error:
        raise UserError(f"{address}: {error}. {_by_hand(address, file.parents[1])}") from None
    except ValueError as error:  # pooch's for another hash
        if record is None:
            raise
        raise _changed(file.parents[1], file.name, record, "another sha256") from error


def _by_hand(address: str, root: Path) -> str:
    return f"Run again later, or fetch it elsewhere and lay {name_of(address)} into {root}"


def _unpack(archive: Path, folder: Path) -> dict[str, int]:
    """Write the plain files of an archive below a folder that is made anew.

    Args:
        archive: .tar; removed if it is damaged and was fetched, since only fetching it anew can help.
        folder: all or nothing of it stays.

    Returns:
        Name below the folder to bytes.

    Raises:
        UserError: damaged, empty, or with a member that would lie outside, or is no plain file.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        sizes = dict(_members(archive, folder))
        if not sizes:
            raise UserError(f"{archive.name} holds no file; refused, nothing was unpacked")
        with archive.open("rb") as file:
            file.seek(-1024, os.SEEK_END)
            if any(file.read()):
                log.warning("%s has no end mark: it may be cut off between two files (%d came)",
                            archive.name, len(sizes))  # fmt: skip
    except (tarfile.TarError, EOFError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        ours = archive.parent.name == FOLDER
        if ours:
            archive.unlink()
        raise UserError(
            f"{archive.name} is truncated or damaged ({error}); nothing was unpacked"
            + (", and it was removed: run again to fetch it anew" if ours else f"; delete {archive} and fetch it anew")
        ) from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return sizes


def _members(archive: Path, folder: Path) -> Iterator[tuple[str, int]]:
    with tarfile.open(archive, "r:") as members:
        for member in members:
            place = PurePosixPath(member.name)
            if member.isdir():
                continue
            if place.is_absolute() or ".." in place.parts or not member.isreg():
                what = "is no plain file" if not member.isreg() else "would lie outside the folder"
                raise UserError(f"{archive.name}: its member {member.name!r} {what}; refused, nothing was unpacked. "
                                f"Is it the publisher's file? If not, delete {archive}")  # fmt: skip
            content = members.extractfile(member)
            assert content is not None
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            yield place.as_posix(), target.stat().st_size


def _sha256(file: Path) -> str:
    import pooch

    return str(pooch.file_hash(str(file), alg="sha256"))


@contextmanager
def _disk(root: Path) -> Iterator[None]:
    """A full or read-only disk as a message."""
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno in _FULL else error.strerror or str(error)
        more = f" ({error.strerror})" if error.errno in _FULL and "needed" in (error.strerror or "") else ""
        raise UserError(
            f"cannot write to {root}: {why}{more}. What has come of a file is kept in {root / FOLDER} and the same "
            "command goes on from there; nothing half-written is in its place. Make room, or name another folder: "
            "data.root=/path/with/room"
        ) from error
