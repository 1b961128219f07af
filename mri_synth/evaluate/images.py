"""Sets of images for `mri-synth evaluate`: on disk in 16 bits, whatever they came from, read back in batches."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.data.batch import Batch
from mri_synth.data.frame import Frame
from mri_synth.data.names import examples
from mri_synth.data.nifti import reason
from mri_synth.data.store import SCALE, slice_hash, to_int16
from mri_synth.errors import UserError


class ImageSet:
    """Images of one size with what is known of each. They lie in a file without a name, gone with the process.

    Args:
        role: "real", "fake" or "train", for messages.
        source: as the user wrote it.
        folder: where the file is made.
        size: side in pixels that images are brought to; None: all must have one size already.

    Attributes:
        about: plain values for the record: kind of source, how intensities were scaled, what was left out.
        files: a record of each file that was read: path, sha256, images.
    """

    def __init__(self, role: str, source: str, folder: Path, size: int | None = None) -> None:
        self.role, self.source, self.size = role, source, size
        self.about: dict[str, Any] = {}
        self.files: list[dict[str, Any]] = []
        self._shape: tuple[int, int] | None = None
        self._known: list[tuple[str, str, str, int]] = []  # subject, label, place, hash
        self._chosen: NDArray[np.int64] | None = None
        self._masks: list[NDArray[np.uint8] | None] = []  # a bit a pixel
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({reason(error)}); give another by -o") from error

    def add(
        self, images: NDArray[np.float32], place: str, spacing_mm: tuple[float, float] = (1.0, 1.0),
        subjects: Sequence[str] = ("",), labels: Sequence[str] = ("",), numbers: Sequence[int] = (),
        masks: NDArray[Any] | None = None,
    ) -> None:  # fmt: skip
        """Put images at the end.

        Args:
            images: (N, H, W) in [-1, 1].
            place: where they come from: a file, for messages and records.
            spacing_mm: of their pixels.
            subjects: whose each is, or one for all; "" where unknown.
            labels: class of each, or one for all; "" where unknown.
            numbers: of the slices; none for a picture.
            masks: (N, H, W), above 0 where a lesion is; None where that is unknown.

        Raises:
            UserError: another size than the images before, values that are not finite, or a full disk.
        """
        n = len(images)
        if bad := int((~np.isfinite(images).reshape(n, -1).all(1)).sum()):
            raise UserError(f"{self.role}: {bad} of the {n} images of {place} are not finite (NaN or infinite); leave "
                            "them out, or make them anew")  # fmt: skip
        if self.size is not None and n:
            frame = Frame.fit((images.shape[1], images.shape[2]), spacing_mm, self.size, "contain")
            images = frame.apply(images, fill=-1)
            masks = None if masks is None else frame.apply((masks > 0).astype(np.float32), fill=0, nearest=True)
        shape = (images.shape[1], images.shape[2])
        if self._shape is None:
            self._shape = shape
        if shape != self._shape:
            first = self._known[0][2] if self._known else "the first"
            raise UserError(f"{self.role}: images of several sizes: {text(self._shape)} ({first}) and {text(shape)} "
                            f"({place}); --size {min(*shape, *self._shape)} brings all to one")  # fmt: skip
        stored = to_int16(images)
        try:
            self._file.seek(0, 2)
            self._file.write(stored.tobytes())
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self.role}: the images cannot be written beside the results ({reason(error)}); give a "
                            "place with room by -o")  from error  # fmt: skip
        for k in range(n):
            at = f"{place} slice {numbers[k]}" if len(numbers) else place
            self._known.append((subjects[k % len(subjects)], labels[k % len(labels)], at, slice_hash(stored[k])))
            self._masks.append(None if masks is None else np.packbits(masks[k] > 0))

    def keep(self, most: int, seed: int) -> None:
        """Let only so many images count, drawn at random.

        Args:
            most: how many.
            seed: of the draw.
        """
        if len(self) > most:
            self.about["of"] = len(self)
            self._chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:most])

    def __len__(self) -> int:
        return len(self._known) if self._chosen is None else len(self._chosen)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of every image."""
        assert self._shape is not None
        return self._shape

    def _column(self, which: int, dtype: Any) -> NDArray[Any]:
        column = np.array([k[which] for k in self._known], dtype)
        return column if self._chosen is None else column[self._chosen]

    @property
    def subjects(self) -> NDArray[Any]:
        """(N,) subject names; "" where unknown."""
        return self._column(0, object)

    @property
    def labels(self) -> NDArray[Any]:
        """(N,) class names; "" where unknown."""
        return self._column(1, object)

    @property
    def places(self) -> NDArray[Any]:
        """(N,) where each image comes from."""
        return self._column(2, object)

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """(N,) of the images in 16 bits: equal for images that are the same."""
        return self._column(3, np.uint64)

    @property
    def marked(self) -> NDArray[np.int64]:
        """(N,) pixels of each image that its mask marks; -1 where it has no mask."""
        chosen = range(len(self._known)) if self._chosen is None else self._chosen.tolist()
        found = (self._masks[k] for k in chosen)
        return np.array([-1 if m is None else int(np.unpackbits(m).sum()) for m in found], np.int64)

    def masks(self, indices: Sequence[int]) -> Tensor:
        """(B, 1, H, W) float32 in {0, 1} of these images; 0 where there is no mask."""
        out = np.zeros((len(indices), self.shape[0] * self.shape[1]), np.uint8)
        for row, index in zip(out, indices, strict=True):
            mask = self._masks[index if self._chosen is None else int(self._chosen[index])]
            if mask is not None:
                row[:] = np.unpackbits(mask, count=len(row))
        return torch.from_numpy(out.reshape(len(indices), 1, *self.shape).astype(np.float32))

    def images(self, indices: Sequence[int]) -> Tensor:
        """(B, 1, H, W) float32 in [-1, 1] of these images."""
        height, width = self.shape
        out = np.empty((len(indices), height, width), np.int16)
        for image, index in zip(out, indices, strict=True):
            row = index if self._chosen is None else int(self._chosen[index])
            self._file.seek(row * height * width * 2)
            if self._file.readinto(image.data) != height * width * 2:
                raise UserError(f"{self.role}: the file that holds the images was cut short; run again")
        return torch.from_numpy(out.astype(np.float32) / SCALE)[:, None]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of these images."""
        return Batch(image=self.images(indices), index=torch.tensor(list(indices), dtype=torch.int64))

    def record(self) -> dict[str, Any]:
        """What the set was, in plain values."""
        named = Counter(str(s) for s in self.subjects if s)
        classes = Counter(str(c) for c in self.labels if c)
        digest = hashlib.sha256("\n".join(sorted(str(h) for h in self.hashes)).encode()).hexdigest()
        masks = int((self.marked >= 0).sum())
        return {"source": self.source, **self.about, "images": len(self), "size": list(self.shape),
                "subjects": len(named) or None, "classes": dict(sorted(classes.items())), "files": len(self.files),
                **({"masks": masks} if masks else {}), "hash": digest[:16]}  # fmt: skip


def shared(a: ImageSet, b: ImageSet) -> list[tuple[str, str]]:
    """Images that two sets have in common, whatever their files are called.

    Args:
        a: a set.
        b: another.

    Returns:
        (place in a, place in b) of each image of a that is in b too.
    """
    there = {int(h): str(p) for h, p in zip(b.hashes[::-1], b.places[::-1], strict=True)}
    return [(str(p), there[int(h)]) for h, p in zip(a.hashes, a.places, strict=True) if int(h) in there]


def same_files(a: ImageSet, b: ImageSet) -> list[tuple[str, str]]:
    """Files of equal content in two sets: (path in a, path in b)."""
    there = {f["sha256"]: f["path"] for f in b.files if f["sha256"]}
    return [(f["path"], there[f["sha256"]]) for f in a.files if f["sha256"] in there]


def check(sets: Sequence[ImageSet]) -> None:
    """Refuse sets that cannot be compared.

    Args:
        sets: real, fake, and perhaps train.

    Raises:
        UserError: fewer than 2 images, or sets of several sizes.
    """
    for one in sets:
        if len(one) < 2:
            raise UserError(f"{one.role}: {len(one)} image(s) in {one.source}; at least 2 are needed, and 1000 for "
                            "figures that others can be compared with")  # fmt: skip
    if len({one.shape for one in sets}) > 1:
        sizes = examples(f"{one.role} {text(one.shape)}" for one in sets)
        least = min(side for one in sets for side in one.shape)
        raise UserError(f"the sets have several sizes ({sizes}); --size {least} brings all images to one")


def text(shape: tuple[int, int]) -> str:
    """A size as "128x96"."""
    return f"{shape[0]}x{shape[1]}"
