"""The README does what it says: its commands run, its keys, paths, files, figures and code exist."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import layouts
import pytest
import typer
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from typer.testing import CliRunner

from mri_synth import config
from mri_synth.cli import app
from mri_synth.errors import ConfigError
from mri_synth.models.checkpoint import load_model
from mri_synth.overrides import admit_unknown
from mri_synth.run import run
from mri_synth.sweep import name_by_swept

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TRAIN = ["python", "-m", "mri_synth.run"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every command of a shell block, and what a console block types, in words."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = commands()
TYPED = [shlex.split(line[2:]) for block in blocks("console") for line in block.splitlines() if line[:2] == "$ "]
RUNS = [words[3:] for words in COMMANDS if words[:3] == TRAIN and words not in TYPED]
VERBS = [words[1:] for words in COMMANDS if words[0] == "mri-synth"]
IN_PROSE = [shlex.split(span)[3:] for span in re.findall(r"`([^`\n]+)`", README)
            if span.startswith(" ".join(TRAIN)) and "--" not in span]  # fmt: skip
TEMPLATE = OmegaConf.load(ROOT / "conf/run.yaml").hydra.help.template
IN_HELP = [shlex.split(words.replace("<run>", "RUN")) for words in re.findall(r"mri_synth\.run ([\w-].*)", TEMPLATE)]
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
QUOTED = [quote for span in re.findall(r"`([^`]+)`", PROSE) for quote in span.split()]

# The command that makes each run folder which the README names: outputs/RUN, ....
MADE = {
    "RUN": ["model=vqvae", "data=phantom"],
    "PRIOR": ["model=pixelcnn", "data=phantom", "model.first_stage=outputs/RUN/best.ckpt"],
    "LABELLED": ["model=pixelcnn", "data=phantom", "model.first_stage=outputs/RUN/best.ckpt", "model.condition=label"],
    "VAE": ["model=vae", "data=phantom"],
    "GAN": ["model=dcgan", "data=phantom", "data.size=64"],
    "PAIR": ["model=pix2pix", "data=phantom", "data.contrasts=[T1,T2]"],
    "CODES": ["experiment=brain_codes"],
    "HEALTHY": ["experiment=dae_anomaly"],
    "WORDS": ["model=mri_clip", "data=phantom", "data.contrasts=[T1,T2,PD,FLAIR]"],
    "ASKED": [
        "model=pixelcnn",
        "data=phantom",
        "data.contrasts=[T1,T2,PD,FLAIR]",
        "model.first_stage=outputs/RUN/best.ckpt",
        "model.condition=text",
        "model.guide=outputs/WORDS/best.ckpt",
    ],
    "BYCLASS": ["model=dcgan", "model.condition=label", "data=phantom", "data.contrasts=[FLAIR]"],
    "MAPS": ["model=pix2pix", "data=phantom", "data.contrasts=[FLAIR]", "data.source=derived"],
    "GROWN": ["model=progan", "model.condition=label", "data=phantom", "data.contrasts=[FLAIR]"],
    "ENCODER": ["model=encoder", "data=phantom", "data.batch_size=64"],
}
# What makes a run small enough for a test, whatever it is about; and, by model, what else does.
SMALL = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "trainer.pictures=2",
         "trainer.limit_test_batches=1", "trainer.progress=false", "trainer.log_every_steps=1", "data.size=32",
         "trainer.val_every_epochs=1",
         "data.batch_size=4", "samples=8"]  # fmt: skip
SMALL_MODEL = {
    "clip_guided": [],  # not in a command; mri-synth imagine has tests of its own
    "cyclegan": ["model.generator=unet", "model.width=4", "model.d_width=4", "model.d_layers=1", "model.pool_size=4",
                 "trainer.judge_features=pixels"],
    "dae": ["model.hidden_channels=8"],
    "dcgan": ["model.channels_g=8", "model.channels_d=8", "model.latent_dim=8", "trainer.judge_features=pixels"],
    "encoder": ["model.width=8", "model.dim=32"],
    "pix2pix": ["model.generator=unet", "model.width=4", "model.d_width=4", "model.d_layers=1"],
    "pixelcnn": ["model.channels=8", "model.layers=1", "model.hidden=8"],
    "progan": ["model.fmap_base=64", "model.latent_dim=8", "model.fade_kimg=[0.0]",
               "model.steady_kimg=[0.0]", "trainer.judge_features=pixels"],
    "mri_clip": ["model.dim=8", "model.width=8", "model.text_width=32", "model.text_layers=1"],
    "style_gan": ["model.width=4", "model.d_width=4", "model.d_layers=1"],
    "style_transfer": [],  # needs VGG-19, and has tests of its own
    "unet_l1": ["model.width=4"],
    "utility": [],  # the table of three generators has tests of its own
    "vae": ["model.hidden_channels=8"],
    "vqgan": ["model.hidden_channels=8", "model.res_blocks=1", "model.codebook_size=128", "model.codebook_dim=8",
              "model.codebook_warmup=0", "model.d_width=8", "model.perceptual=none"],
    "vqvae": ["model.hidden_channels=8", "model.res_blocks=1", "model.codebook_size=128", "model.codebook_dim=8",
              "model.codebook_warmup=0"],
}  # fmt: skip
# Only composed and checked: they need several processes, a GPU, a cluster, a key, a download or 40 subjects, and have
# tests of their own.
ONLY_CHECKED = re.compile(
    r"-m$|trainer=(gpu|ddp)|logger\.mode=online|hydra/launcher|data\.(download=true|split\.file=preset)|model=style_t"
    r"|experiment=(compare_|seed_004_table)"
)


# Verbs with tests of their own that fetch weights, or need such: of Inception, VGG-19, EfficientNet.
FETCHED = {"get", "refine", "conse"}


def sweeps(words: list[str]) -> bool:
    return name_by_swept(words) != words


def named(words: list[str]) -> list[str]:
    """Run folders in the words, such as RUN of outputs/RUN."""
    return list(dict.fromkeys(re.findall(r"\boutputs/([A-Z]+)\b", " ".join(words))))


def test_every_run_folder_that_is_named_is_made_by_a_command():
    assert set(named([README])) == set(MADE)
    assert [words for words in MADE.values() if words not in RUNS] == []
    assert all(f"`{name}`" in README for name in MADE), "the README says what each stands for"
    assert set(SMALL_MODEL) == set(config.choices("model"))


def test_every_command_is_of_a_kind_that_is_tested():
    assert len(RUNS) > 20
    assert len(IN_HELP) > 3
    assert {words[0] for words in COMMANDS} <= {"python", "mri-synth", "make", "export", "wandb"}
    assert all(words[:2] == ["python", "-m"] for words in COMMANDS if words[0] == "python")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder in which the checkpoints that the README names exist."""
    monkeypatch.chdir(tmp_path)
    for name in MADE:
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "best.ckpt").touch()
    return tmp_path


def jobs(words: list[str]) -> list[list[str]]:
    """The jobs of a sweep; of another command itself."""
    overrides = OverridesParser.create().parse_overrides([w for w in words if w != "-m"])
    choices = [[f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()] if o.is_sweep_override()
               else [o.input_line] for o in overrides]  # fmt: skip
    return [list(job) for job in itertools.product(*choices)]


@pytest.mark.parametrize("words", RUNS + IN_PROSE + IN_HELP, ids=" ".join)
def test_every_run_is_a_right_configuration(words, here, compose):
    assert ("-m" in words) == (len(jobs(words)) > 1)
    for job in jobs(words):
        config.check(compose(*job, return_hydra_config=True))


def test_the_mistakes_are_answered_as_shown(compose):
    (block,) = blocks("console")
    typed, _, answer = block.partition("\n")
    words = shlex.split(typed[2:])[3:]
    with pytest.raises(ConfigError, match="4 mistakes") as caught:
        config.check(compose(*admit_unknown(words)))
    assert str(caught.value).splitlines() == answer.splitlines()


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_and_option_exists(words):
    verb, rest = typer.main.get_command(app), iter(words)
    while hasattr(verb, "commands"):
        verb = verb.commands[next(rest)]
    assert {w for w in words if w.startswith("-")} <= {o for p in verb.params for o in p.opts}


def test_every_other_command_exists():
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [words[1] for words in COMMANDS if words[0] == "make"]
    assert set(made) | set(re.findall(r"`make ([a-z-]+)`", README)) <= set(targets)
    names = [w.removeprefix("NAME=") for words in COMMANDS for w in words if w.startswith("NAME=")]
    assert all((ROOT / f"benchmarks/{name}.py").is_file() for name in names)
    from wandb.cli.cli import cli

    assert {words[1] for words in COMMANDS if words[0] == "wandb"} <= set(cli.commands)


def test_every_file_that_is_named_exists():
    tops = {p.name for p in ROOT.iterdir()}
    named = [q for q in QUOTED if q.split("/")[0] in tops - {"outputs"} and re.fullmatch(r"[\w./-]+", q)]
    named += [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
    anchors = {re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


def test_every_key_that_is_named_exists(compose):
    known = set()
    for group in ("model", "data", "trainer", "logger"):
        for name in config.choices(group):
            known |= {key for key, _ in flat(compose(f"{group}={name}")[group], group)}
    named = {q.split("=")[0] for q in QUOTED if re.match(r"(model|data|trainer|logger)\.[a-z]", q)}
    assert len(named) > 5
    assert sorted(named - known) == []


def flat(node: DictConfig, prefix: str) -> list[tuple[str, object]]:
    items = [(f"{prefix}.{key}", None if OmegaConf.is_missing(node, key) else node[key]) for key in node]
    return items + [pair for key, value in items if isinstance(value, DictConfig) for pair in flat(value, key)]


def test_the_numbers_of_the_protocol_and_of_bench_v1_are_those_of_the_code(compose):
    from mri_synth.data.simulate import BENCH_V1
    from mri_synth.metrics.scores import PROTOCOLS

    text = " ".join(README.split())
    assert PROTOCOLS["ssim"] in " ".join(text.split())
    data = compose().data
    said = (f"{' / '.join(map(str, BENCH_V1.subjects))} subjects, {BENCH_V1.slices} axial slices each, "
            f"{data.size}x{data.size}, {data.contrasts[0]}, white-matter SNR {BENCH_V1.snr:g}, random deformations of "
            f"{BENCH_V1.deform_sd_mm:g} mm sd, bias field of {BENCH_V1.bias_percent:g} %")  # fmt: skip
    assert said in text
    low, high = data.intensity.percentiles
    assert f"at the {low:g}th percentile (white at the {high:g}th)" in text


def test_pictures_are_small_and_said_to_be_simulated():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(pictures) >= 3
    assert all((ROOT / p).stat().st_size < 300_000 for p in pictures)
    assert README.count("*SIMULATED") >= 2
    assert README.count("\n") <= 460


# -- slow: the commands for real, in a small form -------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compose):
    """The folder of a run that was started as the README says, with its default logger."""
    base = tmp_path_factory.mktemp("readme")
    words = [w for w in small_form(MADE["RUN"], compose) if w != "logger=csv"]
    done = subprocess.run([sys.executable, *TRAIN[1:], *words], cwd=base, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = (base / "outputs").iterdir()
    assert "report.html" in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def make(finished, tmp_path_factory, compose):
    """`make(NAME)`: the folder of the finished run which the README calls outputs/NAME, made when first asked for."""
    base = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished, base / "outputs/RUN")

    def call(name: str) -> Path:
        folder = base / "outputs" / name
        if not folder.exists():
            for other in named(MADE[name]):
                call(other)
            words = small_form(MADE[name], compose)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(base)
                run(compose(*words), folder, words)
        return folder

    return call


@pytest.fixture
def bring(make, tmp_path, monkeypatch):
    """`bring(words)`: the run folders that the words name lie below the working directory."""
    monkeypatch.chdir(tmp_path)

    def call(words: list[str]) -> None:
        for name in named(words):
            shutil.copytree(make(name), tmp_path / "outputs" / name)

    return call


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Small data sets at the paths that the README uses; returns the same words with these paths."""
    my = tmp_path / "my"
    layouts.oasis_png(my / "data/oasis")
    layouts.oasis_volumes(my / "volumes/oasis")
    layouts.ixi(my / "data/ixi")
    layouts.brats(my / "data/brats", cases=(1, 2, 3))
    layouts.bids(my / "bids")
    for n in range(1, 11):
        layouts.nifti(my / f"patients/p{n:02d}/FLAIR.nii.gz", n)
        layouts.nifti(my / f"patients/p{n:02d}/lesion_mask.nii.gz", array=layouts.tumour(n))
    layouts.pictures(my / "pictures", {"glioma": 60, "none": 60})
    for n in range(1, 6):
        layouts.dicom(my / f"dicom/patient{n:02d}/series1", f"P{n}", seed=n)
        for k in (1, 2):
            layouts.nifti(my / f"niftis/s{n:02d}_T{k}.nii.gz", 10 * n + k)
    rows = "".join(f"s{n:02d}_T{k}.nii.gz,p{n}\n" for n in range(1, 6) for k in (1, 2))
    layouts.text(my / "subjects.csv", "file,subject\n" + rows)

    def moved(words: list[str]) -> list[str]:
        volumes = "data=oasis" in words and "data.split.by=subject" in words
        monkeypatch.setenv("MRI_SYNTH_DATA", str(my / ("volumes" if volumes else "data")))
        return [re.sub("^/my/", f"{my}/", w.replace("=/my/", f"={my}/")) for w in words]

    return moved


def small_form(words: list[str], compose) -> list[str]:
    """A run of seconds; a resumed one keeps its own settings."""
    cfg = compose(*words)
    if cfg.resume:
        return [*words, "trainer.max_epochs=2"]
    # "inception" insists on its weights, which no test fetches; "auto" goes on with the next where they are not here
    words = [w.replace("features=[inception,", "features=[auto,") for w in words]
    small = [*SMALL, *SMALL_MODEL[cfg.model._target_.split(".")[-2]]]
    small += ["data.subjects=[3,2,2]"] if "Phantom" in cfg.data._target_ else []
    return [*words, *small, *([] if "logger=csv" in words else ["logger=csv"])]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [w for w in RUNS if not sweeps(w) and not any(map(ONLY_CHECKED.match, w))], ids=" ".join
)
def test_every_run_runs(words, bring, data, tmp_path, compose):
    bring(words)
    words = small_form(data(words), compose)
    folder = tmp_path / "new"
    cfg = compose(*words)
    value = run(cfg, folder, words)
    if cfg.task in ("check", "plan"):
        assert value is None
        assert not folder.exists()
        return
    folder = Path(cfg.resume or folder)
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    model = load_model(Path(cfg.ckpt) if cfg.task == "test" else folder / "best.ckpt")
    monitored = model.monitor[0]
    asked = monitored.replace("val/", "test/") if cfg.task == "test" else f"best/{monitored}"
    assert value == pytest.approx(results["metrics"][asked])
    assert results["generation"].get("samples") == (8 if model.samples() else None)
    judged = "outputs/ENCODER" in " ".join(words)
    assert ("kid" in results["generation"]) == (folder / "pictures/nearest.png").exists() == judged


@pytest.mark.slow
@pytest.mark.parametrize("words", [w for w in RUNS if sweeps(w) and not any(map(ONLY_CHECKED.match, w))], ids=" ".join)
def test_every_experiment_that_is_a_sweep_ends_with_its_table(words, tmp_path, compose):
    searched = "n_trials" in compose(*words, return_hydra_config=True).hydra.sweeper
    words = [*small_form(words, compose), *(["hydra.sweeper.n_trials=2"] if searched else [])]
    done = subprocess.run([sys.executable, *TRAIN[1:], *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs/sweeps").iterdir()
    with (sweep / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (2 if searched else 3)
    assert all(float(row["test/elbo"]) for row in rows)
    assert (sweep / "table.html").stat().st_size > 500


@pytest.mark.slow
def test_the_run_folder_holds_what_is_said_and_nothing_else(finished, make):
    table = README.partition("| file | what |")[2].partition("\n\n")[0]
    said = {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)}
    assert {p.name for p in finished.iterdir() if not p.name.startswith(".")} == said
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_vqvae_phantom_s0", finished.name)
    (row,) = (line for line in table.splitlines() if line.startswith("| `pictures/`"))
    pictures = set()
    for name in MADE:
        assert {p.name for p in make(name).iterdir() if not p.name.startswith(".")} <= said
        pictures |= {p.name for p in (make(name) / "pictures").iterdir() if not p.name.startswith("epoch_")}
    assert pictures | {"nearest.png"} == set(re.findall(r"`(\w+\.png)`", row)), "nearest.png: where samples are judged"


@pytest.mark.slow
@pytest.mark.parametrize("words", [w for w in VERBS if not FETCHED.intersection(w)], ids=" ".join)
def test_every_verb_runs(words, bring, data, tmp_path):
    bring(words)
    if words[0] == "leaderboard":
        bring(["outputs/RUN", "outputs/VAE"])
    for name in ("sub-01_T1w", "patient", "real_T2"):
        layouts.nifti(tmp_path / f"{name}.nii.gz", 5)
    for name in ("my/real", "my/train", "brains") if words[0] == "evaluate" else ():
        layouts.pictures(tmp_path / name, {".": 12})
    small = {"describe": ["data.size=32"], "sample": ["-n", "4"], "imagine": ["--steps", "2"],
             "evaluate": ["--features", "pixels", "-n", "8"]}.get(words[0], [])  # fmt: skip
    words = data(words)
    done = CliRunner().invoke(app, [*words, *small], catch_exceptions=False)
    assert done.exit_code in ((0, 1) if words[0] == "doctor" else (0,)), done.output  # noise is not in good health
    if words[0] == "sample":
        made = {p.name for p in (tmp_path / words[words.index("-o") + 1]).iterdir()}
        first = int(words[words.index("--seed") + 1]) if "--seed" in words else 0
        ending = "nii.gz" if "nifti" in words else "png"
        looks = {"--interpolate": "interpolation.png", "--truncate": "truncation.png", "--walk": "walk.gif"}
        looks = {name for option, name in looks.items() if option in words}
        beside = looks | {"latent.json"} if looks else set()
        beside |= {"walk.mp4"} if "--walk" in words else set()
        samples = {f"sample_{first + i:06d}.{ending}" for i in range(4)} | {"sheet_000.png", "samples.json"}
        assert made == samples | beside
    elif "-o" in words:
        written = [words[words.index("-o") + 1]]
        written += ["rec_residual.nii.gz", "rec_score.nii.gz"] if "--residual" in words else []
        assert all((tmp_path / name).stat().st_size > 500 for name in written)


# -- the code blocks, as modules of their own -----------------------------------------------------------------------

IMPORTS = """from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from annotated_types import Ge
from torch import Tensor
from torch.optim import Optimizer
from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.scan import Scan
from mri_synth.losses.reconstruction import l1
from mri_synth.models.base import SynthModule
from mri_synth.networks.autoencoder import Decoder, Encoder

"""


@pytest.mark.slow
def test_the_method_and_the_data_set_of_the_readme_work(tmp_path, compose, monkeypatch):
    from mri_synth.models.checkpoint import load_model

    method, data_set = blocks("python")
    (tmp_path / "readme_method.py").write_text(IMPORTS + method)
    (tmp_path / "readme_data.py").write_text(IMPORTS + data_set)
    monkeypatch.syspath_prepend(tmp_path)
    for n in range(1, 6):
        layouts.nifti(tmp_path / f"mri/s{n}_T1.nii.gz", n)
    cfg = compose("logger=csv", *(w for w in SMALL if not w.startswith("data.")), "trainer.max_epochs=2")
    cfg.model = OmegaConf.create({"_target_": "readme_method.Autoencoder", "width": 8, "lr": 1e-3})
    cfg.data = OmegaConf.create({"_target_": "readme_data.Study", "root": str(tmp_path / "mri"), "size": 32})
    OmegaConf.set_struct(cfg, False)
    assert run(cfg, tmp_path / "run", []) == pytest.approx(
        json.loads((tmp_path / "run/results.json").read_text())["metrics"]["best/val/ssim"]
    )
    page = (tmp_path / "run/report.html").read_text()
    assert "Mean absolute difference of pixel intensities" in page
    assert type(load_model(tmp_path / "run/best.ckpt")).__name__ == "Autoencoder"
    assert len({r.split(",")[1] for r in (tmp_path / "run/split.csv").read_text().splitlines()[1:]}) == 5
