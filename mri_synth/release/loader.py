"""A released model, used with torch alone. This file is the whole loader; a copy of it is part of every release.

    from loader import load_release     # from inside the release's folder
    model = load_release(".")
    images = model.sample([0, 1, 2])    # (3, 1, H, W) in [-1, 1]; what else there is: model.operations

Every file is compared with MANIFEST.sha256 before anything is used. Who must know that the manifest itself is the
author's gives its hash, which the author published: `load_release(".", sha256="...")`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

MANIFEST = "MANIFEST.sha256"
ABOUT = "release.json"
FORMAT = 1
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.\-]+)")


class ReleaseError(Exception):
    """A release that is not whole or was changed, or is asked for what it does not offer."""


def manifest_of(folder: Path) -> str:
    """The manifest's text for a folder: SHA-256 and name of every file in it, as `sha256sum -c` reads it.

    Args:
        folder: of the release.

    Returns:
        A line for each file but the manifest itself, sorted by name.
    """
    files = sorted(p for p in folder.iterdir() if p.name != MANIFEST)
    return "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files)


def verify(folder: Path, sha256: str | None = None) -> dict[str, str]:
    """Compare every file of a release with its manifest.

    Args:
        folder: of the release.
        sha256: that the manifest itself must have; None: any.

    Returns:
        Name to SHA-256.

    Raises:
        ReleaseError: names the file that is missing, changed, or not of the release.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise ReleaseError(f"{path} is missing: {folder} is no release, or no whole one; fetch it again")
    content = path.read_bytes()
    again = "fetch the release again from where it was published"
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256.lower():
        raise ReleaseError(f"{path}: its SHA-256 is not {sha256}: this is another release, or a changed one; {again}")
    matches = [_LINE.fullmatch(line) for line in content.decode("ascii", "replace").split("\n")[:-1]]
    named = {m[2]: m[1] for m in matches if m}
    if content != "".join(f"{named[n]}  {n}\n" for n in sorted(named)).encode() or ABOUT not in named:
        raise ReleaseError(f"{path}: changed or damaged: it is not as it was written; {again}")
    for name, wanted in named.items():
        if not (folder / name).is_file():
            raise ReleaseError(f"{folder / name} is missing from the release; {again}")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
            raise ReleaseError(f"{folder / name}: changed since the release was made (its SHA-256 is not that of "
                               f"{MANIFEST}), or the manifest was; nothing was loaded; {again}")  # fmt: skip
    for file in folder.iterdir():  # a line that was taken out of the manifest leaves its file unwatched
        if file.name not in named and file.name not in (MANIFEST, "__pycache__") and not file.name.startswith("."):
            raise ReleaseError(f"{file}: not a file of this release; move it elsewhere, or {again}")
    return named


class Release:
    """A released model: what it does, as graphs of torch.export. All on the CPU unless `to` says otherwise.

    Args:
        folder: of the release.
        sha256: of each file.

    Attributes:
        about: content of release.json: model, data, how images must be prepared, operations with their inputs.
        operations: names of what can be called here.
        device: where it computes.
    """

    def __init__(self, folder: Path, sha256: dict[str, str]) -> None:
        self.folder, self._sha256 = folder, sha256
        self.about: dict[str, Any] = json.loads(self._content(ABOUT))
        if self.about.get("format") != FORMAT:
            raise ReleaseError(f"{folder / ABOUT}: format {self.about.get('format')}, and this loader reads {FORMAT}; "
                               "use the loader.py that is in the release")  # fmt: skip
        self._known: dict[str, dict[str, Any]] = self.about["operations"]
        self.operations = [name for name, op in self._known.items() if op["torch"]]
        self.device = torch.device("cpu")
        self._graphs: dict[str, Callable[..., Tensor]] = {}

    def to(self, device: str | torch.device) -> Release:
        """The same, computing elsewhere.

        Args:
            device: "cpu", "cuda", ...

        Returns:
            Itself.
        """
        self.device, self._graphs = torch.device(device), {}
        return self

    def sample(self, seeds: Sequence[int] | Tensor, label: str | int | Tensor | None = None) -> Tensor:
        """New images; the same seed gives the same image, the one that `mri-synth sample` makes of the checkpoint.

        Args:
            seeds: n whole numbers from 0 on.
            label: of models with `about["conditions"]`: one of these, or their indices, -1 or None for any.

        Returns:
            (n, C, H, W) float32 in [-1, 1].
        """
        numbers = torch.as_tensor(seeds, dtype=torch.int64)
        if "sample" in self.operations:
            return self.run("sample", numbers, *self._labels(label, len(numbers)))
        return self.from_latent(self.run("latent", numbers), label)

    def latent(self, seeds: Sequence[int] | Tensor) -> Tensor:
        """The latent vectors (n, D) of seeds."""
        return self.run("latent", torch.as_tensor(seeds, dtype=torch.int64))

    def from_latent(self, z: Tensor, label: str | int | Tensor | None = None) -> Tensor:
        """Images (n, C, H, W) of latent vectors (n, D); label as in `sample`."""
        return self.run("from_latent", z, *self._labels(label, len(z)))

    def translate(self, source: Tensor, to: str | None = None) -> Tensor:
        """Another contrast of the same slices.

        Args:
            source: (n, S, H, W) in [-1, 1], the channels that `about["operations"]["translate"]` names.
            to: contrast that is wanted, of models that go both ways; None: the one it was trained to make.

        Returns:
            (n, 1, H, W) float32 in [-1, 1].
        """
        other = to is not None and to != self.about["spec"]["goal"]
        return self.run(f"translate_to_{to}" if other else "translate", source)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] through the model and back, of the same shape."""
        return self.run("reconstruct", image)

    @torch.no_grad()
    def run(self, name: str, *inputs: Tensor) -> Tensor:
        """One of the operations.

        Args:
            name: of `operations`.
            inputs: as release.json describes them.

        Returns:
            What it makes of them, on `device`.

        Raises:
            ReleaseError: the release has no such operation, or inputs are of another shape.
        """
        if name not in self.operations:
            why = self._known.get(name, {}).get("missing", {}).get("torch")
            has = ", ".join(self.operations) or "nothing that can be called: its weights are for mri_synth"
            raise ReleaseError(f"{self.folder}: {name} is not part of it{f' ({why})' if why else ''}; it has {has}")
        known = self._known[name]
        given = [self._fitting(name, x, wanted) for x, wanted in zip(inputs, known["inputs"], strict=True)]
        if name not in self._graphs:
            program = torch.export.load(io.BytesIO(self._content(known["torch"])))
            if self.device.type != "cpu":
                program = move_to_device_pass(program, str(self.device))
            self._graphs[name] = program.module()
        graph = self._graphs[name]
        if known["batch"] is None:
            return graph(*given)
        return torch.cat([graph(*(x[i : i + 1] for x in given)) for i in range(len(given[0]))])

    def _fitting(self, name: str, x: Tensor, wanted: dict[str, Any]) -> Tensor:
        """An input on the device, in its type."""
        shape = wanted["shape"][1:]
        if list(x.shape[1:]) != shape or len(x) < 1:
            raise ReleaseError(f"{name}: {wanted['name']} must be (n, {', '.join(map(str, shape))}), n at least 1, and "
                               f"is {tuple(x.shape)}")  # fmt: skip
        return x.to(self.device, getattr(torch, wanted["dtype"])).contiguous()

    def _labels(self, label: str | int | Tensor | None, n: int) -> list[Tensor]:
        """The input that labels are, of models that have one."""
        names = self.about["conditions"]
        if not names:
            if label is not None:
                raise ReleaseError(f"label={label}: this model was trained without labels")
            return []
        if isinstance(label, str) and label not in names:
            raise ReleaseError(f"label={label}: allowed: {', '.join(names)}")
        index = names.index(label) if isinstance(label, str) else -1 if label is None else label
        out = torch.as_tensor(index, dtype=torch.int64).expand(n)
        if int(out.min()) < -1 or int(out.max()) >= len(names):
            raise ReleaseError(
                f"label={label}: allowed: from 0 to {len(names) - 1} ({', '.join(names)}), or -1 for any"
            )
        return [out]

    def _content(self, name: str) -> bytes:
        """A file's bytes, compared once more as they are read."""
        content = (self.folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self._sha256.get(name):
            raise ReleaseError(f"{self.folder / name}: changed since it was verified; load the release again")
        return content


def load_release(folder: str | Path, sha256: str | None = None) -> Release:
    """A released model, every file of it verified first.

    Args:
        folder: of the release.
        sha256: that MANIFEST.sha256 must have, as its author published it; None: any.

    Returns:
        The model.

    Raises:
        ReleaseError: a file is missing or was changed; named.
    """
    folder = Path(folder)
    return Release(folder, verify(folder, sha256))
