"""The report of a run: what it was given is on the page, what is missing is named, nothing is fetched."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from pages import Page, assert_self_contained
from PIL import Image

from mri_synth import drawing, html, plots
from mri_synth.errors import UserError
from mri_synth.report import verdict, write_report
from mri_synth.report.explanations import explain
from mri_synth.run_folder import (
    chosen_pictures,
    curve_groups,
    epoch_means,
    read_run,
    shared_subjects,
    slice_count,
    split_table,
    step_means,
)


def results() -> dict[str, object]:
    return {
        "status": "finished", "task": "fit", "model": "vqvae", "data": "phantom", "simulated": True,
        "metrics": {"test/loss": 0.0456, "test/ssim": 0.9312, "test/psnr": 29.31, "val/ssim": 0.9271},
        "details": {
            "test/ssim": {"mean": 0.9312, "sd": 0.0123, "ci": [0.9272, 0.9348], "n_subjects": 40, "n_slices": 960,
                          "protocol": "plain, data range 1"},
            "test/psnr": {"mean": 29.31, "sd": 1.2, "ci": [28.9, 29.7], "n_subjects": 40, "n_slices": 960},
        },
        "references": {"ceiling/ssim": 0.9491, "baseline/ssim": 0.4123,
                       "notes": {"ceiling/ssim": "Noise-free against noisy.", "real/fid": "Halves."}},
        "explanations": {"train/loss": "Sum of two losses.\nL = L_rec + beta L_commit"},
        "split_hash": "a3f0" * 16, "data_hash": "77be" * 16, "seconds": 312.4, "images_per_second": 231.7,
        "peak_memory_bytes": 3 * 2**29, "versions": {"torch": "2.13.0"}, "git": {"commit": "0123abcd", "dirty": True},
        "command": "python -m mri_synth.run model=vqvae data=phantom 'x=<y>'", "device": "cpu",
        "precision": "bf16-mixed", "parameters": 1234567,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run folder of four epochs."""
    folder = tmp_path / "a-run"
    images = np.zeros((2, 16, 16))
    frames = []
    for epoch in range(3):
        frames.append(drawing.sheet({"original": images + epoch / 4}, f"epoch {epoch}"))
        drawing.save(frames[-1], folder / "pictures" / f"epoch_{epoch:03d}_reconstruction.png")
    drawing.gif(frames, folder / "training.gif")
    lines = ["step,epoch,name,value"]
    for step in range(40):
        lines.append(f"{step},{step // 10},train/loss,{1 / (1 + step)}")
    for epoch in range(4):
        lines += [
            f"{epoch * 10 + 9},{epoch},val/loss,{0.5 - epoch}",
            f"{epoch * 10 + 9},{epoch},val/ssim,0.{epoch + 5}",
        ]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "results.json").write_text(json.dumps(results() | {"warnings": ["dropped: 5 of 8 codes unused"]}))
    (folder / "config.yaml").write_text("seed: 0\nmodel:\n  codebook_size: 8 # <K>\n")
    (folder / "split.csv").write_text(
        "split,subject,contrast,slices,reason\ntrain,s1,T1,24,\ntrain,s2,T1,20,\nval,s3,T1,24,\n,s4,T1,0,constant\n"
    )
    np.save(folder / "codebook.npy", np.array([2, 2, 4, 0, 0, 0, 0, 0]))
    return folder


def test_whole_report(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    raw = path.read_text()
    text = assert_self_contained(raw).text
    for said in (
        "vqvae on phantom", "SIMULATED DATA", "0.9312", "0.9272 to 0.9348", "29.31", "28.90 to 29.70", "40", "960",
        "plain, data range 1", "0.9491", "0.4123", "Noise-free against noisy.", "0.0456", "5 min 12 s", "231.7",
        "1.5 GiB",
        "1,234,567", "L = L_rec + beta L_commit", "Sum of two losses.", "a3f0a3f0", "77be77be", "bf16-mixed",
        "python -m mri_synth.run model=vqvae data=phantom 'x=<y>'", "0123abcd", "torch", "2.13.0",
        "codebook_size: 8 # <K>", "5 of 8 codes unused", "reconstruction, before training", "reconstruction, epoch 2",
        "No subject is in two splits",
    ):  # fmt: skip
        assert said in text, said
    assert "'x=<y>'" not in raw, "must be escaped"
    # 3 of 8 codes used with shares 1/4, 1/4, 1/2: perplexity exp(1.5 ln 2) = 2^1.5
    assert "3 of 8 codes are used (37.5 %), perplexity 2.8" in text
    assert raw.count("<svg") == 2 * 2 + 2  # loss and ssim, linear and logarithmic; codebook twice
    assert raw.count('src="data:image/png') == 2
    assert raw.count('src="data:image/gif') == 1


def test_a_long_animation_is_thinned(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (run / "training.gif").stat().st_size
    monkeypatch.setattr("mri_synth.report.MOST_GIF_BYTES", size * 0.6)
    raw = write_report(run).read_text()
    assert "2 of 3 frames, all are in training.gif" in raw
    data = re.findall(r'src="data:image/gif;base64,([^"]*)"', raw)[0]
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.n_frames == 2


def test_log_curve_of_the_report_says_what_it_left_out(run: Path) -> None:
    write_report(run)
    # val/loss is 0.5, -0.5, -1.5, -2.5
    assert "3 values not above 0 left out" in (run / "report.html").read_text()


def test_an_empty_folder_gives_a_page_that_names_what_is_missing(tmp_path: Path) -> None:
    text = assert_self_contained(write_report(tmp_path).read_text()).text
    for name in ("results.json", "metrics.csv", "split.csv", "config.yaml", "training.gif"):
        assert f"{name} is missing" in text
    for said in ("No test metric was recorded", "No pictures", "No curves", "The command was not recorded"):
        assert said in text


def test_spoilt_files_are_named_and_do_not_stop_the_page(run: Path) -> None:
    (run / "results.json").write_text('{"status": "fin')
    (run / "codebook.npy").write_bytes(b"")
    (run / "training.gif").write_bytes(b"GIF89a, half")
    (run / "metrics.csv").write_text(
        "step,epoch,name,value\n1,0,train/loss,abc\n2,0,train/loss,0.5\n3,0,train/loss,0.1"
    )
    text = assert_self_contained(write_report(run).read_text()).text
    assert "results.json cannot be read" in text
    assert "codebook.npy cannot be read" in text
    assert "training.gif cannot be shown" in text
    assert "1 of 2 rows of metrics.csv cannot be read" in text
    # the last line has no end, so its number may be half a number
    assert read_run(run).curves == {"train/loss": [(2.0, 0.0, 0.5)]}


def test_no_such_run() -> None:
    with pytest.raises(UserError, match="no such run folder"):
        write_report(Path("/nonexistent/run"))


def test_verdict_in_words() -> None:
    said = verdict(results())
    assert said == (
        "SSIM on the test split is 0.9312 (95 % confidence interval 0.9272 to 0.9348), over 40 subjects and 960 "
        "slices; 0.0179 below the noise ceiling (0.9491) and 0.5189 above the trivial baseline (0.4123)."
    )
    assert verdict({}) == "No test metric was recorded: the run has not been scored on its test split."
    alone = verdict({"metrics": {"test/mae": 0.02}})
    assert alone == "MAE on the test split is 0.0200. No ceiling or baseline was recorded beside it."
    kid = {"value": 0.1567, "ci": [0.1515, 0.1624], "real_against_real": 0.0002}
    judged = {"samples": 240, "kid": kid, "features": {"name": "inception"}}
    gan = {"metrics": {"test/d_loss": 1.3}, "generation": judged}
    assert verdict(gan) == (
        "KID of 240 samples is 0.1567 (95 % confidence interval 0.1515 to 0.1624), in features of inception; of real "
        "images against others of them it is 0.0002."
    )
    kid |= {"ci": None, "real_against_real": None}
    assert verdict(gan) == "KID of 240 samples is 0.1567, in features of inception."
    assert verdict(results() | {"generation": judged}) == said, "what test items have is said first"


def test_a_reference_that_was_not_measured_has_no_note(tmp_path: Path) -> None:
    found = results()
    found["references"] = {"baseline/ssim": 0.4123}
    found["notes"] = {"baseline/ssim": "The mean image.", "ceiling/ssim": "Noise-free."}
    (tmp_path / "results.json").write_text(json.dumps(found))
    text = Page(write_report(tmp_path).read_text()).text
    assert "Trivial baseline SSIM: The mean image." in text
    assert "Noise-free." not in text


def test_verdict_when_the_model_beats_the_ceiling() -> None:
    said = verdict({"metrics": {"test/ssim": 0.96}, "references": {"ceiling/ssim": 0.95, "baseline/ssim": math.nan}})
    assert "0.0100 above the noise ceiling (0.9500)" in said


def test_explain_takes_the_sentence_and_the_formula() -> None:
    def loss(x: int) -> int:
        """Mean absolute difference. More follows (Wang et al. 2004).

        `L_1 = mean_CHW |x_hat - x|` with
        `C = 2`. Differentiable.

        Args:
            x: an image.
        """
        return x

    def silent() -> None: ...

    assert explain(loss) == "Mean absolute difference.\nL_1 = mean_CHW |x_hat - x| with C = 2."
    assert explain(silent) == ""


def test_explain_on_our_own_losses() -> None:
    reconstruction = pytest.importorskip("mri_synth.losses.reconstruction")
    sentence, formula = explain(reconstruction.l1).split("\n")
    assert sentence.endswith(".")
    assert "x_hat" in formula


def test_curves_are_grouped_and_averaged() -> None:
    curves = {
        "train/loss": [(0.0, 0.0, 1.0), (1.0, 0.0, 3.0), (2.0, 1.0, 4.0), (3.0, 2.0, 5.0)],
        "val/loss": [(1.0, 0.0, 7.0)],
        "lr": [(0.0, 0.0, 0.1)],
        "test/loss": [(3.0, 2.0, 9.0)],
        "val/ssim": [(1.0, 0.0, 0.5)],
    }
    groups = curve_groups(curves)
    assert list(groups) == ["ssim", "loss", "lr"]
    x_label, series = groups["loss"]
    assert x_label == "epoch"
    assert series == {"train": ([1.0, 2.0, 3.0], [2.0, 4.0, 5.0]), "val": ([1.0], [7.0])}


def test_few_epochs_are_drawn_by_step() -> None:
    rows = [(float(step), 0.0, float(step % 2)) for step in range(1000)]
    x_label, series = curve_groups({"train/loss": rows})["loss"]
    assert x_label == "step"
    x, y = series["train"]
    assert len(x) == 334  # threes
    assert y[0] == pytest.approx(1 / 3)  # 0, 1, 0
    assert step_means(rows[:3]) == ([0.0, 1.0, 2.0], [0.0, 1.0, 0.0])
    assert epoch_means([(0.0, math.nan, 5.0)]) == ([], [])


def test_log_curve_skips_what_is_not_positive() -> None:
    svg = plots.curve({"train": ([0, 1, 2, 3], [10.0, 0.0, -1.0, 1.0])}, "loss", "epoch", log=True)
    assert "2 values not above 0 left out" in svg
    points = re.findall(r'points="([^"]*)"', svg)[0].split()
    assert len(points) == 2
    assert "no positive value" in plots.curve({"train": ([0], [-1.0])}, "loss", "epoch", log=True)
    assert "no finite value" in plots.curve({"train": ([0], [math.nan])}, "loss", "epoch")


def test_log_axis_puts_the_geometric_mean_in_the_middle() -> None:
    axis = plots.log_axis(0.001, 1000, 200, 0)
    assert axis(1.0) == pytest.approx(100)
    assert axis.ticks == pytest.approx((0.001, 0.01, 0.1, 1, 10, 100, 1000))
    assert axis(0.0) == 200


def test_linear_axis_has_round_ticks() -> None:
    axis = plots.linear_axis(0.13, 0.92, 0, 100)
    assert axis.ticks == pytest.approx((0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    assert axis(0.5) == pytest.approx(50)
    flat = plots.linear_axis(3.0, 3.0, 0, 100)
    assert flat.low < 3 < flat.high


@pytest.mark.parametrize("values", [(0.5,), (1e-9, 1e9), (5.0, 5.0001), (0.4, 0.6), (1e-300, 2e-300)])
@pytest.mark.parametrize("log", [False, True])
def test_curves_of_any_range_have_ticks_in_order(values: tuple[float, ...], log: bool) -> None:
    svg = plots.curve({"val": (range(len(values)), values)}, "t", "epoch", log)
    Page(svg)
    assert "nan" not in svg.lower()
    assert len(re.findall(r'text-anchor="end"', svg)) >= 2


def test_first_and_last_picture_of_each_kind(tmp_path: Path) -> None:
    for name in ("epoch_000_rec", "epoch_002_rec", "epoch_010_rec", "epoch_3_codes", "samples"):
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    assert [p.stem for p in chosen_pictures(tmp_path)] == ["epoch_000_rec", "epoch_010_rec", "epoch_3_codes", "samples"]


def test_split_table_and_shared_subjects() -> None:
    rows = [
        {"split": "train", "subject": "a", "contrast": "T1", "slices": "10"},
        {"split": "train", "subject": "a", "contrast": "mask", "slices": "10"},
        {"split": "val", "subject": "a", "contrast": "T1", "slices": "3"},
        {"split": "", "subject": "b", "contrast": "T1", "slices": ""},
    ]
    assert split_table(rows) == [["train", 1, 2, 10], ["val", 1, 1, 3], ["not used", 1, 1, 0]]
    assert shared_subjects(rows) == ["a"]
    assert [slice_count(v) for v in (7, "7", "[1, 2, 5]", [1, 2], None, "")] == [7, 7, 3, 2, 0, 0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345, "12,345"), (0.93124, "0.9312"), (29.3149, "29.31"), (3.1e-5, "3.1e-05"), (None, "–"), (math.nan, "nan"),
     (0.0, "0.0000"), (-0.5, "-0.5000"), (123456.0, "123,456"), ("text", "text")],
)  # fmt: skip
def test_numbers_for_reading(value: object, text: str) -> None:
    assert html.number(value) == text


def test_durations_and_sizes() -> None:
    assert [html.duration(s) for s in (3.21, 59, 61, 3600 * 2 + 300)] == ["3.2 s", "59 s", "1 min 01 s", "2 h 05 min"]
    assert [html.size(b) for b in (12, 1536, 2**30)] == ["12 B", "1.5 KiB", "1.0 GiB"]


def test_everything_is_escaped_once() -> None:
    table = html.table(["<a>"], [["<b> & 'c'"], [html.badge("<d>")]])
    page = Page(html.page("<t>", html.section("<s>", table)))
    assert "<b> & 'c'" in page.text
    assert "&lt;b&gt; &amp; &#x27;c&#x27;" in table
    assert "<d>" in page.text
    assert "&amp;lt;" not in table
    with pytest.raises(ValueError, match="zip"):
        html.table(["a", "b"], [["only one"]])


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        html.write("x", tmp_path / "file" / "page.html")
    (tmp_path / "no.txt").write_text("")
    with pytest.raises(UserError, match="not a picture"):
        html.figure(tmp_path / "no.txt")
