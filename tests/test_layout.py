"""The house: what a wing may import, and what the package says that it holds and needs."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sparsefield"
# Each wing may import those of lower floors, and none beside it.
FLOORS = {"gaussian": 0, "data": 0, "scan": 0, "flow": 1, "model": 2, "evaluate": 3, "train": 4,
          "use": 4}
GROUND = {"errors", "place", "device", "hashed", "progress"}  # every wing stands on these
COMMAND_LINE = {"cli", "commands"}  # ... and these are for what is a command
COMMANDS = ("train_mamba", "train_mamba_v2", "eval_v1_vs_v2", "eval_sde_multiscale", "reconstruct")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def parts_of_ours(path: Path) -> set[str]:
    """{"gaussian", "errors", ...}: first level below the package of what a file imports."""
    names = (name.split(".") for name in imported(path))
    there = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    return {name[1] for name in names
            if name[0] == "sparsefield" and len(name) > 1 and name[1] in there}


def test_linting_forbids_a_zip_that_ends_with_the_shorter():
    """Such a one left a method out of a chart."""
    rules = PROJECT["tool"]["ruff"]["lint"]
    assert "B" in rules["select"] and "per-file-ignores" not in rules
    assert not [rule for rule in rules["ignore"] if rule.startswith("B")]


@pytest.mark.parametrize("wing", FLOORS)
def test_a_wing_imports_only_wings_below_it(wing):
    below = {other for other, floor in FLOORS.items() if floor < FLOORS[wing]}
    allowed = {wing, *below, *GROUND, *({"cli"} if wing == "train" else ())}
    for path in (PACKAGE / wing).rglob("*.py"):
        assert parts_of_ours(path) <= allowed, path
        assert not {name.split(".")[0] for name in imported(path)} & set(COMMANDS), path


def test_flow_and_gaussian_know_nothing_of_data():
    for wing in ("flow", "gaussian", "scan"):
        for path in (PACKAGE / wing).rglob("*.py"):
            assert "data" not in parts_of_ours(path), path


def test_every_folder_is_a_wing_and_the_ground_stands_alone():
    wings = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert wings == set(FLOORS)
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert files == GROUND | COMMAND_LINE
    for name in GROUND:
        assert parts_of_ours(PACKAGE / f"{name}.py") <= {"errors"}


def test_the_package_holds_every_wing_and_command():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == {"sparsefield", *(f"sparsefield.{wing}" for wing in FLOORS),
                      *(f"sparsefield.weights_{name}" for name in ("v1", "v2", "fields"))}
    assert set(PROJECT["tool"]["setuptools"]["py-modules"]) == set(COMMANDS)
    shipped = {ROOT / package.replace(".", "/") / name for package, names
               in PROJECT["tool"]["setuptools"]["package-data"].items() for name in names}
    assert set(PACKAGE.rglob("*.html")) <= shipped
    for target in PROJECT["project"]["scripts"].values():
        module, name = target.split(":")
        assert callable(getattr(import_module(module), name))


def test_what_is_imported_is_declared():
    def bare(requirement: str) -> str:
        return re.split(r"[<>=!~;\[ ]", requirement)[0].lower().replace("_", "-")

    project = PROJECT["project"]
    declared = {bare(line) for line in project["dependencies"]}
    extras = {bare(line) for lines in project["optional-dependencies"].values() for line in lines}
    pinned = {bare(line) for line in (ROOT / "requirements.txt").read_text().splitlines()
              if line and line[0] not in "#-"}
    assert declared == pinned
    standard = import_module("sys").stdlib_module_names
    known = packages_distributions()
    files = [*PACKAGE.rglob("*.py"), *(ROOT / f"{name}.py" for name in COMMANDS)]
    for path in files:
        for name in {name.split(".")[0] for name in imported(path)} - set(standard):
            if name in ("sparsefield", *COMMANDS) or name not in known:
                continue
            assert {bare(found) for found in known[name]} & (declared | extras), f"{path}: {name}"
