"""The report on samples: figures are those of results.json, what is missing is said, and the first stage is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page, assert_self_contained

from mri_synth import drawing
from mri_synth.report import render, write_report
from mri_synth.report.samples import figures
from mri_synth.run_folder import read_run

MISSING = "samples are not judged: the weights <Inception> are not here. mri-synth weights get inception fetches them"
FEW = "n is 48 and not 1000: there are 48 samples & 80 real images"


def judged(name: str = "inception", kid: float = 0.03127) -> dict[str, Any]:
    return {
        "kid": {"value": kid, "ci": [0.02817, 0.03456], "real_against_real": 0.00123},
        "fid": {"value": 61.25, "real_against_real": 24.5, "ratio": 2.5},
        "prdc": {"fake": {"precision": 0.7123, "recall": 0.4567, "density": 0.8912, "coverage": 0.6543},
                 "real_against_real": {"precision": 0.8321, "recall": 0.8234, "density": 1.0123, "coverage": 0.9432}},
        "ms_ssim": {"fake": {"mean": 0.5432, "sd": 0.1}, "real": {"mean": 0.4321, "sd": 0.1}},
        "memorisation": {"features": {"copy_rate": 0.5678, "copy_rate_ci": [0.5123, 0.6234], "near_duplicates": 0.0345,
                                      "near_duplicates_held_out": 0.0111, "pairs": []}},
        "features": {"name": name, "hash": "0123abcd", "dim": 2048}, "pool": "val+test", "n": 48, "draws": 5,
        "protocol": {"kid": "unbiased, of <cubic> kernels"}, "notes": [FEW],
    }  # fmt: skip


def folder(place: Path, generation: dict[str, Any] | None = None, **more: Any) -> Path:
    """A run folder with as much as the section needs."""
    results = {"status": "finished", "model": "pixelcnn", "data": "phantom", "metrics": {"test/bits_per_code": 4.25}}
    place.mkdir(parents=True, exist_ok=True)
    (place / "results.json").write_text(json.dumps(results | {"generation": generation or {}} | more))
    return place


def picture(run: Path, name: str, value: float = 0.0) -> None:
    drawing.save(drawing.sheet({"sample": np.full((2, 16, 16), value)}, name), run / "pictures" / f"{name}.png")


def text_of(run: Path) -> str:
    return assert_self_contained(write_report(run).read_text(encoding="utf-8")).text


def test_figures_are_those_of_the_results(tmp_path: Path) -> None:
    origin = "Drawn from a <fitted> prior."
    run = folder(tmp_path, {"samples": 48, "seconds": 75.0, "beside": [], "origin": origin} | judged())
    picture(run, "samples")
    picture(run, "nearest", 0.5)
    text = text_of(run)
    assert "48 samples were drawn in 1 min 15 s" in text
    assert origin in text
    for row in (
        "KID 0.0313 0.0282 to 0.0346 0.0012", "FID 61.25 – 24.50", "precision 0.7123 – 0.8321",
        "recall 0.4567 – 0.8234", "density 0.8912 – 1.0123", "coverage 0.6543 – 0.9432",
        "MS-SSIM of pairs 0.5432 – 0.4321", "copy rate (0.5: no copying) 0.5678 0.5123 to 0.6234 0.5000",
        "near duplicates of train 0.0345 – 0.0111",
    ):  # fmt: skip
        assert row in text, row
    assert "Features of inception (0123abcd), 48 images a side, 5 draws, real images of val+test." in text
    assert FEW in text
    assert "unbiased, of <cubic> kernels" in text
    assert "are samples copies? those nearest to a training image, beside it" in text
    assert "0.0313 KID of samples 2.50 FID over real against real" in text  # in the headline


def test_distributions_are_drawn_over_one_another(tmp_path: Path) -> None:
    counts = {"edges": [0, 0.5, 1], "real": [30, 10], "fake": [1, 3]}
    plane = {"real": [[0, 1], [2, 3]], "fake": [[1, 1]], "explained": [0.419, 0.2]}
    found = judged() | {"intensities": counts, "distributions": {"components": plane, "distances": counts}}
    run = folder(tmp_path, {"samples": 48, "seconds": 2.0, "beside": []} | found)
    picture(run, "samples")
    text = text_of(run)
    assert "Intensities of real and generated images intensities, linear real generated" in text
    assert "Features of real and generated images: inception" in text
    assert "first component (42 % of the variance); upwards the second (20 %)" in text
    assert "distance from the real images' mean real generated" in text
    markup = (run / "report.html").read_text(encoding="utf-8")
    assert markup.count('r="3" fill=') == 2  # a circle for each real image,
    assert markup.count("l6 6m0 -6l-6 6") == 1  # and a cross for each generated one


def test_pictures_of_samples_stand_once_and_in_their_section(tmp_path: Path) -> None:
    run = folder(tmp_path, {"samples": 48, "seconds": 2.0, "beside": []} | judged())
    for k, name in enumerate(("samples", "nearest", "epoch_0000", "epoch_0003")):
        picture(run, name, k / 4)
    page = Page(render(read_run(run)))
    assert len(page.addresses) == len(set(page.addresses)) == 4
    pictures = page.text.partition("Pictures")[2]
    assert "before training" in pictures
    assert "copies?" not in pictures


def test_what_was_not_judged_is_said(tmp_path: Path) -> None:
    run = folder(tmp_path, {"samples": 48, "seconds": 2.0, "missing": MISSING})
    picture(run, "samples")
    text = text_of(run)
    assert MISSING in text
    assert "KID" not in text
    assert "<Inception>" not in (run / "report.html").read_text(encoding="utf-8")


def test_several_feature_spaces_stand_below_each_other(tmp_path: Path) -> None:
    beside = judged("encoder trained on <OASIS>", 0.4444)
    run = folder(tmp_path, {"samples": 48, "seconds": 2.0, "missing": MISSING, "beside": [beside]} | judged())
    text = text_of(run)
    assert text.index("KID 0.0313") < text.index("KID 0.4444")
    assert "Features of encoder trained on <OASIS> (0123abcd)" in text
    assert MISSING in text
    assert text.count("0.0313 KID of samples") == 1
    assert "0.4444 KID of samples" not in text


def test_a_sheet_that_is_not_there_is_named(tmp_path: Path) -> None:
    run = folder(tmp_path, {"samples": 48, "seconds": 2.0})
    assert "samples.png cannot be shown" in text_of(run)
    (run / "pictures").mkdir()
    (run / "pictures" / "samples.png").write_bytes(b"not a picture")
    assert "samples.png cannot be shown" in text_of(run)


def test_what_could_not_be_had_is_a_dash(tmp_path: Path) -> None:
    """One subject, no training images: no interval, nothing of real against real, nothing of copies."""
    found = judged() | {"memorisation": None}
    found["kid"] |= {"ci": None, "real_against_real": None}
    found["fid"] |= {"real_against_real": None, "ratio": None}
    found["prdc"]["real_against_real"] = None
    found["ms_ssim"]["real"] = {"mean": None, "sd": None, "pairs": 0}
    text = text_of(folder(tmp_path, {"samples": 48, "seconds": 2.0, "beside": []} | found))
    assert "KID 0.0313 – –" in text
    assert "precision 0.7123 – –" in text
    assert "MS-SSIM of pairs 0.5432 – –" in text
    assert "copy rate" not in text
    assert "FID over real against real" not in text


@pytest.mark.parametrize("generation", [{}, None])
def test_a_method_that_does_not_sample_has_no_section(tmp_path: Path, generation: dict[str, Any] | None) -> None:
    text = text_of(folder(tmp_path, generation))
    assert "samples were drawn" not in text
    assert "First stage" not in text
    assert figures({"generation": generation}) == {}
    assert figures({}) == {}


def stage(place: Path) -> Path:
    results = {"model": "vqvae", "data": "phantom", "data_title": "phantom <bench-v1>", "seconds": 3661.0,
               "metrics": {"test/ssim": 0.9312}, "details": {"test/ssim": {"ci": [0.9272, 0.9348]}}}  # fmt: skip
    run = folder(place, None, **results)
    for name, value in (("epoch_0000", -0.5), ("epoch_0010", 0.5), ("zzz_anomaly", 0.0)):
        picture(run, name, value)
    return run


def test_the_first_stages_run_is_shown(tmp_path: Path) -> None:
    first = stage(tmp_path / "first & <only>")
    run = folder(tmp_path / "prior", config={"model": {"first_stage": str(first / "best.ckpt")}})
    page = Page(render(read_run(run)))
    assert f"vqvae on phantom <bench-v1>, 1 h 01 min in {first}" in page.text
    assert "SSIM on the test split is 0.9312 (95 % confidence interval 0.9272 to 0.9348)" in page.text
    assert "first stage: epoch 0010" in page.text  # what it made in the end
    assert len(page.addresses) == 1
    (first / "report.html").write_text("<p>")
    page = Page(render(read_run(run)))
    assert "../first%20%26%20%3Conly%3E/report.html" in page.addresses
    assert "its own report" in page.text


def test_a_first_stage_whose_folder_is_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone <now>" / "best.ckpt"
    run = folder(tmp_path / "prior", config={"model": {"first_stage": str(gone)}})
    assert f"Trained before, in {gone}; its run folder is not there any more." in text_of(run)
    assert "<now>" not in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("config", [{"model": {"first_stage": None}}, {"model": {}}, {"model": None}, None])
def test_methods_of_one_stage_have_no_such_section(tmp_path: Path, config: Any) -> None:
    assert "First stage" not in text_of(folder(tmp_path, config=config))
