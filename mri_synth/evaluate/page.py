"""The page of `mri-synth evaluate`: verdicts, figures with intervals, pictures, how each was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mri_synth import html, plots
from mri_synth.html import Html
from mri_synth.report.samples import _distributions

MOST_ROWS = 30


def verdicts(results: Mapping[str, Any]) -> list[str]:
    """What the figures say, in sentences, what is wrong first.

    Args:
        results: of `evaluate`.

    Returns:
        Sentences.
    """
    out = [f"{overlap['said']}." for overlap in results["overlaps"]]
    found = results.get("memorisation")
    if found and (copies := found["copies"]):
        some = "; ".join(f"{c['places']['fake']} = {c['places']['train']}" for c in copies[:3])
        out.append(f"COPIES: {len(copies)} of the {results['counts']['fake']} fakes are copies of training images "
                   f"({some}){_twins(results)}.")  # fmt: skip
    if n := results["repeated"]:
        out.append(f"{n} of the fakes are the very image of another fake.")
    kid, fid = results["kid"], results["fid"]
    interval = f" ({_ci(kid['ci'])})" if kid["ci"] else ""
    beside = "" if kid["real_against_real"] is None else f", real against real {kid['real_against_real']:.4g}"
    out.append(f"KID {kid['value']:.4g}{interval}{beside}, in the features of {results['features']['name']}.")
    if fid["ratio"] is not None:
        out.append(f"FID {fid['value']:.4g} at n = {fid['n']}, {fid['ratio']:.3g} times that of real against real "
                   f"({fid['real_against_real']:.4g}).")  # fmt: skip
    if found:
        rate, ci = found["features"]["copy_rate"], found["features"]["copy_rate_ci"]
        said = "see the copies." if found["copies"] else f"no copies or near ones were found{_among(results)}."
        out.append(f"Copy rate {rate:.3f}{f' ({_ci(ci)})' if ci else ''}: 0.5 without memorisation; "
                   + said)  # fmt: skip
    else:
        out.append("Nothing is said of memorisation: no training set was given (--train).")
    return out


def _among(results: Mapping[str, Any]) -> str:
    """How much of the training set was looked at, where that is a part."""
    train = results["sets"]["train"]
    return f" among {train['images']:,} of {train['of']:,} training images (--at-most)" if train.get("of") else ""


def _twins(results: Mapping[str, Any]) -> str:
    """How many held-out images would be called copies too."""
    n, of = results["memorisation"]["held_out_below"], results["counts"]["real"]
    return f"; by the same limits {n} of the {of} held-out images, which no model has made" if n else ""


def build(results: Mapping[str, Any], folder: Path) -> str:
    """The page.

    Args:
        results: of `evaluate`.
        folder: where its pictures are.

    Returns:
        HTML, pictures inside.
    """
    found, pictures = results, folder / "pictures"
    loud = [
        v for v in found["verdicts"] if v.startswith("COPIES") or any(o["said"] + "." == v for o in found["overlaps"])
    ]
    head: list[object] = [Html("<h1>Evaluation of generated images</h1>")]
    if found["simulated"]:
        head.append(html.badge(html.SIMULATED, "warn"))
    head += [html.notice(v, "warn") for v in loud]
    head += [html.paragraph(v, "verdict") for v in found["verdicts"] if v not in loud]
    head += [html.notice(note) for note in found["notes"]]
    parts: list[object] = [*head, html.section("Figures", *_figures(found))]
    parts += [html.section(f"In the features of {s['features']['name']}", *_figures(s)) for s in found["beside"]]
    parts.append(html.section("Intensities and spectra", *_looks(found["looks"])))
    parts.append(html.section("The images", *(html.figure(pictures / f"{r}.png", _of(found["sets"][r])) for r in
                                              ("real", "fake"))))  # fmt: skip
    parts += (
        [html.section("Memorisation", *_memorisation(found["memorisation"], pictures, _among(found)))]
        if "memorisation" in found
        else []
    )
    parts += _subjects(found["by_subject"])
    parts.append(html.section("Utility: train on synthetic, test on real", *_utility(found["utility"])))
    parts.append(html.section("Utility: segmentation trained on synthetic, tested on real",
                              *_utility(found["segmentation"])))  # fmt: skip
    parts.append(html.section("How this was made", *_record(found)))
    return html.page("Evaluation", *parts)


def _figures(found: Mapping[str, Any]) -> list[Html]:
    kid, fid, near = found["kid"], found["fid"], found["prdc"]
    reals = near.get("real_against_real") or {}
    spread = f"{min(fid['values']):.4g} to {max(fid['values']):.4g} over {len(fid['values'])} draws"
    rows: list[list[object]] = [
        ["KID", kid["value"], _ci(kid["ci"]), kid["real_against_real"]],
        [f"FID, n = {fid['n']}", fid["value"], spread, fid["real_against_real"]],
        [f"FID, all images ({fid['all']['n_fake']:,} and {fid['all']['n_real']:,})", fid["all"]["value"], None, None],
        *([name, value, None, reals.get(name)] for name, value in (near.get("fake") or {}).items()),
    ]
    looks = found.get("looks")
    if looks:
        ms = looks["ms_ssim"]
        rows.append(["MS-SSIM of pairs (higher: less varied)", ms["fake"]["mean"], _sd(ms["fake"]), ms["real"]["mean"]])
        if looks["lpips"]:
            one = looks["lpips"]
            rows.append(
                ["LPIPS of pairs (lower: less varied)", one["fake"]["mean"], _sd(one["fake"]), one["real"]["mean"]]
            )
        for name, title in (("histogram", "histogram distance (Wasserstein-1)"), ("spectrum", "spectrum distance, dB")):
            rows.append([title, looks[name]["value"], _ci(looks[name]["ci"]), looks[name]["real_against_real"]])
    features, counts = found["features"], found["counts"]
    said = (f"Features of {features['name']} ({features['hash']}, {features['dim']} numbers); {counts['fake']:,} fake "
            f"and {counts['real']:,} real images of {counts['real_subjects']:,} subjects; KID of {kid['n_fake']:,} and "
            f"{kid['n_real']:,}.")  # fmt: skip
    protocol = dict(found["protocol"]) | (dict(looks["protocol"]) if looks else {})
    if looks and looks["lpips"]:
        protocol["lpips"] = looks["lpips"]["protocol"]
    return [html.table(["fake against real", "value", "95 % interval, or spread", "real against real"], rows),
            html.paragraph(said, "soft"), *_distributions(found["distributions"], str(features["name"])),
            html.details("How these are measured", html.facts(protocol))]  # fmt: skip


def _looks(looks: Mapping[str, Any]) -> list[Html]:
    shares, named = looks["intensities"], (("real", "real"), ("generated", "fake"))
    counts = {name: shares[role] for name, role in named}
    drawn = [plots.histogram(shares["edges"], counts, f"intensities, {scale}", "intensity, 0 to 1", log)
             for scale, log in (("linear", False), ("logarithmic", True))]  # fmt: skip
    power = {name: (list(range(1, len(looks["power"][role]) + 1)), looks["power"][role]) for name, role in named}
    drawn.append(plots.curve(power, "power by spatial frequency", "cycles per shorter side", log=True))
    said = (
        "Intensities: share of all pixels; what scanners add, noise above all, shows there first. Power: where the "
        "generated images' falls off before the real ones' they are blurred; peaks are a generator's patterns."
    )
    return [html.side_by_side(*drawn), html.paragraph(said)]


def _memorisation(found: Mapping[str, Any], pictures: Path, among: str) -> list[Html]:
    rows: list[list[object]] = []
    for space in ("features", "pixels"):
        one = found[space]
        rows += [
            [f"copy rate, {space} (0.5: none)", one["copy_rate"], _ci(one["copy_rate_ci"]), 0.5],
            [f"closer to train than to held-out, {space}", one["closer_to_train"], None, 0.5],
            [f"near duplicates of train, {space}", one["near_duplicates"], None, one["near_duplicates_held_out"]],
        ]
    parts = [html.table(["", "fakes", "95 % interval", "held-out images, or expected"], rows)]
    if found["copies"]:
        listed = [[c["places"]["fake"], c["places"]["train"] + (", mirrored" if c["mirrored"] else ""),
                   ", ".join(c["by"]), c["distance"]] for c in found["copies"][:MOST_ROWS]]  # fmt: skip
        parts += [html.notice(f"Called copies: {len(found['copies'])} fakes, and by the same limits "
                              f"{found['held_out_below']} held-out images.", "warn"),
                  html.table(["fake", "training image", "found by", "distance in pixels"], listed),
                  html.figure(pictures / "copies.png", "copies of training images")]  # fmt: skip
    else:
        parts.append(html.paragraph(f"No fake is a training image, or all but one{among}."))
    parts += [html.figure(pictures / f"nearest_{s}.png", f"the fakes nearest to a training image, by {s}")
              for s in ("features", "pixels")]  # fmt: skip
    return [*parts, html.details("How this is measured", html.facts(dict(found["protocol"])))]


def _subjects(found: Mapping[str, Any]) -> list[Html]:
    parts = []
    for role, word in (("real", "coverage"), ("fake", "precision")):
        if rows := found.get(role):
            title = f"{word} of each {role} subject, lowest first ({len(rows)} subjects)"
            parts.append(html.card(title, html.table(["subject", "images", word], rows[:MOST_ROWS])))
    return [html.section("By subject", html.side_by_side(*parts))] if parts else []


def _utility(found: Mapping[str, Any]) -> list[Html]:
    if "missing" in found:
        return [html.paragraph(found["missing"])]
    parts = [html.card(t["title"], html.table(t["head"], t["rows"])) for t in found["tables"]]
    parts += [plots.bars(b["heights"], b["title"], "", "%", b["labels"]) for b in found["bars"]]
    return [*parts, *(html.paragraph(n, "soft") for n in found["notes"]), html.paragraph(found["protocol"], "soft")]


def _record(found: Mapping[str, Any]) -> list[Html]:
    parts = [html.card(role, html.facts({k: _plain(v) for k, v in one.items()})) for role, one in found["sets"].items()]
    seconds = {f"seconds, {k}".replace("_", " "): v for k, v in found["seconds"].items()}
    facts = {k: _plain(v) for k, v in found["settings"].items()} | seconds
    facts |= {"peak memory, MiB": found["peak_memory_mib"], **found["versions"], **found["machine"], **found["git"]}
    return [html.code(found["command"]), html.side_by_side(*parts), html.facts(facts),
            html.paragraph("Files with their sha256: files.csv. All figures: evaluation.json.", "soft")]  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value[:5])) + (", ..." if len(value) > 5 else "")
    return value


def _of(one: Mapping[str, Any]) -> str:
    return f"{one['images']:,} images of {one['source']}"


def _ci(ci: Any) -> str | None:
    return None if ci is None else f"{html.number(ci[0])} to {html.number(ci[1])}"


def _sd(one: Mapping[str, Any]) -> str | None:
    return None if one["sd"] is None else f"sd {html.number(one['sd'])} over {one['pairs']} pairs"
