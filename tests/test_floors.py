"""The house stands: imports point down, only the adapters know transformers and diffusers, files stay small."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
ADAPTERS = ("vlm/", "generator/", "world/build/")


def test_imports_point_down_only():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", ["transformers", "diffusers", "peft"])
def test_only_adapters_know(package):
    for path in SOURCES:
        inside = str(path.relative_to(ROOT / "src/rewarddance"))
        if not inside.startswith(ADAPTERS):
            assert all(m.split(".")[0] != package for m in imported(path)), inside


def test_nothing_needs_torchvision():
    assert all(m.split(".")[0] != "torchvision" for path in SOURCES for m in imported(path))


def test_pictures_are_opened_in_one_place():
    """`open_image` sets the limits of Pillow, which belong to the process."""
    opens = [path for path in SOURCES if "Image.open(" in path.read_text()]
    assert opens == [ROOT / "src/rewarddance/core/pictures.py"]


def words_of(tree):
    """Every name that code uses, and the words of its short texts, such as the names of plugins."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            yield from re.findall(r"\w+", node.value)


def test_every_function_and_class_is_named_somewhere():
    """Tests alone need no code in `src`. Decorators register what they decorate; migrations are found by their file."""
    trees = {path: ast.parse(path.read_text()) for path in SOURCES if "migrations" not in path.parts}
    used = {word for tree in trees.values() for word in words_of(tree)}
    defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for path, tree in trees.items():
        members = [member for node in tree.body if isinstance(node, ast.ClassDef) for member in node.body]
        for node in [*tree.body, *members]:
            if isinstance(node, defined) and not node.decorator_list and not node.name.startswith("__"):
                assert node.name in used, f"{path.name}:{node.name} has no caller"


def lengths(text):
    """(name, number of lines) of every function, with its first and last line and without its decorators."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def test_both_kinds_of_functions_are_counted_with_their_first_line():
    assert list(lengths("def two():\n    pass\n\n\nasync def three():\n    pass\n    pass\n")) == [
        ("two", 2),
        ("three", 3),
    ]


def test_files_and_functions_stay_small():
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for name, length in lengths(text):
            assert length <= 60, f"{path.name}:{name}"
