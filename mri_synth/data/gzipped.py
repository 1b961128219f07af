"""Bytes as one gzip file, compressed by several threads."""

from __future__ import annotations

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

BLOCK = 1 << 20
"""Bytes that are compressed on their own: large enough to lose nothing worth speaking of by it."""
LEVEL = 1
"""Of zlib, as nibabel's: voxels of measured and of synthetic images hardly shrink further."""
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
"""RFC 1952: deflate, no name, no time (equal content gives equal files), fastest, system unknown."""


def gzipped(raw: bytes) -> bytes:
    """Compress, in as many threads as there are cores: of a volume this takes longer than to read and to prepare it.

    The file has one member, which every reader takes: blocks end at whole bytes (zlib's sync flush), and so can be put
    one behind the other.

    Args:
        raw: what the file is to hold.

    Returns:
        The file, for `gzip.decompress` and others.
    """
    view, starts = memoryview(raw), range(0, max(len(raw), 1), BLOCK)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = pool.map(lambda start: _deflated(view[start : start + BLOCK], start == starts[-1]), starts)
        return b"".join([_HEADER, *parts, struct.pack("<LL", zlib.crc32(view), len(raw) & 0xFFFFFFFF)])


def _deflated(block: memoryview, last: bool) -> bytes:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(block) + compressor.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
