"""What the values of a report mean: a sentence and a formula each, from the docstring of what computes it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

UNEXPLAINED = "No explanation was recorded for this value."
KNOWN = {
    "ssim": "Mean structural similarity of what was made and what it should be, over all slices; 1 is equality.",
    "ssim_10": "Mean structural similarity on 10 validation images drawn once by seed.",
    "ssim_foreground": "Mean structural similarity over the foreground of the originals.",
    "psnr": "Peak signal-to-noise ratio in dB.\nPSNR = -10 log10 mean (x_hat - x)^2, images in [0, 1]",
    "mae": "Mean absolute error of images in [0, 1].\nMAE = mean |x_hat - x|",
    "codebook_usage": "Share of the codes that were used at least once in the epoch.",
    "perplexity": "Codes that would carry as much if all were used alike.\nperplexity = exp(-sum_k p_k log p_k)",
    "lr": "Learning rate of the optimizer.",
    "images_per_second": "Training images that went through a whole step, per second.",
}


def explain(fn: Callable[..., object]) -> str:
    """What a loss or metric says of itself: the first sentence of its docstring and, on a second line, its formula.

    Args:
        fn: a function whose docstring begins with a sentence and has a paragraph that begins with the formula in
            backquotes.

    Returns:
        "Sentence.", or "Sentence." and the formula's paragraph on one line, without backquotes; "" without docstring.
    """
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", inspect.getdoc(fn) or "") if part.strip()]
    if not paragraphs:
        return ""
    formula = next((_first_sentence(p).replace("`", "") for p in paragraphs[1:] if p.startswith("`")), "")
    return _first_sentence(paragraphs[0]) + (f"\n{formula}" if formula else "")


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", text, maxsplit=1)[0]
