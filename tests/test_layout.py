"""The five rules that keep a repository of component roots sound."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import grimp
import pytest

ROOT = Path(__file__).parent.parent
COMPONENTS = {
    "core": "seatrial",
    **{name: f"seatrial_{name}" for name in ("models", "monitoring", "training", "serving", "export", "promotion")},
}
HEAVY = {"torch", "mlflow", "lightning", "pydantic", "onnxruntime", "fastapi", "grpc"}


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", pattern],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]


# Rule 1


def test_no_component_root_is_a_package() -> None:
    assert [
        str(root) for root in (ROOT, *(ROOT / name for name in COMPONENTS)) if (root / "__init__.py").exists()
    ] == []


def test_each_component_root_holds_exactly_its_package_and_a_readme() -> None:
    for folder, package in COMPONENTS.items():
        packages = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
        assert packages == {package}, folder
        assert (ROOT / folder / "README.md").exists(), folder
        assert (ROOT / folder / package / "py.typed").exists(), folder


# Rule 2


def test_folders_beside_a_package_have_names_that_nobody_imports() -> None:
    for folder, package in COMPONENTS.items():
        beside = {path.relative_to(ROOT / folder).parts[0] for path in tracked(f"{folder}/*/*")} - {package}
        importable = {name for name in beside if name.isidentifier()}
        assert importable == set(), f"{folder}: give {importable} a hyphen"


# Rule 3


def test_core_imports_no_component() -> None:
    graph = grimp.build_graph("seatrial", include_external_packages=True)
    assert {name for name in graph.modules if name.startswith("seatrial_")} == set()


def module_level_imports(path: Path) -> Iterator[str]:
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield statement.module or ""


def test_command_modules_import_only_the_standard_library_and_click() -> None:
    allowed = {"seatrial.cli", "seatrial.errors", "seatrial"}
    for path in {*tracked("*/seatrial*/cli.py"), ROOT / "core/seatrial/commands.py", ROOT / "core/seatrial/errors.py"}:
        foreign = {
            name
            for name in module_level_imports(path)
            if name.partition(".")[0] not in sys.stdlib_module_names and name != "click" and name not in allowed
        }
        assert foreign == set(), path


def commands() -> Iterator[list[str]]:
    for entry_point in entry_points(group="seatrial.commands"):
        yield from walk(entry_point.load(), [entry_point.name])


def walk(command: click.Command, path: list[str]) -> Iterator[list[str]]:
    yield path
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from walk(inner, [*path, name])


@pytest.mark.parametrize("command", [[], *commands()], ids=" ".join)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    asked = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "seatrial", *command, "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in asked.stderr.splitlines()}
    assert "Usage:" in asked.stdout
    assert imported & HEAVY == set()


def test_every_command_that_takes_json_shows_an_example() -> None:
    for path in commands():
        command = click.Group(commands={e.name: e.load() for e in entry_points(group="seatrial.commands")})
        found: click.Command = command
        for name in path:
            assert isinstance(found, click.Group)
            found = found.commands[name]
        if any(parameter.name == "as_json" for parameter in found.params):
            assert re.search(r"Examples?:", found.help or ""), f"seatrial {' '.join(path)} has no example in its --help"


# Rule 4: `make lint` holds the layers; this holds what import-linter cannot say


def test_of_serving_export_uses_the_engines_alone() -> None:
    graph = grimp.build_graph("seatrial_export", "seatrial_serving")
    used = {
        imported
        for module in graph.modules
        if module.startswith("seatrial_export")
        for imported in graph.find_modules_directly_imported_by(module)
        if imported.startswith("seatrial_serving")
    }
    assert {name for name in used if not name.startswith("seatrial_serving.engines")} == set()


def test_import_contracts_are_those_of_the_design() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert config["contracts"][0]["layers"] == [
        "seatrial_promotion",
        "seatrial_export",
        "seatrial_training | seatrial_serving",
        "seatrial_models | seatrial_monitoring",
        "seatrial",
    ]


# Rule 5


def test_nothing_of_ours_unpickles_except_the_child_made_for_it() -> None:
    """`pickle`, `torch.load` and their like appear in one module: the child that opens what somebody else logged."""
    suspicious = re.compile(r"\b(pickle|cloudpickle|joblib|dill)\b|torch\.load\(|allow_pickle=True|weights_only=False")
    found = {
        str(path.relative_to(ROOT))
        for folder, package in COMPONENTS.items()
        for path in tracked(f"{folder}/{package}/*.py")
        if any(suspicious.search(line) for line in code_lines(path))
    }
    assert found - {"export/seatrial_export/foreign.py"} == set()


def code_lines(path: Path) -> list[str]:
    """The source without docstrings and comments."""
    return ast.unparse(without_docstrings(ast.parse(path.read_text()))).splitlines()


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [s for s in node.body if not is_docstring(s)] or [ast.Pass()]
    return tree


def is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
