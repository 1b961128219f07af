"""Fetching a data set from a server of the tests' own: interrupted, resumed, cut, absent, changed, and a full disk."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mri_synth.data import download, ixi, stream
from mri_synth.data.ixi import IXI
from mri_synth.errors import UserError
from mri_synth.weights import web

LICENCE = "CC BY-SA 3.0"


def tar(*names: str, size: int = 40_000, kind: bytes = tarfile.REGTYPE) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i, name in enumerate(names):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            content = np.random.default_rng(i).bytes(size) if kind == tarfile.REGTYPE else b""
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


GOOD = tar("IXI002-Guys-0828-T1.nii.gz", "IXI012-HH-1211-T1.nii.gz")


class Server:
    """Path to content. `cuts`: bytes of the body after which each next answer breaks off."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.cuts: list[int] = []
        self.ranges, self.validator, self.length, self.status = True, "ETag", True, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = server.pages.get(self.path)
                asked = self.headers.get("Range", "")
                server.asked.append((self.path, asked))
                if server.status or content is None:
                    self.send_error(server.status or 404)
                    return
                tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
                start = 0
                if asked and server.ranges and self.headers.get("If-Range", tag) == tag:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                if server.length:
                    self.send_header("Content-Length", str(len(content) - start))
                if server.validator:
                    self.send_header(server.validator, tag)
                self.end_headers()
                body = content[start:]
                self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def offer(self, name: str, content: bytes) -> str:
        self.pages[f"/{name}"] = content
        return self.url + name


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "pip_settings", web.Settings)
    monkeypatch.setattr(stream, "WAIT_S", 0)
    monkeypatch.setattr(ixi, "OFFICIAL", served.url)
    yield served
    served.server.shutdown()
    served.server.server_close()


def fetch(address: str, root: Path, folder: str | None = "IXI-T1") -> None:
    download.fetch(address, root, folder, LICENCE, progress=False)


def whole(root: Path) -> bool:
    """Both files are there as they were packed, recorded, and nothing else is left."""
    files = {p.name: p.read_bytes() for p in (root / "IXI-T1").iterdir()}
    expected = {f"IXI{n}-T1.nii.gz": np.random.default_rng(i).bytes(40_000)
                for i, n in enumerate(("002-Guys-0828", "012-HH-1211"))}  # fmt: skip
    left = {p.name for p in (root / ".download").iterdir()} - {"lock"}
    return files == expected and not left and (root / "IXI-T1.tar.json").exists()


def test_whole_recorded_and_not_fetched_twice(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    address = server.offer("IXI-T1.tar", GOOD)
    fetch(address, tmp_path / "new")
    assert whole(tmp_path / "new")
    record = json.loads((tmp_path / "new/IXI-T1.tar.json").read_text())
    assert record["sha256"] == hashlib.sha256(GOOD).hexdigest()
    assert record["bytes"] == len(GOOD)
    assert record["files"] == {"IXI002-Guys-0828-T1.nii.gz": 40_000, "IXI012-HH-1211-T1.nii.gz": 40_000}
    assert "0.00 GB, licence CC BY-SA 3.0, to" in caplog.text  # said before
    fetch(address, tmp_path / "new")
    assert len(server.asked) == 1


def test_resumed_in_one_call(server: Server, tmp_path: Path) -> None:
    server.cuts = [30_000, 20_000]
    fetch(server.offer("IXI-T1.tar", GOOD), tmp_path)
    assert whole(tmp_path)
    assert [r for _, r in server.asked] == ["", "bytes=30000-", "bytes=50000-"]


def test_resumed_by_the_next_call(server: Server, tmp_path: Path) -> None:
    address = server.offer("IXI-T1.tar", GOOD)
    server.cuts = [30_000] + 4 * [0] + [0]
    with pytest.raises(
        UserError, match=r"broke off after 30000 of \d+ bytes, 5 times .* goes on from there.*lay IXI-T1"
    ):
        fetch(address, tmp_path)
    assert (tmp_path / ".download/IXI-T1.tar.part").stat().st_size == 30_000
    assert not (tmp_path / "IXI-T1").exists()
    server.cuts, server.asked = [], []
    fetch(address, tmp_path)
    assert whole(tmp_path)
    assert [r for _, r in server.asked] == ["bytes=30000-"]


@pytest.mark.parametrize("lacks", ("ranges", "validator"))
def test_from_the_start_where_the_server_cannot_resume(lacks: str, server: Server, tmp_path: Path) -> None:
    setattr(server, lacks, "" if lacks == "validator" else False)
    server.cuts = [30_000]
    fetch(server.offer("IXI-T1.tar", GOOD), tmp_path)
    assert whole(tmp_path)
    assert [r for _, r in server.asked] == ["", "bytes=30000-" if lacks == "ranges" else ""]


def test_another_file_at_the_server_is_not_joined_to_the_part(server: Server, tmp_path: Path) -> None:
    address = server.offer("IXI-T1.tar", tar("IXI099-HH-0001-T1.nii.gz", size=90_000))
    server.cuts = [30_000, 0, 0, 0, 0, 0]
    with pytest.raises(UserError, match="broke off"):
        fetch(address, tmp_path)
    server.offer("IXI-T1.tar", GOOD)
    fetch(address, tmp_path)
    assert whole(tmp_path)


def test_a_server_that_says_no_length(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.length = False
    fetch(server.offer("IXI-T1.tar", GOOD), tmp_path)
    assert whole(tmp_path)
    assert "of unknown size" in caplog.text


def test_errors_of_the_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"IXI-T1.tar: 404, no such page or file. .* lay IXI-T1.tar into"):
        fetch(server.url + "IXI-T1.tar", tmp_path)
    assert len(server.asked) == 1  # not tried again
    server.status = 503
    with pytest.raises(UserError, match="503, Service Unavailable, 5 times in a row"):
        fetch(server.url + "IXI-T1.tar", tmp_path)
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(UserError, match=r"cannot be reached: .*refused"):
        fetch(server.url + "IXI-T1.tar", tmp_path)
    assert not list(tmp_path.glob("IXI*"))


@pytest.mark.parametrize("content", (GOOD[:50_000], GOOD[:600], b"<html>moved</html>" * 100, b""))
def test_truncated_archive(content: bytes, server: Server, tmp_path: Path) -> None:
    address = server.offer("IXI-T1.tar", content)
    with pytest.raises(UserError, match=r"IXI-T1.tar is truncated or damaged .* it was removed: run again"):
        fetch(address, tmp_path)
    assert {p.name for p in tmp_path.rglob("*")} == {".download", "lock"}
    server.offer("IXI-T1.tar", GOOD)
    fetch(address, tmp_path)
    assert whole(tmp_path)


def test_archive_without_its_end(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fetch(server.offer("IXI-T1.tar", GOOD[: 512 + 40_448]), tmp_path)  # cut between its two files
    assert "IXI-T1.tar has no end mark: it may be cut off between two files (1 came)" in caplog.text


@pytest.mark.parametrize("archive, reason", [
    (tar("good.nii.gz", "../outside.nii.gz"), "'../outside.nii.gz' would lie outside"),
    (tar("/tmp/outside.nii.gz"), "'/tmp/outside.nii.gz' would lie outside"),
    (tar("link.nii.gz", kind=tarfile.SYMTYPE), "'link.nii.gz' is no plain file"),
    (tar("link.nii.gz", kind=tarfile.LNKTYPE), "'link.nii.gz' is no plain file"),
    (tar("device", kind=tarfile.CHRTYPE), "'device' is no plain file"),
    (tar(), "holds no file"),
])  # fmt: skip
def test_unsafe_archive(archive: bytes, reason: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{reason}.*refused, nothing was unpacked"):
        fetch(server.offer("IXI-T1.tar", archive), tmp_path / "root")
    assert {p.name for p in tmp_path.rglob("*")} == {"root", ".download", "lock", "IXI-T1.tar"}


def test_no_room(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = server.offer("IXI-T1.tar", GOOD)
    usage = download.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stream.shutil, "disk_usage", lambda _: usage._replace(free=1.5 * len(GOOD)))
        with pytest.raises(UserError, match=r"the disk is full \(0.00 GB are needed there.*data.root=/path/with/room"):
            fetch(address, tmp_path)
    assert not (tmp_path / "IXI-T1").exists()

    def full(*_: Any, **__: Any) -> Iterator[bytes]:
        yield GOOD[:30_000]
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stream, "chunks", full)
        with pytest.raises(UserError, match=r"the disk is full. What has come of a file is kept"):
            fetch(address, tmp_path)
    server.asked = []
    fetch(address, tmp_path)
    assert whole(tmp_path)
    assert [r for _, r in server.asked] == ["bytes=30000-"]

    def full_copy(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:  # while unpacking: the archive stays, and is not fetched again
        patch.setattr(download.shutil, "copyfileobj", full_copy)
        with pytest.raises(UserError, match="the disk is full"):
            fetch(address, tmp_path / "other")
    assert not (tmp_path / "other/.download/IXI-T1").exists()
    server.asked = []
    fetch(address, tmp_path / "other")
    assert whole(tmp_path / "other")
    assert not server.asked


def test_changed_file_is_refused(server: Server, tmp_path: Path) -> None:
    address = server.offer("IXI-T1.tar", GOOD)
    fetch(address, tmp_path)
    for path in (tmp_path / "IXI-T1").iterdir():
        path.unlink()
    (tmp_path / "IXI-T1").rmdir()
    other = bytearray(GOOD)
    other[1000] ^= 1
    for content, how in ((bytes(other), "another sha256"), (GOOD + bytes(512), rf"{len(GOOD) + 512} bytes")):
        server.offer("IXI-T1.tar", content)
        with pytest.raises(UserError, match=rf"not the file that was fetched before: {how}.*delete .*IXI-T1.tar.json"):
            fetch(address, tmp_path)
        assert not (tmp_path / "IXI-T1").exists()
    server.offer("IXI-T1.tar", GOOD)
    fetch(address, tmp_path)
    assert whole(tmp_path)


def test_killed_before_the_last_step(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = server.offer("IXI-T1.tar", GOOD)
    settle, calls = download._settle, []

    def killed(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        settle(*args)

    monkeypatch.setattr(download, "_settle", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch(address, tmp_path)
    assert download.is_fetched(address, tmp_path)
    fetch(address, tmp_path)
    assert whole(tmp_path)
    assert len(server.asked) == 1


def test_files_that_are_gone_are_said(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    address = server.offer("IXI-T1.tar", GOOD)
    fetch(address, tmp_path)
    (tmp_path / "IXI-T1/IXI012-HH-1211-T1.nii.gz").unlink()
    fetch(address, tmp_path)
    assert "1 of 2 files of IXI-T1.tar are gone or changed, such as IXI012-HH-1211-T1.nii.gz" in caplog.text
    (tmp_path / "IXI-T1.tar.json").write_text("{")
    with pytest.raises(UserError, match=r"IXI-T1.tar.json: the record of what was fetched is damaged; delete it"):
        fetch(address, tmp_path)
    (tmp_path / "IXI-T1.tar.json").unlink()
    with pytest.raises(UserError, match=r"IXI-T1 is there, and was not fetched here.*data.download=false"):
        fetch(address, tmp_path)


def test_a_single_file(server: Server, tmp_path: Path) -> None:
    address = server.offer("IXI.xls", b"table")
    fetch(address, tmp_path, None)
    assert (tmp_path / "IXI.xls").read_bytes() == b"table"
    (tmp_path / "IXI.xls").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"no longer the file that was fetched .* delete IXI.xls.json .* as your own"):
        fetch(address, tmp_path, None)
    (tmp_path / "IXI.xls.json").unlink()
    fetch(address, tmp_path, None)
    assert (tmp_path / "IXI.xls").read_bytes() == b"mine"
    assert len(server.asked) == 1


# -- data=ixi ---------------------------------------------------------------------------------------------------------


def test_ixi_fetches_what_is_wanted(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.offer("IXI-T1.tar", GOOD)
    server.offer("IXI-T2.tar", tar("IXI002-Guys-0828-T2.nii.gz"))
    data = IXI(root=str(tmp_path / "ixi"), contrasts=["T1", "T2"], download=True)
    found = sorted((s.subject, s.contrast) for s in data.scans())
    assert found == [("IXI002", "T1"), ("IXI002", "T2"), ("IXI012", "T1")]
    assert "the table of ages was not fetched: " in caplog.text
    assert "left out" not in caplog.text
    assert [p for p, _ in server.asked] == ["/IXI-T1.tar", "/IXI-T2.tar", "/IXI.xls"]
    server.asked = []
    server.offer("IXI.xls", b"not really a workbook")
    data.scans()
    assert [p for p, _ in server.asked] == ["/IXI.xls"]
    server.asked = []
    data.scans()
    assert not server.asked


def test_ixi_leaves_what_is_there(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/IXI002-Guys-0828-T1.nii.gz").write_bytes(b"x")
    (tmp_path / "IXI-T2.tar").write_bytes(tar("IXI002-Guys-0828-T2.nii.gz"))  # fetched elsewhere
    found = IXI(root=str(tmp_path), contrasts=["T1", "T2"], download=True).scans()
    assert sorted(s.path.relative_to(tmp_path).as_posix() for s in found) == [
        "IXI-T2/IXI002-Guys-0828-T2.nii.gz", "mine/IXI002-Guys-0828-T1.nii.gz"]  # fmt: skip
    assert "1 T1 scans are in" in caplog.text
    assert "left out" not in caplog.text
    assert (tmp_path / "IXI-T2.tar").exists()
    assert [p for p, _ in server.asked] == ["/IXI.xls"]


def test_ixi_must_know_where_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> None:
    with pytest.raises(UserError, match=r"neither data.root nor \$MRI_SYNTH_DATA is set"):
        IXI(download=True).scans()
    monkeypatch.setenv("MRI_SYNTH_DATA", str(tmp_path))
    server.offer("IXI-T1.tar", GOOD)
    assert len(IXI(download=True).scans()) == 2
    assert (tmp_path / "ixi/IXI-T1").is_dir()
