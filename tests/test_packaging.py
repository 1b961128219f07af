"""What a fresh machine depends on: light imports, a wheel that carries its config, pins that fit, files that agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mri_synth

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIGHT = ["mri_synth", *(f"mri_synth.{n}" for n in ("errors", "data.scan", "data.settings", "config", "cli", "weights"))]

# All are tried in one process; each line of output is a module and whatever heavy was loaded by then.
IMPORT_ALL = """
import importlib, sys
heavy = {"torch", "lightning", "monai", "torchmetrics", "wandb", "matplotlib", "nilearn"}
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name, *sorted(heavy & set(sys.modules)))
"""


def run(*command: str) -> str:
    """Standard output of a command run in the checkout; its standard error where it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def requirements(lines: list[str]) -> list[Requirement]:
    """Parsed requirements, with `mri-synth[extra, ...]` replaced by what those extras ask for."""
    found: list[Requirement] = []
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                found += requirements(PROJECT["optional-dependencies"][extra])
        else:
            found.append(requirement)
    return found


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert run(sys.executable, "-c", IMPORT_ALL, *LIGHT).splitlines() == LIGHT


def test_the_verbs_run_as_a_module_too() -> None:
    assert "reconstruct" in run(sys.executable, "-m", "mri_synth.cli", "--help")


@pytest.mark.slow
def test_wheel_carries_the_config_and_no_data(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "-qq")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT))
    stem = f"mri_synth-{mri_synth.__version__}"
    with zipfile.ZipFile(tmp_path / f"{stem}-py3-none-any.whl") as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"{stem}.dist-info/entry_points.txt").decode()
    assert "mri-synth = mri_synth.cli:main" in entry_points
    configs = {f"mri_synth/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert "mri_synth/conf/run.yaml" in configs
    assert configs <= names
    assert f"{stem}.dist-info/licenses/LICENSE" in names
    assert {Path(name).parts[0] for name in names} == {"mri_synth", f"{stem}.dist-info"}
    kinds = {Path(name).suffix for name in names if name.startswith("mri_synth/") and Path(name).name != "py.typed"}
    assert kinds == {".py", ".yaml", ".csv"}
    tables = {name.rpartition("/")[0] for name in names if name.endswith(".csv")}
    assert tables == {"mri_synth/data/presets"}, "lists of names: which files are a pair"


def test_every_requirement_is_pinned_within_its_range(pins: dict[str, Version]) -> None:
    wanted = requirements([*PROJECT["dependencies"], "mri-synth[dev]"])
    assert {"torch", "pydicom", "xlrd", "pytest"} <= {r.name for r in wanted}
    assert [r.name for r in wanted if canonicalize_name(r.name) not in pins] == []
    assert [str(r) for r in wanted if pins[canonicalize_name(r.name)] not in r.specifier] == []


def test_pins_hold_for_every_build_of_torch_and_leave_torchvision_out(pins: dict[str, Version]) -> None:
    """A local suffix (+cpu) exists on one index only; torchvision's wheel breaks lightning beside the CPU build."""
    assert [name for name, version in pins.items() if version.local] == []
    assert pins["torch"] == Version("2.13.0")
    assert "torchvision" not in pins


def test_changelog_and_citation_name_the_version_and_the_licence() -> None:
    top = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert top is not None
    assert top[1] == mri_synth.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == mri_synth.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]


def test_make_alone_lists_every_target() -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"help", "setup", "run", "test", "test-fast", "lint", "bench", "clean"} <= set(targets)
    listed = run("make", "--no-print-directory").splitlines()
    assert [line.split()[:2] for line in listed] == [["make", target] for target in targets]
    assert all(len(line.split()) > 2 for line in listed)


def dataclasses() -> Iterator[tuple[str, ast.ClassDef]]:
    """Every dataclass of the package, found in the source: nothing is imported."""
    for path in sorted((ROOT / "mri_synth").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                yield f"{path.relative_to(ROOT)}: {node.name}", node


def documented_attributes(node: ast.ClassDef) -> list[str]:
    """Names under "Attributes:" in a class docstring."""
    section = re.search(r"^Attributes:\n((?: {4}.*\n?|\n)+)", ast.get_docstring(node) or "", flags=re.MULTILINE)
    return re.findall(r"^ {4}(\w+)(?: \(.*?\))?:", section[1], flags=re.MULTILINE) if section else []


def test_dataclasses_document_the_fields_they_have() -> None:
    wrong = {}
    for name, node in dataclasses():
        annotated = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        fields = [ast.unparse(n.target) for n in annotated if "ClassVar" not in ast.unparse(n.annotation)]
        fields = [field for field in fields if not field.startswith("_")]
        documented = documented_attributes(node)
        if documented and documented != fields:
            wrong[name] = {"missing": set(fields) - set(documented), "unknown": set(documented) - set(fields)}
    assert wrong == {}
