"""Documents tell the truth: links, paths, commands and flags exist; the wording guide shows what the code renders."""

import contextlib
import inspect
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from rewarddance.apps.cli import COMMANDS
from rewarddance.apps.docs import help_of
from rewarddance.core.task import Task
from rewarddance.generator import trace
from rewarddance.reward.wording import NAMED

ROOT = Path(__file__).parents[1]
CARDS = sorted((ROOT / "src/rewarddance/assets").glob("*/README.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *CARDS]
TODAY = [p for p in PAGES if p.name not in ("log.md", "CHANGELOG.md")]
"""Pages about the code as it is; the others also name files and flags of earlier times."""
PATH = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|md|svg|json|txt|toml))(?:::?\w+)?`")
SUFFIXES = ("", "src/", "src/rewarddance/", "docs/", "tests/")
MADE = re.compile(r"^(runs|data|images|path|models|out|checkpoints|samples)/|^\.")
COMMAND = re.compile(r"^(?:.*-m )?rewarddance ([a-z].*)")


RESULTS = sorted((ROOT / "docs/results").glob("*.md"))


def ids(paths):
    return {"argvalues": paths, "ids": [str(p.relative_to(ROOT)) for p in paths]}


@pytest.mark.parametrize("page", **ids(PAGES))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", **ids(TODAY))
def test_files_that_are_named_exist(page):
    for name in PATH.findall(page.read_text()):
        if not MADE.match(name):
            assert any((ROOT / s / name).exists() for s in SUFFIXES), name


@cache
def flags_of(command):
    return set(re.findall(r"--[a-z][\w.-]*", help_of(command)))


def commands_in(text):
    """(command, flags) of every `rewarddance ...` in code."""
    blocks = re.findall(r"```(?:\w*)\n(.*?)```", text, re.DOTALL)
    lines = [line for b in blocks for line in b.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in lines:
        for part in line.split("#")[0].split("&&"):
            if match := COMMAND.match(part.strip()):
                words = shlex.split(match[1])
                two = " ".join(words[:2])
                yield (two if two in COMMANDS else words[0]), [w.split("=")[0] for w in words if w.startswith("--")]


@pytest.mark.parametrize("page", **ids([p for p in TODAY if p.name != "cli.md"]))
def test_commands_and_flags_exist(page):
    for command, flags in commands_in(page.read_text()):
        assert command in COMMANDS, command
        unknown = {f for f in flags if f not in ("--help", "--debug")} - flags_of(command)
        assert not unknown, f"rewarddance {command}: {unknown}"


@pytest.mark.parametrize("page", **ids(RESULTS))
def test_a_results_page_has_one_table(page):
    """Besides the table that `make gpu` writes."""
    text = re.sub(r"<!-- begin of the table -->.*<!-- end of the table -->", "", page.read_text(), flags=re.DOTALL)
    assert len(re.findall(r"^\|[-|: ]+\|$", text, re.MULTILINE)) == 1


def test_the_design_names_the_parameters_of_the_ports():
    text = (ROOT / "docs/design.md").read_text()
    for function in (trace.trace, trace.draw, trace.rollout):
        line = next(s for s in text.splitlines() if s.startswith(f"{function.__name__}("))
        assert re.findall(r"[(,] ?(\w+)", line) == list(inspect.signature(function).parameters), function
    methods = [n for n, f in vars(Task).items() if inspect.isfunction(f) and not n.startswith("_")]
    for name in methods:
        names = list(inspect.signature(getattr(Task, name)).parameters)[1:]
        assert f"{name}({', '.join(names)})" in text, name


def test_the_wording_guide_shows_what_the_code_renders(tmp_path, monkeypatch):
    text = (ROOT / "docs/guides/wording.md").read_text()
    example = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    Path("poster.yaml").write_text(example[1])
    Path("broken.yaml").write_text(example[1].replace("Image {number}: {picture}", "Image {colour}: {picture}"))
    names = {}
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```python")
    for name in NAMED:
        assert f'show(Context(template="{name}"), comparison)' in text, name
    for code, expected in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, names)
        assert out.getvalue() == expected
