"""Fit, test, report: what a run does once everything is built."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from mri_synth import outputs
from mri_synth.anomaly import anomaly_results
from mri_synth.callbacks import loggers
from mri_synth.callbacks.judging import Judging
from mri_synth.data.base import MRIDataModule
from mri_synth.data.split import write_manifest
from mri_synth.errors import UserError
from mri_synth.judgement import sampled, spaces
from mri_synth.metrics.diversity import ms_ssim
from mri_synth.metrics.kid import kid
from mri_synth.metrics.protocols import AT, habit_details
from mri_synth.metrics.references import NOTES, references
from mri_synth.metrics.scores import EXPLAINED, PROTOCOLS, summarise
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import initialise_from, read_checkpoint
from mri_synth.report import write_report
from mri_synth.report.explanations import explain
from mri_synth.trainer import Throughput

log = logging.getLogger(__name__)


def fit_and_test(config: dict[str, Any], folder: Path, data: MRIDataModule, model: SynthModule, trainer: pl.Trainer,
                 started: float) -> float | None:  # fmt: skip
    """Train (unless task=test), score the best checkpoint on the test split once, write results and report.

    Args:
        config: of the run, plain values.
        folder: of the run.
        data: set up.
        model: built for these data.
        trainer: built for this run.
        started: `time.monotonic()` at the start of the run.

    Returns:
        The monitored metric of the best checkpoint; with task=test the same metric on the test split, val/kid being
        that of the samples which are then drawn, against held-out images (None where `samples` or `features` leave
        them unjudged).
    """
    judges = model.samples() and config["samples"] > 0
    if judges:
        spaces(config["features"], "cpu")  # what is asked for and not here ends it before the training
    about = describe_run(config, data, model, trainer)
    if trainer.is_global_zero:
        write_manifest(folder / "split.csv", data.manifest)
        outputs.write_results(folder, about | {"status": "started"})
        loggers.describe(trainer.loggers, about)
    if config["task"] == "fit":
        resume = folder / "last.ckpt" if config["resume"] else None
        if resume and trainer.is_global_zero:
            loggers.forget_after(trainer.loggers, int(read_checkpoint(resume)["global_step"]))
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
        best = next(p for p in (folder / "best.ckpt", folder / "last.ckpt") if p.exists())
    else:
        best = Path(config["ckpt"])
    trainer.strategy.barrier("fit")
    content = initialise_from(model, best, "ckpt")
    warn_of_other_data(content, data)
    overlap = trained_on_test(content, data, [config["init_from"]] if config["init_from"] else [])
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    if config["resume"]:  # what was logged before it was interrupted, and is not again
        metrics = _last_validation(folder / "metrics.csv") | metrics
    if config["task"] == "fit" and content["callbacks"].get("Checkpoints", {}).get("best") is not None:
        metrics[f"best/{model.monitor[0]}"] = content["callbacks"]["Checkpoints"]["best"]
    details: dict[str, Any] = {}
    if len(data.view("test")):
        trainer.test(model, datamodule=data, verbose=False)
        metrics |= {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
        details = score_details(data, model)
    else:
        log.warning("the test split is empty: nothing was tested")
    name = f"best/{model.monitor[0]}" if config["task"] == "fit" else model.monitor[0].replace("val/", "test/")
    if trainer.is_global_zero:
        model.to(trainer.strategy.root_device)  # Lightning moves it to the CPU when a loop ends
        known = references(data) if model.reconstructs() or model.translates() else {}
        known |= model.references(data)
        anomaly = anomaly_results(model, data, picture=folder / "pictures" / "anomaly.png")
        metrics |= anomaly.get("metrics", {})
        details |= anomaly.get("details", {})
        known |= anomaly.get("references", {})
        generation = sampled(model, data, folder, config["samples"], config["features"]) if judges else {}
        if name == "test/kid" and "kid" in generation:
            metrics[name] = generation["kid"]["value"]
        concluded = _concluded(model, data) if details else {}
        about["explanations"] |= judged_in_training(trainer)
        throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
        outputs.write_results(folder, about | {
            "status": "finished", "resumed": bool(config["resume"]), "metrics": metrics, "details": details,
            "references": known, "generation": generation, "habits": habits(data, model),
            **({"conclusion": concluded} if concluded else {}),
            "notes": {k: v for k, v in (NOTES | model.notes).items() if k in known} | anomaly.get("notes", {}),
            "epochs": trainer.current_epoch, "steps": trainer.global_step,
            "seconds": round(time.monotonic() - started, 2), "images_per_second": throughput.images_per_second,
            "peak_memory_bytes": peak_memory(model), "checkpoint": str(best),
            "warnings": [*model.alarms, *overlap, *data_warnings(data)],
        })  # fmt: skip
        histogram = getattr(model, "codebook_histogram", None)
        if histogram is not None:
            np.save(folder / "codebook.npy", histogram.cpu().numpy())
        report = write_report(folder)
        test = metrics.get("test/ssim")
        log.info("%s\nreport: %s", f"test/ssim {test:.4f}" if test is not None else "", report)
        loggers.summarise(trainer.loggers, metrics)
    return metrics.get(name)


def _last_validation(path: Path) -> dict[str, float]:
    """The last value of each val/... in the curves of a run; of judgements of samples, those of the last epoch."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [(int(epoch), name, float(value)) for _, epoch, name, value in
                (row for row in csv.reader(file) if len(row) == 4) if name.startswith("val/")]  # fmt: skip
    last = max((epoch for epoch, _, _ in rows), default=0)
    return {name: value for epoch, name, value in rows if epoch == last or name not in Judging.METRICS}


def _concluded(model: SynthModule, data: MRIDataModule) -> dict[str, Any]:
    """The comparison of a method that makes one; if it fails, the results of the training are not lost."""
    try:
        return model.conclude(data)
    except UserError as error:
        model.alarms.append(f"no comparison: {error}")
        log.warning(model.alarms[-1])
        return {}


def judged_in_training(trainer: pl.Trainer) -> dict[str, str]:
    """What the values of samples that were judged in training are, and in which feature space.

    Args:
        trainer: after the fit.

    Returns:
        Metric to its explanation; empty without judgements.
    """
    said = next((c.said for c in trainer.callbacks if isinstance(c, Judging)), "")  # type: ignore[attr-defined]
    if not said:
        return {}
    sentence, _, formula = explain(kid).partition("\n")
    return {"val/kid": f"{sentence} Here of {said}.\n{formula}", "val/ms_ssim": explain(ms_ssim),
            "val/ms_ssim_real": "The same of validation images of different subjects."}  # fmt: skip


def trained_on_test(content: dict[str, Any], data: MRIDataModule, others: Sequence[str]) -> list[str]:
    """Whether test files were training files of the checkpoint, or of the one it started from: said loudly.

    Args:
        content: of the checkpoint that is scored.
        data: set up.
        others: checkpoints that training started from.

    Returns:
        One sentence per checkpoint that knows test files.
    """
    test, found = set(data.partition.fingerprints("test")), []
    known = [("this checkpoint", content["mri_synth"])]
    known += [(path, read_checkpoint(Path(path))["mri_synth"]) for path in others]
    for key in ("first_stage", "guide"):
        stage = content["hyper_parameters"].get(key)
        if isinstance(stage, dict):  # a record; of clip_guided the guide's kind
            known.append((f"its {key.replace('_', ' ')}", stage))
    generators = content["hyper_parameters"].get("generators")
    for name, path in generators.items() if isinstance(generators, dict) else ():
        known.append((f"the generator {name}", read_checkpoint(Path(path))["mri_synth"]))
    for name, about in known:
        if both := test & set(about.get("trained_on", [])):
            found.append(f"{len(both)} of {len(test)} test files were training files of {name}: the test scores are "
                         "no measure of what it does on unseen data. Use its split: data.split.by=given "
                         "data.split.file=<its run>/split.csv")  # fmt: skip
            log.warning(found[-1])
    return found


def data_warnings(data: MRIDataModule) -> list[str]:
    """What a reader of the results must know of the data: what was dropped, and which files could not be used.

    Args:
        data: set up.

    Returns:
        One sentence each.
    """
    bad = [f"{f['path']}: not used: {f['reason']}" for f in data.store.files if f["bad"]]
    more = [f"and {len(bad) - 20} more files that were not used; split.csv lists them"] if len(bad) > 20 else []
    return [*(f"dropped: {reason}" for reason in data.leaks), *bad[:20], *more]


def warn_of_other_data(content: dict[str, Any], data: MRIDataModule) -> None:
    """Say so when a checkpoint is scored on data that were prepared otherwise than those it was trained on.

    Args:
        content: of the checkpoint.
        data: set up.
    """
    there, here = content["hyper_parameters"]["spec"], data.spec.to_dict()
    there, here = (json.loads(json.dumps(spec)) for spec in (there, here))  # a checkpoint has lists for tuples
    keys = [k for k in ("channels", "size", "contrasts", "plane", "simulated") if there[k] != here[k]]
    before, now = there["preparation"], here["preparation"]
    keys += [f"preparation.{k}" for k in now if k not in ("title", "ranges", *keys) and before.get(k) != now[k]]
    if keys:
        log.warning("the checkpoint was trained on data prepared otherwise: %s", ", ".join(keys))


def describe_run(
    config: dict[str, Any], data: MRIDataModule, model: SynthModule, trainer: pl.Trainer
) -> dict[str, Any]:
    """What was run, on what, with what.

    Args:
        config: of the run, plain values.
        data: set up.
        model: built.
        trainer: built.

    Returns:
        Plain values for results.json and W&B.
    """
    functions: dict[str, Callable[..., Any]] = model.explained
    explanations = {f"{split}/{name}": explain(f) for split in ("train", "val") for name, f in functions.items()}
    explanations |= {f"{split}/{name}": explain(f) for split in ("val", "test") for name, f in EXPLAINED.items()}
    total = explain(type(model).losses)
    return {
        "task": config["task"], "model": type(model).__module__.split(".")[-1],
        "data": type(data).__module__.split(".")[-1],
        "data_title": data.title, "simulated": data.simulated, "seed": config["seed"], "config": config,
        "split_hash": outputs.table_hash(data.manifest), "data_hash": data.data_hash, "view": data.view_class.name,
        "device": str(trainer.strategy.root_device), "world_size": trainer.world_size,
        "precision": trainer.precision, "parameters": sum(p.numel() for p in model.parameters()),
        "protocol": PROTOCOLS | model.protocols,
        "explanations": explanations | {"train/loss": total, "val/loss": total},
        **outputs.environment(),
    }  # fmt: skip


def score_details(data: MRIDataModule, model: SynthModule) -> dict[str, Any]:
    """Mean, spread over subjects and interval of every test score.

    Args:
        data: set up.
        model: just tested.

    Returns:
        "test/<score>" to its summary with protocol.
    """
    results = getattr(model, "test_results", None)
    if results is None:
        return {}
    subjects = data.view("test").subjects[results["index"]].tolist()
    known = PROTOCOLS | model.protocols
    plain = {k: v for k, v in results.items() if k != "index" and AT not in k}
    return {f"test/{k}": summarise(v, subjects) | {"protocol": known[k]} for k, v in plain.items()}


def habits(data: MRIDataModule, model: SynthModule) -> dict[str, Any]:
    """The test's images scored as published habits have it: apart from the scores, with which they do not compare.

    Args:
        data: set up.
        model: just tested.

    Returns:
        Such as "psnr@own_max" to its summary with protocol; empty of what does not translate.
    """
    results = getattr(model, "test_results", None)
    return {} if results is None else habit_details(results, data.view("test").subjects[results["index"]].tolist())


def peak_memory(model: SynthModule) -> int:
    """Bytes: of the GPU where there is one, else resident memory of the process."""
    if model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(model.device))
    return outputs.peak_memory_bytes()
