"""all-MiniLM-L6-v2, a sentence encoder: BERT (Devlin et al. 2019) of 6 layers, averaged over a text's word pieces.

Distilled by Wang et al. 2020, trained by sentence-transformers on pairs of texts, so that the cosine of two sentences
says how alike their meanings are. English, lower case.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mri_synth.errors import UserError
from mri_synth.weights import resolve
from mri_synth.weights.tensors import read_tensors

DIMS = 384
LONGEST = 256
"""Word pieces of a text, [CLS] and [SEP] among them: as it was trained and is published."""
_LAYERS, _HEADS, _INSIDE, _WORDS, _EPS = 6, 12, 1536, 30522, 1e-12
_UNKNOWN = 100
"""Letters of a word that is not looked up."""


class Layer(nn.Module):
    """Attention and two linear layers, each added and normalised (after, as in BERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(DIMS, DIMS) for _ in range(3))
        self.attended, self.attended_norm = nn.Linear(DIMS, DIMS), nn.LayerNorm(DIMS, eps=_EPS)
        self.widened, self.narrowed = nn.Linear(DIMS, _INSIDE), nn.Linear(_INSIDE, DIMS)
        self.norm = nn.LayerNorm(DIMS, eps=_EPS)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """(B, L, D), with (B, L) bool where there are words, to (B, L, D)."""
        q, k, v = (part(x).unflatten(2, (_HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None])
        x = self.attended_norm(x + self.attended(heads.transpose(1, 2).flatten(2)))
        out: Tensor = self.norm(x + self.narrowed(functional.gelu(self.widened(x))))
        return out


class MiniLM(nn.Module):
    """Texts to points of the unit sphere. Frozen, and always in evaluation mode; random weights.

    Args:
        vocabulary: word pieces in order of their number.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.numbers = {piece: k for k, piece in enumerate(vocabulary)}
        self.vocabulary = tuple(vocabulary)
        self.words, self.places = nn.Embedding(_WORDS, DIMS), nn.Embedding(512, DIMS)
        self.kinds, self.norm = nn.Embedding(2, DIMS), nn.LayerNorm(DIMS, eps=_EPS)
        self.layers = nn.ModuleList(Layer() for _ in range(_LAYERS))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> MiniLM:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Sentence embeddings.

        Args:
            texts: at least one.

        Returns:
            (n, 384) float32 of unit length.

        Raises:
            UserError: one has more word pieces than it takes.
        """
        rows = [self.tokens(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > LONGEST:
                pieces = " ".join(self.vocabulary[k] for k in row[LONGEST - 9 : LONGEST - 1]).replace(" ##", "")
                raise UserError(f'"{text[:40]}...": {len(row)} word pieces, its ends counted; at most {LONGEST} are '
                                f'read, and it would be cut after "...{pieces}". Make it shorter, or two prompts of '
                                "it")  # fmt: skip
        device = self.words.weight.device
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = torch.tensor(row)
        there = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        ids, there = ids.to(device), there.to(device)
        with torch.autocast(device.type, enabled=False):
            x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]] + self.kinds.weight[0])
            for layer in self.layers:
                x = layer(x, there)
            mean = (x * there[:, :, None]).sum(1) / there.sum(1, keepdim=True)
            return functional.normalize(mean, dim=1)

    def tokens(self, text: str) -> list[int]:
        """Numbers of a text's word pieces, longest first within a word (WordPiece), between [CLS] and [SEP]."""
        found = [self.numbers["[CLS]"]]
        for word in words(text):
            pieces, start = [], 0
            while start < len(word) and len(word) <= _UNKNOWN:
                end = next((e for e in range(len(word), start, -1)
                            if ("##" if start else "") + word[start:e] in self.numbers), 0)  # fmt: skip
                if not end:
                    break
                pieces.append(self.numbers[("##" if start else "") + word[start:end]])
                start = end
            found += pieces if start == len(word) else [self.numbers["[UNK]"]]
        return [*found, self.numbers["[SEP]"]]


def words(text: str) -> Iterator[str]:
    """Words in lower case without accents; each punctuation mark and each Chinese character is one of its own.

    Args:
        text: any.

    Yields:
        Words, none empty.
    """
    kept = "".join(" " if c.isspace() else c for c in text
                   if c.isspace() or not (c in "\0\ufffd" or unicodedata.category(c).startswith("C")))  # fmt: skip
    spaced = "".join(f" {c} " if _chinese(c) else c for c in kept)
    plain = "".join(c for c in unicodedata.normalize("NFD", spaced.lower()) if unicodedata.category(c) != "Mn")
    yield from "".join(f" {c} " if _mark(c) else c for c in plain).split()


def _mark(c: str) -> bool:
    return (c.isascii() and not c.isalnum() and not c.isspace()) or unicodedata.category(c).startswith("P")


_CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF), (0xF900, 0xFAFF),
            (0x2F800, 0x2FA1F))  # fmt: skip


def _chinese(c: str) -> bool:
    return any(low <= ord(c) <= high for low, high in _CHINESE)


_NAMES = {
    "embeddings.word_embeddings": "words", "embeddings.position_embeddings": "places",
    "embeddings.token_type_embeddings": "kinds", "embeddings.LayerNorm": "norm", "encoder.layer": "layers",
    "attention.self.": "", "attention.output.dense": "attended", "attention.output.LayerNorm": "attended_norm",
    "intermediate.dense": "widened", "output.dense": "narrowed", "output.LayerNorm": "norm",
}  # fmt: skip
"""What its parameters are called in the file, and here; in this order."""
_UNUSED = ("pooler.", "embeddings.position_ids")


def pretrained(path: Path | None = None, vocabulary: Path | None = None) -> MiniLM:
    """As trained by sentence-transformers.

    Args:
        path: file of the weights `minilm`; None to look where `weights.find` looks.
        vocabulary: of `minilm_vocabulary`, likewise.

    Returns:
        The network, in float32 on the CPU.

    Raises:
        UserError: the files are not here, or are of another network.
    """
    place = resolve("minilm", path)
    network = MiniLM(resolve("minilm_vocabulary", vocabulary).read_text(encoding="utf-8").splitlines())
    values = {}
    for name, value in read_tensors(place).items():
        if name.startswith(_UNUSED):
            continue
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        values[name] = value
    try:
        network.load_state_dict(values)
    except RuntimeError as error:
        raise UserError(f"{place}: not the weights minilm: {error}") from None
    return network
