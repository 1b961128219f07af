"""Bytes compressed in several threads come back by the standard library, as one member."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest

from mri_synth.data.gzipped import BLOCK, gzipped


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_what_was_compressed_comes_back(size: int) -> None:
    raw = np.random.default_rng(size).integers(0, 9, size, np.uint8).tobytes()
    file = gzipped(raw)
    assert gzip.decompress(file) == raw
    one = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert one.decompress(file) == raw
    assert one.eof
    assert not one.unused_data, "a second member, which some readers do not read"
    assert len(file) < 0.6 * size + 40, "numbers below 9 take 3.2 bits of 8"
    assert file == gzipped(raw)


def test_a_changed_byte_is_found() -> None:
    file = bytearray(gzipped(bytes(range(256)) * 100))
    file[-6] ^= 1  # of the checksum
    with pytest.raises(gzip.BadGzipFile, match="CRC check failed"):
        gzip.decompress(bytes(file))
