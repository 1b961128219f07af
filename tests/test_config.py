"""The configuration: all that ships passes, every mistake is named, and nothing is built for it."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Len
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from mri_synth import config, weights
from mri_synth.allowed import allowed, fits, nearest, settings_of, show
from mri_synth.errors import ConfigError, UserError
from mri_synth.overrides import admit_unknown

Compose = Callable[..., DictConfig]
CONF = Path(__file__).parents[1] / "conf"
MODELS, DATA, TRAINERS, LOGGERS = (config.choices(g) for g in config.GROUPS)
EXPERIMENTS = config.choices("experiment")
FIRST = {"model": MODELS[0], "data": "phantom", "trainer": "auto", "logger": "csv"}


def offered(compose: Compose, *overrides: str) -> str:
    """What `check` says of a composition that a command line would make; "" when it passes."""
    try:
        config.check(compose(admit_unknown(overrides)))
    except ConfigError as error:
        return str(error)
    return ""


# -- what ships --------------------------------------------------------------------------------------------------------


def stage(compose: Compose, *words: str) -> list[str]:
    """The files of other runs that a method wants; the check does not open them."""
    given = compose(*words).model
    wanted = ["first_stage"] if "first_stage" in given else ["generator", "weights"] if "prompts" in given else []
    wanted += [f"generators.{name}" for name in given.get("generators") or {}]
    return [f"model.{key}={__file__}" for key in wanted]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_with_every_data_set_is_right_or_says_why_not(model: str, compose: Compose) -> None:
    for data in DATA:
        said = offered(compose, f"model={model}", f"data={data}", *stage(compose, f"model={model}"))
        assert not said or re.search(rf"^  1\. model={model} needs .*(try|choose|data\.)", said, re.M), said
    assert not offered(
        compose, f"model={model}", *stage(compose, f"model={model}")
    )  # the default data set serves every model


@pytest.mark.parametrize("trainer, logger", list(itertools.product(TRAINERS, LOGGERS)))
def test_every_trainer_with_every_logger(trainer: str, logger: str, compose: Compose) -> None:
    assert not offered(compose, f"trainer={trainer}", f"logger={logger}")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment(experiment: str, compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "resolve", lambda name: Path(name))  # as where they are
    assert not offered(compose, f"experiment={experiment}", *stage(compose, f"experiment={experiment}"))


@pytest.mark.parametrize("group, name", [(g, n) for g in config.GROUPS for n in config.choices(g)])
def test_yaml_has_every_argument_and_nothing_else(group: str, name: str, compose: Compose) -> None:
    section = compose(f"{group}={name}")[group]
    target = get_object(section._target_)
    assert differences(group, OmegaConf.to_container(section), target) == []


def differences(place: str, section: Any, target: Any) -> list[str]:
    given = set(section) - {"_target_"}
    taken = set(inspect.signature(target).parameters) - config.PROVIDED
    found = [f"{place}.{key}" for key in given ^ taken]
    hints = config._hints(target)
    for key in given & taken:
        if isinstance(section[key], dict) and settings_of(hints[key]):
            found += differences(f"{place}.{key}", section[key], settings_of(hints[key]))
    return found


def test_differences_are_seen_both_ways() -> None:
    @dataclasses.dataclass
    class Target:
        kept: int = 1
        absent: int = 2

    assert sorted(differences("x", {"_target_": "", "kept": 1, "more": 2}, Target)) == ["x.absent", "x.more"]


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_key_has_a_comment(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# "), "a YAML says in its first line what it is"
    if path.parent.name == "model" or "defaults:" not in path.read_text():  # others override what auto.yaml explains
        keys = [line for line in lines if re.match(r" *\w+:", line) and not line.startswith(("_target_:", "defaults:"))]
        assert [line for line in keys if "# " not in line] == []


def test_the_target_of_a_name_can_be_guessed() -> None:
    for group, package in (("model", "models"), ("data", "data")):
        for name in config.choices(group):
            target = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())["_target_"]
            assert target.startswith(f"mri_synth.{package}.{name}.")


# -- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = [
    # keys
    ("sed=3", r"unknown key sed; did you mean seed\?"),
    ("modle=vqvae", r"unknown key modle; did you mean model\?"),
    ("lr=0.1", r"unknown key lr; did you mean model\.lr\?"),
    ("zzz=1", r"unknown key zzz; known: seed, task, resume"),
    ("model.codebok_size=3", r"unknown key model\.codebok_size; did you mean model\.codebook_size\?"),
    ("+model.foo=1", r"unknown key model\.foo; known: hidden_channels, .*lr_final"),
    ("model.batch_size=4", r"unknown key model\.batch_size; did you mean data\.batch_size\?"),
    ("data.split.bye=subject", r"unknown key data\.split\.bye; did you mean data\.split\.by\?"),
    ("+data.augment.zoom=0.1", r"unknown key data\.augment\.zoom; known: flip, rotate_deg"),
    ("trainer.max_epoch=3", r"unknown key trainer\.max_epoch; did you mean trainer\.max_epochs\?"),
    ("logger=wandb logger.projekt=x", r"unknown key logger\.projekt; did you mean logger\.project\?"),
    ("logger=csv logger.project=x", r"unknown key logger\.project; it takes none$"),
    # choices of a group
    ("model=vqvea", r"model=vqvea: no such choice; did you mean vqvae\? \(there is: .*vqvae"),
    ("data=phantm", r"data=phantm: no such choice; did you mean phantom\? \(there is: brats, folder"),
    ("trainer=zzz", r"trainer=zzz: no such choice; there is: auto, cpu, ddp, gpu, smoke"),
    ("logger=tensorboard", r"logger=tensorboard: no such choice; there is: csv, wandb"),
    ("experiment=seed_9999", r"experiment=seed_9999: no such choice; "),
    ("experiment=null", r"experiment=null: no such choice; there is: "),
    ("model=null", r"model=null: no such choice; there is: "),
    ("model=???", r"model=\?\?\?: no such choice; there is: "),
    ("logger=null", r"logger=null: no such choice; there is: csv, wandb"),
    # types
    ("model.lr=abc", r"model\.lr=abc: allowed: a number above 0$"),
    ("model.lr=true", r"model\.lr=true: allowed: a number above 0$"),
    ("model.lr=null", r"model\.lr=null: allowed: a number above 0$"),
    ("model.lr=nan", r"model\.lr=nan: allowed: a number"),
    ("model.lr=inf", r"model\.lr=inf: allowed: a number"),
    ("model.codebook_size='64'", r"model\.codebook_size='64': allowed: a whole number of at least 2"),
    ("model.codebook_size=2.5", r"model\.codebook_size=2\.5: allowed: a whole number"),
    ("model.codebook_size=true", r"model\.codebook_size=true: allowed: a whole number"),
    ("model.kmeans_init=1", r"model\.kmeans_init=1: allowed: true or false"),
    ("model.kmeans_init=yes", r"model\.kmeans_init=yes: allowed: true or false"),
    ("data.root=3", r"data\.root=3: allowed: a text or null"),
    ("data.contrasts=T1", r"data\.contrasts=T1: allowed: a list of words, such as \[a,b\]"),
    ("data.split=3", r"data\.split=3: allowed: the keys by, fractions, seed"),
    ("data=folder data.contrast_names=3", r"contrast_names=3: allowed: pairs such as \{name: value\} or null"),
    ("seed=abc", r"seed=abc: allowed: a whole number from 0 to 4294967295"),
    ("seed=null", r"seed=null: allowed: a whole number from 0"),
    # ranges and lengths
    ("seed=-1", r"seed=-1: allowed: a whole number from 0 to 4294967295"),
    ("data.batch_size=0", r"data\.batch_size=0: allowed: a whole number above 0"),
    ("data.size=3", r"data\.size=3: allowed: a whole number from 4 to 2048"),
    ("model.lr=-1", r"model\.lr=-1: allowed: a number above 0"),
    ("model.decay=1", r"model\.decay=1: allowed: a number of at least 0 and below 1"),
    ("trainer.max_epochs=0", r"trainer\.max_epochs=0: allowed: a whole number of at least 1"),
    ("trainer.limit_val_batches=2.0", r"allowed: a whole number of at least 1 or a number above 0 and at most 1"),
    ("trainer.devices=0", r"trainer\.devices=0: allowed: auto or a whole number of at least 1"),
    ("data.split.block_size=0", r"data\.split\.block_size=0: allowed: a whole number of at least 1"),
    ("data.augment.flip=1.5", r"data\.augment\.flip=1\.5: allowed: a number from 0 to 1"),
    ("data.spacing_mm=0", r"data\.spacing_mm=0: allowed: a number of at least 0\.05 or null"),
    ("model.betas=[0.9]", r"model\.betas=\[0\.9\]: allowed: a list of 2 numbers"),
    ("model.betas=[0.9,x]", r"model\.betas=\[0\.9,x\]: allowed: a list of 2 numbers"),
    ("data.subjects=[8,2]", r"data\.subjects=\[8,2\]: allowed: a list of 3 whole numbers of at least 0"),
    ("data.subjects=[8,2,-1]", r"data\.subjects=\[8,2,-1\]: allowed: a list of 3 whole numbers of at least 0"),
    ("data.split.fractions=[0.5,0.1]", r"data\.split\.fractions=\[0\.5, 0\.1\]: allowed: three shares.* sum to 1"),
    ("data.split.fractions=[0.8,0.1,0.2]", r"data\.split\.fractions=.*: allowed: three shares"),
    ("data.intensity.percentiles=[99,1]", r"data\.intensity\.percentiles=\[99, 1\]: allowed: two increasing numbers"),
    ("data.intensity.range=[9,9]", r"data\.intensity\.range=\[9, 9\]: allowed: two increasing numbers"),
    ("data.intensity.method=fixed", r"method=fixed: data\.intensity\.range is missing.*range=\[0,255\]"),
    ("data.slices.start=9 data.slices.stop=2", r"data\.slices\.start=9: lies behind data\.slices\.stop=2"),
    # choices of a value
    ("model.norm=batch", r"model\.norm=batch: allowed: none or group$"),
    ("model.norm=grop", r"model\.norm=grop: allowed: none or group; did you mean group\?"),
    ("model.downsample=3", r"model\.downsample=3: allowed: 2, 4, 8 or 16"),
    ("trainer.precision=bf16", r"trainer\.precision=bf16: allowed: auto, .*; did you mean bf16-mixed\?"),
    ("data.split.on_leak=warn", r"data\.split\.on_leak=warn: allowed: error or drop"),
    ("task=fti", r"task=fti: allowed: fit, test, check or plan; did you mean fit\?"),
    # missing
    ("model.lr=???", r"model\.lr is missing: give model\.lr=VALUE; allowed: a number above 0"),
    ("data.split.by=???", r"data\.split\.by is missing: give data\.split\.by=VALUE; allowed: subject, block or given"),
    ("task=test", r"task=test: ckpt is missing: say which checkpoint, such as ckpt=outputs/<run>/best\.ckpt"),
    ("ckpt=no.ckpt", r"ckpt=no\.ckpt: no such file; give a checkpoint such as outputs/<run>/best\.ckpt"),
    ("ckpt=/", r"ckpt=/: a folder; did you mean ckpt=/best\.ckpt\?"),
    ("init_from=no.ckpt", r"init_from=no\.ckpt: no such file"),
    # targets
    ("model._target_=mri_synth.models.vqvae.VQVEA", r"there is no VQVEA in .*; did you mean .*VQVAE\?"),
    ("model._target_=nowhere.X", r"model\._target_=nowhere\.X: cannot be imported \(No module named 'nowhere'\); ch"),
    ("model._target_=VQVAE", r"model\._target_=VQVAE: there is no VQVAE"),
    ("model._target_=torch.nn.Linear", r"not a subclass of .*base\.SynthModule; choose mod"),
    ("data._target_=builtins.dict", r"not a subclass of mri_synth\.data\.base\.MRIDataModule"),
    ("model._target_=null", r"model\._target_=null: choose model=NAME; there is: "),
    # what belongs together
    ("data.contrasts=[T1,T1]", r"data\.contrasts=\[T1,T1\]: T1 more than once"),
    ("data.contrasts=[T1,T9]", r"=\[T1,T9\]: T9 cannot be simulated; data=phantom has T1, T2, PD, FLAIR"),
    ("data.contrasts=[]", r"data\.contrasts=\[\]: at least one is needed"),
    ("data.snr=10", r"data\.snr=10: it is 30\.0 in bench-v1, and bench-v1 is frozen; use data\.preset=custom"),
    ("data.subjects=[300,2,2]", r"bench-v1 has \[200, 20, 40\], fewer may be taken but not more"),
    # words
    ("vqvae", r"vqvae: not of the form key=value, such as model=vqvae"),
    ("data.contrasts=[T1,T2", r"data\.contrasts=\[T1,T2: cannot be read \(.*\); in a shell, put quotes round it"),
]  # fmt: skip


@pytest.mark.parametrize("words, message", MISTAKES, ids=[words for words, _ in MISTAKES])
def test_mistake(words: str, message: str, compose: Compose) -> None:
    with pytest.raises(ConfigError, match=r"nothing was built or opened:\n  1\. ") as caught:
        config.check(compose(admit_unknown(words.split())))
    assert re.search(message, caught.value.problems[0]), caught.value.problems[0]
    assert len(caught.value.problems) == 1


def test_several_mistakes_are_listed_at_once(compose: Compose) -> None:
    said = offered(compose, "seed=-1", "model.lr=abc", "data.split.bye=1", "trainer.max_epochs=0", "foo=1", "task=go")
    assert said.startswith("6 mistakes in the configuration")
    for part in ("seed=-1", "model.lr=abc", "data.split.bye", "trainer.max_epochs=0", "unknown key foo", "task=go"):
        assert part in said


def test_a_misspelt_choice_does_not_hide_the_other_mistakes(compose: Compose) -> None:
    said = offered(compose, "model=vqvea", "data.batch_size=0", "seed=-1", "model.of_no_known_model=3", "word")
    assert [re.sub(r"^ +\d\. ([\w.]+).*", r"\1", line) for line in said.splitlines()[1:]] == [
        "word", "model", "seed", "data.batch_size"]  # fmt: skip


@pytest.mark.parametrize("words", ["seed=0", "data.workers=0", "model.revive_below=0", "data.root=null", "ckpt=null",
                                   "trainer.gradient_clip=1", "trainer.devices=2", "model.betas=[0,0.9]",
                                   "trainer.limit_val_batches=3", "data.subjects=[8,2,2]",
                                   "data.preset=custom data.snr=10", "data=folder data.root='3'"])  # fmt: skip
def test_what_only_looks_like_a_mistake(words: str, compose: Compose) -> None:
    assert offered(compose, *words.split()) == ""


def test_seed_zero_is_a_seed(compose: Compose) -> None:
    assert compose("seed=0").seed == 0
    assert compose().seed == 0


def test_a_model_that_needs_what_the_data_do_not_offer(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    from mri_synth.data.views import Labelled, Pairs
    from mri_synth.models.vqvae import VQVAE

    monkeypatch.setattr(VQVAE, "needs", staticmethod(lambda: Pairs))
    message = (
        r"model=vqvae needs pairs: two contrasts or more, such as data\.contrasts=\[T1,T2\], or data\.source=mask or "
        r"derived; it is data\.contrasts=\[T1\]"
    )
    assert re.search(message, offered(compose, "data=phantom"))
    assert not offered(compose, "data=phantom", "data.contrasts=[T1,T2]")
    assert not offered(compose, "data=phantom", "data.source=mask")
    monkeypatch.setattr(VQVAE, "needs", staticmethod(lambda: Labelled))
    assert "needs labelled images, and this data has no classes" in offered(compose, "data.lesions=none")
    assert not offered(compose, "data.lesions=half")


def test_needs_may_depend_on_arguments() -> None:
    assert config.called(lambda sources, mask: (sources, mask), {"mask": 1, "sources": 2, "lr": 3}) == (2, 1)


# -- nothing is built --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_constructors(monkeypatch: pytest.MonkeyPatch) -> None:
    from mri_synth.data.base import MRIDataModule
    from mri_synth.models.base import SynthModule

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was built")

    monkeypatch.setattr(MRIDataModule, "__post_init__", fail)
    monkeypatch.setattr(MRIDataModule, "scans", fail)
    monkeypatch.setattr(SynthModule, "__init__", fail)


@pytest.mark.usefixtures("no_constructors")
def test_a_mistake_builds_nothing_and_leaves_no_folder(compose: Compose, tmp_path: Path) -> None:
    from mri_synth.run import run

    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "run.log").touch()
    with pytest.raises(ConfigError, match=r"unknown key model\.codebok_size"):
        run(compose("+model.codebok_size=3"), folder, [])
    assert not folder.exists()


@pytest.mark.usefixtures("no_constructors")
def test_task_check_opens_no_data_and_leaves_no_folder(compose: Compose, tmp_path: Path) -> None:
    from mri_synth.run import run

    folder = tmp_path / "outputs/sweeps/today/0_seed-1"
    (folder / ".hydra").mkdir(parents=True)
    (folder.parent / "multirun.yaml").touch()
    assert run(compose("task=check", "data=ixi", "data.root=/nowhere"), folder, []) is None
    assert not folder.parent.exists()


def test_a_folder_with_results_is_never_discarded(tmp_path: Path) -> None:
    from mri_synth.outputs import discard_unused

    (tmp_path / "run/.hydra").mkdir(parents=True)
    (tmp_path / "run/last.ckpt").touch()
    discard_unused(tmp_path / "run", True)
    assert (tmp_path / "run/last.ckpt").exists()


def test_resume_of_no_run(compose: Compose, tmp_path: Path) -> None:
    from mri_synth.run import run

    gone = tmp_path / "gone"
    (gone / ".hydra").mkdir(parents=True)  # Hydra makes the folder
    with pytest.raises(
        UserError, match=r"resume=.*gone: not a run folder \(no config\.yaml\); give one such as outputs/"
    ):
        run(compose(f"resume={gone}"), gone, [])
    assert not gone.exists()
    early = tmp_path / "early"
    early.mkdir()
    (early / "config.yaml").write_text("seed: 0")
    with pytest.raises(UserError, match=r"resume=.*early: it was stopped before its first checkpoint; start it anew"):
        run(compose(f"resume={early}"), early, [])
    (early / "last.ckpt").touch()
    with pytest.raises(
        UserError, match=r"model=vqvae: a resumed run keeps its own; change single values, such as train"
    ):
        run(compose(f"resume={early}"), early, [f"resume={early}", "model=vqvae"])


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    return subprocess.run([sys.executable, "-m", "mri_synth.run", *words], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip


@pytest.mark.slow
def test_the_command_ends_with_status_2_and_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command(tmp_path, "model.codebok_size=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().splitlines() == [
        "1 mistake in the configuration; nothing was built or opened:",
        "  1. unknown key model.codebok_size; did you mean model.codebook_size?",
    ]
    assert not list(tmp_path.glob("outputs/*"))
    for words, message in (
        (
            ["hydra.run.dir=file/x"],
            r"cannot write the run folder file/x: Not a directory; give another by hydra\.run\.dir=",
        ),
        (["resume=nothing"], r"resume=nothing: not a run folder"),
        (["hydra.run.dirr=x"], r"Could not override 'hydra\.run\.dirr'"),
    ):
        done = command(tmp_path, *words)
        assert done.returncode == 2
        assert re.search(message, done.stderr)
        assert "Traceback" not in done.stderr
        assert sorted(p.name for p in tmp_path.iterdir() if p.name != "outputs") == ["file"]


@pytest.mark.slow
def test_a_mistake_in_one_job_of_a_sweep_lets_the_others_go_on(tmp_path: Path) -> None:
    done = command(tmp_path, "-m", "model.codebook_size=abc,64", "task=check")
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "model.codebook_size=abc: allowed: a whole number of at least 2" in said
    assert "the configuration is right: model=vqvae data=phantom" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("outputs/sweeps/*"))


def test_unknown_keys_of_a_sweep_are_admitted_too(compose: Compose) -> None:
    assert admit_unknown(["-m", "model.codebok_size=1,2", "seed=1,2"]) == ["-m", "+model.codebok_size=1,2", "seed=1,2"]
    with pytest.raises(ConfigError, match=r"model=vqvea: no such choice; did you mean vqvae\?"):
        admit_unknown(["-m", "model=vqvae,vqvea", "seed=1,2"])


# -- words for annotations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hint, words, good, bad", [
    (int, "a whole number", [0, -3], [1.0, True, "1", None]),
    (float, "a number", [0, -3.5, 10**9], [True, "1", None, float("nan"), float("-inf")]),
    (bool, "true or false", [True], [1, "true", None]),
    (str, "a text", ["", "a"], [1, None]),
    (Path, "a path", ["a/b"], [3]),
    (str | None, "a text or null", ["a", None], [1]),
    (Literal["a", "b", 3], "a, b or 3", ["a", 3], ["c", "3"]),
    (Annotated[int, Ge(1), Le(5)], "a whole number from 1 to 5", [1, 5], [0, 6, 2.0]),
    (Annotated[float, Gt(0), Le(1)], "a number above 0 and at most 1", [1, 0.5], [0, 1.1]),
    (list[int], "a list of whole numbers", [[], [1]], [[1.5], 1, ["a"]]),
    (tuple[float, float], "a list of 2 numbers", [[1, 2.5]], [[1], [1, 2, 3], "ab"]),
    (tuple[str, ...], "a list of words, such as [a,b]", [[], ["a", "b"]], [[1]]),
    (Annotated[list[Annotated[int, Ge(0)]], Len(3, 3)], "a list of 3 whole numbers of at least 0", [[0, 1, 2]],
     [[0, 1], [0, 1, -1]]),
    (dict[str, str], "pairs such as {name: value}", [{"a": "b"}], [["a"], {"a": 1}]),
])  # fmt: skip
def test_annotations(hint: Any, words: str, good: list[Any], bad: list[Any]) -> None:
    assert allowed(hint) == words
    assert [v for v in good if not fits(v, hint)] == []
    assert [v for v in bad if fits(v, hint)] == []


def test_values_as_they_are_typed() -> None:
    assert show([None, True, 1, 2.5, "a", "3", "", {"b": None}]) == "[null,true,1,2.5,a,'3','',{b: null}]"
    assert nearest("T1CE", ["T1", "T1ce", "T2"]) == "T1ce"
    assert nearest("zzz", ["T1"]) is None
