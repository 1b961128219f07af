"""A file that comes in by HTTP and goes on where it broke off (Range, If-Range: RFC 9110, 13.1.5 and 14.2)."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from mri_synth.weights.web import NoGoodError, Settings, chunks, opened

log = logging.getLogger(__name__)

TRIES = 5  # without a byte in between
WAIT_S = 2.0


class OtherSizeError(Exception):
    """The server's file has not the recorded size."""


class Stream:
    """One file coming in, over as many connections as it takes.

    Args:
        url: http or https.
        part: where it is written; what an earlier call wrote there is gone on from, if the server still has that file.
        settings: certificate, proxy, logins.
        expected: bytes it must have; None where that is not known.
        times: room that is needed, in sizes of the file.
        licence: said before, with the size.
        progress: show a bar.

    Attributes:
        note: what is known of the part; to be removed with it.
        total: bytes of the whole file; None where the server does not say.
    """

    def __init__(self, url: str, part: Path, settings: Settings, *, expected: int | None, times: int, licence: str,
                 progress: bool) -> None:  # fmt: skip
        self.url, self.part, self.settings, self.progress = url, part, settings, progress
        self.expected, self.times, self.licence = expected, times, licence
        self.note = part.with_name(f"{part.name}.json")
        self.total: int | None = None
        self.said = False

    def run(self) -> None:
        """Have the whole file in `part`.

        Raises:
            NoGoodError: the server does not have it, or breaks off again and again; `part` stays.
            OtherSizeError: it has not the expected size; nothing was written.
            OSError: the disk is full or cannot be written; `part` stays.
        """
        tries = 0
        while True:
            before = self._have()
            try:
                self._connect()
                if self.total is None or self._have() == self.total:
                    return
                why = "broke off"
            except NoGoodError as error:
                if error.code == 416:  # the server's file is shorter by now
                    self.note.unlink(missing_ok=True)
                elif error.code and error.code < 500:
                    raise
                why = str(error)
            tries = 1 if self._have() > before else tries + 1
            if tries >= TRIES:
                kept = f"what came is kept in {self.part}, and the same command goes on from there"
                size = f" of {self.total}" if self.total else ""
                came = f" after {self._have()}{size} bytes, {TRIES} times in a row; {kept}"
                raise NoGoodError(why + (came if self._have() else f", {TRIES} times in a row"))
            time.sleep(WAIT_S * tries)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _connect(self) -> None:
        """One connection: what comes is added to what is there, or replaces it."""
        start, validator = self._resumable()
        ask = {"Range": f"bytes={start}-", "If-Range": validator} if start else {}
        with opened(self.url, self.settings, {"Accept-Encoding": "identity", **ask}) as answer:
            head = answer.headers
            if start and not (answer.status == 206 and head.get("Content-Range", "").startswith(f"bytes {start}-")):
                start = 0  # the server has another file by now, or sends the whole whatever it is asked
            length = head.get("Content-Length")
            self.total = None if length is None else start + int(length)
            if self.expected is not None and self.total not in (None, self.expected):
                raise OtherSizeError(f"{self.total} bytes")
            self._announce(start)
            etag = head.get("ETag", "")
            known = etag if etag and not etag.startswith("W/") else head.get("Last-Modified", "")
            self.note.write_text(json.dumps({"address": self.url, "validator": known, "bytes": self.total}))
            with self.part.open("ab" if start else "wb") as file:
                for chunk in chunks(
                    answer, PurePosixPath(urlsplit(self.url).path).name, self.total, self.progress, start
                ):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())

    def _resumable(self) -> tuple[int, str]:
        """Bytes that are there of the very file, and how the server told it; 0 where that is not known."""
        try:
            note = json.loads(self.note.read_text())
            if note["address"] != self.url or not note["validator"] or self._have() >= (note["bytes"] or 0):
                return 0, ""
            return self._have(), str(note["validator"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""

    def _announce(self, start: int) -> None:
        if self.said:
            return
        self.said = True
        size = "of unknown size" if self.total is None else f"{self.total / 1e9:.2f} GB"
        had = f", {start / 1e9:.2f} GB of it are here" if start else ""
        log.warning("fetching %s: %s%s, licence %s, to %s", self.url, size, had, self.licence, self.part.parents[1])
        free = shutil.disk_usage(self.part.parent).free
        need = self.times * (self.total or 0) - start
        if free < need:
            raise OSError(errno.ENOSPC, f"{need / 1e9:.2f} GB are needed there, {free / 1e9:.2f} GB are free")
