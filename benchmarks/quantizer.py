"""Our vector quantiser against vector-quantize-pytorch: `python -m benchmarks.quantizer`.

Training mode, float32: 8 x 32 x 32 vectors of 64 against 512 codes, the EMA update included; the second pair adds
the backward pass. Both start from one codebook, and their codes are compared before anything is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from benchmarks.common import alternate, speedup, store
from mri_synth.networks.quantizer import VectorQuantizer


def pair(codebook_size: int, dim: int, decay: float) -> tuple[VectorQuantizer, VectorQuantize]:
    """Our quantiser and the library's, with one codebook."""
    ours = VectorQuantizer(codebook_size, dim, decay=decay, kmeans_init=False, revive_below=0)
    peer = VectorQuantize(
        dim=dim,
        codebook_size=codebook_size,
        decay=decay,
        accept_image_fmap=True,
        rotation_trick=False,
        threshold_ema_dead_code=0,
    )
    peer._codebook.embed.data.copy_(ours.embedding[None])
    peer._codebook.embed_avg.data.copy_(ours.embedding[None])
    return ours, peer


def main() -> None:
    quick = "--quick" in sys.argv[1:]  # to see that it runs; nothing is stored
    passes = 2 if quick else 15
    torch.manual_seed(0)
    ours, peer = pair(512, 64, 0.99)
    z = torch.randn(8, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    equal = float((ours(z).codes == peer(z)[1]).float().mean())

    def backward(step: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            leaf = z.clone().requires_grad_()
            step(leaf).backward()

        return run

    def loss_ours(leaf: Tensor) -> Tensor:
        q = ours(leaf)
        return q.z_q.square().mean() + q.commitment.mean()

    def loss_peer(leaf: Tensor) -> Tensor:
        z_q, _, commitment = peer(leaf)
        return z_q.square().mean() + commitment.sum()

    with torch.no_grad():
        forward = alternate({"ours": lambda: ours(z), "peer": lambda: peer(z)}, passes=passes)
    both = alternate({"ours": backward(loss_ours), "peer": backward(loss_peer)}, passes=passes)
    store(
        "quantizer",
        {
            "peer": "vector-quantize-pytorch",
            "speedup": round(speedup(forward, "ours", "peer"), 2),
            "speedup_with_backward": round(speedup(both, "ours", "peer"), 2),
            "ms_ours": round(1e3 * median(forward["ours"]), 2),
            "ms_peer": round(1e3 * median(forward["peer"]), 2),
            "codes_equal": equal,
        },
        keep=not quick,
    )


if __name__ == "__main__":
    main()
