"""The model card of a release, in Markdown, from what the run wrote: figures with intervals, and what is not known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mri_synth.run_folder import Run, split_table

USE = (
    "Research on methods: comparing generative models, augmenting training data whose effect is then measured on real "
    "images, teaching. Not for diagnosis, nor for any decision about a person."
)
METRIC = r"(?<![\w./\\])(train|val|test|best|baseline)/(?=[a-z_]+(?:_\d+)?(?![\w./\\]))"
"""Of a metric's name the part that looks like a folder."""
IMAGE = r"\.(nii|nii\.gz|png|jpe?g|tiff?|dcm|mg[zh]|img|hdr)\b"
"""Ends the names of images, which may be patients'."""
UNKNOWN = "not stated. Ask whoever gave the data before this is passed on"


def card(
    about: Mapping[str, Any], run: Run, checkpoint: str, *, licence: str | None = None, use: str | None = None
) -> str:
    """A model card.

    Args:
        about: content of release.json.
        run: the folder beside the checkpoint, as read.
        checkpoint: its file name.
        licence: of the training data.
        use: what the model is meant for.

    Returns:
        Markdown.
    """
    results = run.results if run.results.get("status") == "finished" else {}
    own = bool(results) and Path(str(results.get("checkpoint"))).name == checkpoint
    name = about["target"].rpartition(".")[2]
    simulated = "**Trained on SIMULATED images: no scanner was involved.** " if about["simulated"] else ""
    parts = [
        f"# {name}: a generative model of MRI",
        f"{simulated}{about['synthetic'].capitalize()}. Whoever passes images of it on says so beside them.",
        "## Use", _how(about), "## Intended use", use or USE,
        "## Data", _data(about, run, licence), "## How images are prepared", _preparation(about["spec"]),
        "## Figures", _figures(results, run, own, checkpoint),
        "## Memorisation", _memorisation(results if own else {}, about),
        "## Cost", _cost(about, results), "## Limits", _limits(about, results),
        "## Equal to the checkpoint", _equal(about), "## Licence of the data", f"{licence or UNKNOWN}.",
        f"Checkpoint: SHA-256 {about['checkpoint_sha256']}. Made by mri_synth {about['mri_synth']} and torch "
        f"{about['torch']}; every file's hash is in MANIFEST.sha256 (`sha256sum -c MANIFEST.sha256`).",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _how(about: Mapping[str, Any]) -> str:
    known = about["operations"]
    calls = {"from_latent": "model.sample([0, 1, 2])", "sample": "model.sample([0, 1, 2])",
             "translate": "model.translate(source)", "reconstruct": "model.reconstruct(image)"}  # fmt: skip
    lines = [f"images = {calls[name]}" for name, op in known.items() if op["torch"] and name in calls]
    text = ""
    if lines:
        text = "\n".join(["With torch and nothing else, in this folder:\n", "```python",
                          "from loader import load_release\n", 'model = load_release(".")', *lines,
                          "```\n"])  # fmt: skip
    rows = [
        [f"`{name}`", "; ".join(f"{i['name']} ({', '.join(map(str, i['shape']))}) {i['dtype']}: {i['meaning']}"
                                for i in op["inputs"]),
         op["makes"], op["torch"] or "no", op["onnx"] or "no"] for name, op in known.items()
    ]  # fmt: skip
    table = _table(["operation", "takes", "makes", "torch.export", "ONNX"], rows)
    why: dict[str, list[str]] = {}
    for name, op in known.items():
        for kind, reason in op["missing"].items():
            why.setdefault(reason, []).append(f"{name} in {'torch.export' if kind == 'torch' else 'ONNX'}")
    missing = "".join(f"\n\nNot here: {', '.join(names)}: {reason}." for reason, names in why.items())
    rebuilt = ("\n\nWith mri_synth, to go on training or for what has no graph: `mri_synth.release.model_of(\".\")`, "
               "from weights.safetensors and release.json.")  # fmt: skip
    origin = f"\n\n{about['origin']}" if about.get("origin") else ""
    return text + "\n" * bool(text) + table + origin + missing + rebuilt


def _data(about: Mapping[str, Any], run: Run, licence: str | None) -> str:
    results, spec = run.results, about["spec"]
    kind = "simulated" if about["simulated"] else "measured"
    lines = [f"- images: {kind}, {', '.join(spec['contrasts']) or 'contrast unknown'}, {spec['size']} x {spec['size']} "
             "pixels"]  # fmt: skip
    if spec["sources"]:
        lines.append(f"- made of: {', '.join(spec['sources'])}; makes: {spec['goal']}")
    if spec["classes"]:
        lines.append(f"- classes: {', '.join(spec['classes'])}")
    if results:
        lines += [f"- data set: {results.get('data')} ({results.get('data_title')})",
                  f"- hash of the data: {results.get('data_hash', 'not recorded')}",
                  f"- hash of the split: {results.get('split_hash', 'not recorded')}"]  # fmt: skip
    else:
        lines.append("- which data set and split: not known (no results.json beside the checkpoint)")
    lines.append(f"- licence: {licence or UNKNOWN}")
    table = split_table(run.split) if run.split else []
    return "\n".join(lines) + (f"\n\n{_table(['split', 'subjects', 'files', 'slices'], table)}" if table else "")


def _preparation(spec: Mapping[str, Any]) -> str:
    found = spec.get("preparation") or {}
    lines = [f"- {key.replace('_', ' ')}: {_words(found[key])}"
             for key in ("plane", "fit", "size", "spacing_mm", "intensity") if found.get(key) is not None]  # fmt: skip
    lines += [f"- {c}: -1 is {r[0]:g} and 1 is {r[1]:g} in the median training file"
              for c, r in (found.get("ranges") or {}).items()]  # fmt: skip
    return "\n".join(lines) if lines else "Not recorded in the checkpoint."


def _figures(results: Mapping[str, Any], run: Run, own: bool, checkpoint: str) -> str:
    if not results:
        return " ".join(["None: the checkpoint's run is not there or not finished.", *map(_public, run.missing)])
    if not own:
        return (f"None of this checkpoint: those of its run are of {Path(str(results.get('checkpoint'))).name}, and "
                f"this is {checkpoint}.")  # fmt: skip
    details, known, rows = results.get("details") or {}, results.get("references") or {}, []
    for name, found in details.items():
        short = name.removeprefix("test/")
        twins = {k.rpartition("/")[0]: v for k, v in known.items() if k.rpartition("/")[2] == short and v is not None}
        beside = [f"{kind} {value:.4g}" for kind, value in twins.items()]
        rows.append([short, _number(found.get("mean")), _interval(found.get("ci")),
                     f"{found.get('n_subjects', '?')} subjects, {found.get('n_slices', '?')} slices",
                     ", ".join(beside)])  # fmt: skip
    parts = []
    if rows:
        parts.append(f"{_tested(results)} Intervals (95 %) from a bootstrap of subjects.\n\n"
                     + _table(["score", "mean", "interval", "of", "beside it"], rows))  # fmt: skip
        protocols = {n.removeprefix("test/"): f["protocol"] for n, f in details.items() if f.get("protocol")}
        parts.append("Protocols:\n\n" + "\n".join(f"- {n}: {p}" for n, p in protocols.items()))
        if notes := results.get("notes"):
            parts.append("Beside it stand:\n\n" + "\n".join(f"- {n}: {text}" for n, text in notes.items()))
    generation = results.get("generation") or {}
    if "kid" in generation:
        parts.append(_generation(generation))
    elif generation.get("missing"):
        parts.append(f"Samples: {_public(str(generation['missing']))}.")
    if not parts:
        plain = {k: v for k, v in (results.get("metrics") or {}).items() if k.startswith("test/")}
        parts.append(_table(["metric", "value, without interval"], [[k, _number(v)] for k, v in plain.items()])
                     if plain else "None were measured on the test split.")  # fmt: skip
    return "\n\n".join(parts)


def _tested(results: Mapping[str, Any]) -> str:
    """What is known of how the test split was used."""
    when = "after its training" if results.get("task", "fit") == "fit" else "without training, by task=test"
    return (f"Test split, scored by the run {when}. Whether it was looked at before, by other runs or to choose among "
            "them, is not known.")  # fmt: skip


def _generation(found: Mapping[str, Any]) -> str:
    kid, fid, space = found["kid"], found["fid"], found["features"]
    rows = [["KID", _number(kid["value"]), _interval(kid.get("ci")), _number(kid.get("real_against_real"))],
            ["FID", _number(fid["value"]), "", _number(fid.get("real_against_real"))]]  # fmt: skip
    fake, real = (found["prdc"].get(k) or {} for k in ("fake", "real_against_real"))
    rows += [[name, _number(value), "", _number(real.get(name))] for name, value in fake.items()]
    fake, real = (found["ms_ssim"].get(k) or {} for k in ("fake", "real"))
    rows.append(["MS-SSIM between samples", _number(fake.get("mean")), "", _number(real.get("mean"))])
    head = (f"{found['samples']} samples against real images ({found['pool']}; n = {found['n']} on each side of FID), "
            f"features {space['name']} (hash {space['hash']}).")  # fmt: skip
    protocol = "\n".join(f"- {name}: {text}" for name, text in found["protocol"].items())
    table = _table(["measure", "samples", "interval", "real against real"], rows)
    return f"{head}\n\n{table}\n\nProtocols:\n\n{protocol}"


def _memorisation(results: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    found = (results.get("generation") or {}).get("memorisation") or {}
    if not {"sample", "from_latent"} & about["operations"].keys():
        return ("It draws nothing of its own, so no sample can be a copy. Whether its weights give away training "
                "images was not looked into.")  # fmt: skip
    if not found:
        return "Not measured: whether its images are copies of training images is not known."
    rows = [[f"in {space}", _number(v["copy_rate"]), _interval(v.get("copy_rate_ci")), _number(v["near_duplicates"]),
             _number(v["near_duplicates_held_out"])] for space, v in found.items()]  # fmt: skip
    return ("copy rate: probability that a sample lies nearer its nearest training image than a held-out real image "
            "does (0.5 without copying, 1 for copies).\n\n"
            + _table(["", "copy rate", "interval", "near duplicates", "of held-out images"], rows))  # fmt: skip


def _cost(about: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    lines = [f"- parameters: {about['parameters']:,}"]
    if results:
        machine = (results.get("machine") or {}).get("cpu", "")
        rate = results.get("images_per_second")
        lines += [
            f"- training: {results.get('epochs')} epochs, {results.get('steps')} steps, "
            f"{float(results.get('seconds') or 0) / 60:.3g} minutes with test, on {results.get('world_size')} x "
            f"{results.get('device')} ({machine}), precision {results.get('precision')}",
            *([f"- {rate:.4g} images per second in training"] if rate else []),
            f"- peak memory: {float(results.get('peak_memory_bytes') or 0) / 2**20:.0f} MiB",
        ]
    return "\n".join(lines)


def _limits(about: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    spec = about["spec"]
    lines = [f"single slices ({spec['plane'] or 'plane unknown'}) of {spec['size']} x {spec['size']} pixels: "
             "neighbouring slices know nothing of each other",
             "what it learned is its training split: other scanners, ages, diseases, contrasts are outside of it",
             "synthetic images may show lesions that are not there, and miss those that are"]  # fmt: skip
    if about["simulated"]:
        lines.insert(0, "trained on simulated images: nothing is known of how it does on measured ones")
    lines += _warned([str(w) for w in results.get("warnings") or []])
    lines += [_public(str(n)) for n in (results.get("generation") or {}).get("notes") or []]
    return "\n".join(f"- {line}" for line in lines)


def _warned(warnings: Iterable[str]) -> list[str]:
    """A run's warnings without its patients' files: those that name such are counted."""
    unused = dropped = 0
    out = []
    for text in warnings:
        if ": not used: " in text:
            unused += 1
        elif more := re.match(r"and (\d+) more files that were not used", text):
            unused += int(more[1])
        elif text.startswith("dropped: "):
            dropped += 1
        elif both := re.match(
            r"(\d+ of \d+ test files were training files of )(.*?)(: the test scores are .* data)\.", text
        ):
            known = re.match(r"this checkpoint$|its |the generator ", both[2])
            out.append(both[1] + (both[2] if known and "/" not in both[2] else "another checkpoint") + both[3])
        else:
            out.append(_public(text))
    counted = (("file", unused, "not used: they could not be read, or showed nothing usable"),
               ("item", dropped, "dropped, since they, or their subjects, were in two splits"))  # fmt: skip
    return out + [f"{n} {word}{'s were' if n > 1 else ' was'} {why}" for word, n, why in counted if n]


def _equal(about: Mapping[str, Any]) -> str:
    rows = [[f"`{name}`", _number(op["difference"].get("torch")), _number(op["difference"].get("onnx"))]
            for name, op in about["operations"].items()]  # fmt: skip
    return ("Largest absolute difference from the checkpoint's outputs on fixed inputs, CPU, float32; more than 1e-4 "
            "is not released.\n\n" + _table(["operation", "torch.export", "ONNX"], rows))  # fmt: skip


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [list(head), *rows]]
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def _words(value: Any) -> str:
    """A setting as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items() if v is not None)
    return " to ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(value: Any) -> str:
    return f"{value[0]:.4g} to {value[1]:.4g}" if value else "–"


def _public(text: str) -> str:
    """Without folders and files: of what lies between colons and semicolons and has a path, its last name at most."""
    parts = re.split(r"((?:[:;]|\.)\s+)", re.sub(METRIC, "\\1\0", text))
    for k, part in enumerate(parts):
        if re.search(r"[/\\]", part):
            parts[k] = re.split(r"[/\\]", part)[-1].strip()
        if re.search(IMAGE, parts[k], re.IGNORECASE):
            parts[k] = "a file"
    return "".join(parts).replace("\0", "/")
