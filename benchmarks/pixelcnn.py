"""Incremental sampling of a PixelCNN against the whole grid for every code: `python -m benchmarks.pixelcnn`.

float32, 32 x 32 codes of 512, batch 16. A code of the naive loop costs the same forward pass wherever it stands
(`naive_last_over_first` says how nearly), so eight codes spread over the grid are timed, in turns with our whole grid,
and multiplied. That both give the same codes is checked on the whole grid: under our codes, one forward pass holds the
logits that the naive loop would see at each of its steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import alternate, speedup, store
from mri_synth.networks.pixelcnn import GatedPixelCNN
from mri_synth.networks.pixelcnn_sampler import choose, sample_codes

CODES, CHANNELS, LAYERS, HIDDEN = 512, 64, 8, 128


def products(network: GatedPixelCNN, batch: int, size: int) -> dict[str, tuple[int, int, Callable[[], Tensor]]]:
    """The matrix products that a batch of grids cannot do without.

    Args:
        network: that is sampled.
        batch: B.
        size: rows and columns of a grid.

    Returns:
        By name: how often it is needed, its FLOPs, and a call that does it once at its size. Vertical products are
        a convolution over one row of the grid.
    """
    c, hidden, k = network.channels, network.mix.out_features, network.codebook_size
    found: dict[str, tuple[int, int, Callable[[], Tensor]]] = {}

    def dense(name: str, times: int, inputs: int, outputs: int) -> None:
        x, w, out = torch.randn(batch, inputs), torch.randn(inputs, outputs), torch.empty(batch, outputs)
        found[name] = times, 2 * batch * inputs * outputs, lambda: torch.mm(x, w, out=out)

    def row(name: str, times: int, taps: int, across: int) -> None:
        x = torch.randn(batch, c, taps, size).contiguous(memory_format=torch.channels_last)
        w = torch.randn(2 * c, c, taps, across).contiguous(memory_format=torch.channels_last)
        flops = 2 * batch * size * c * taps * across * 2 * c
        found[name] = times, flops, lambda: F.conv2d(x, w, padding=(0, across // 2))

    for n, layer in enumerate(network.gated()):
        row(f"vertical {n}", size, layer.taps, 2 * layer.reach + 1)
        row(f"link {n}", size, 1, 1)
        dense(f"horizontal {n}", size * size, layer.taps * c, 2 * c)
        if layer.residual is not None:
            dense(f"residual {n}", size * size, c, c)
    dense("mix", size * size, LAYERS * c, hidden)
    dense("logits", size * size, hidden, k)
    return found


def peak(n: int) -> float:
    """FLOP/s of float32 at a large size: the better of an n x n product and a convolution."""
    a = torch.randn(n, n)
    x = torch.randn(8, 256, 32, 32).contiguous(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)
    seconds = alternate({"mm": lambda: a @ a, "conv": lambda: F.conv2d(x, w)}, passes=5)
    return max(2 * n**3 / min(seconds["mm"]), 2 * 8 * 30 * 30 * 9 * 256**2 / min(seconds["conv"]))


def train_step(network: GatedPixelCNN, codes: Tensor) -> Callable[[], None]:
    """One training step in bf16 with fused Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = network.nll(codes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def main() -> None:
    quick = "--quick" in sys.argv[1:]  # to see that it runs; nothing is stored
    size, batch, passes = (8, 4, 2) if quick else (32, 16, 7)
    torch.manual_seed(0)
    network = GatedPixelCNN(CODES, CHANNELS, LAYERS, hidden=HIDDEN, position=(size, size)).eval()
    torch.nn.init.normal_(network.logits.weight, std=1.0)  # some codes likelier than others
    u, count = torch.rand(batch, size * size), size * size
    codes = sample_codes(network, u, (size, size))
    with torch.no_grad():
        logits = network(codes).movedim(1, -1).flatten(0, 2)
        equal = float((choose(logits, u.flatten()) == codes.flatten()).float().mean())

        def naive(n: int) -> Callable[[], Tensor]:
            def run() -> Tensor:
                return choose(network(codes)[:, :, n // size, n % size], u[:, n])

            return run

        places = [round(k * (count - 1) / 7) for k in range(8)]
        fns: dict[str, Callable[[], object]] = {f"naive {n}": naive(n) for n in places}
        seconds = alternate({"ours": lambda: sample_codes(network, u, (size, size)), **fns}, passes=passes)
        each = [t for n in places for t in seconds[f"naive {n}"]]
        needed = products(network, batch, size)
        at_size = alternate({name: fn for name, (_, _, fn) in needed.items()}, passes=50, warmup=10)
        large = peak(512 if quick else 2048)
    ours = median(seconds["ours"])
    flops = sum(times * each for times, each, _ in needed.values())
    floor = sum(times * median(at_size[name]) for name, (times, _, _) in needed.items())
    steps = alternate({"step": train_step(network.train(), codes)}, passes=passes)["step"]
    store(
        "pixelcnn",
        {
            "peer": "the whole grid for every code",
            "grid": [size, size],
            "batch": batch,
            "network": {"codes": CODES, "channels": CHANNELS, "layers": LAYERS, "hidden": HIDDEN},
            "speedup": round(median(each) * count / ours, 1),
            "naive": f"8 codes spread over the grid timed {passes} times each, times {count}",
            "naive_s": round(median(each) * count, 2),
            "naive_last_over_first": round(speedup(seconds, f"naive {places[0]}", f"naive {places[-1]}"), 2),
            "ours_s": round(ours, 4),
            "codes_per_s": round(batch * count / ours),
            "codes_equal": equal,
            "gflop": round(flops / 1e9, 2),
            "floor_s": round(floor, 4),
            "share_of_floor": round(floor / ours, 2),
            "gflop_per_s_at_size": round(flops / floor / 1e9, 1),
            "gflop_per_s_at_large_size": round(large / 1e9, 1),
            "floor_at_large_size_s": round(flops / large, 4),
            "training_images_per_s": round(batch / median(steps), 1),
        },
        keep=not quick,
    )


if __name__ == "__main__":
    main()
