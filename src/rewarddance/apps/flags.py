"""Commands as frozen dataclasses: fields are flags (tyro), `run` does the work."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Self, TypeVar, get_type_hints

import tyro
import tyro._strings
from pydantic import ValidationError

from rewarddance.core.config import Config, load_recipe, merge, parse_config, problems
from rewarddance.core.errors import UsageError

_joined_lines = tyro._strings.remove_single_line_breaks


def _paragraph(helptext: str) -> str:
    """A docstring as the text of a help page. tyro keeps a line break before an indented line, and the second line of a
    field's docstring is indented, so the indentation is removed first."""
    return _joined_lines(inspect.cleandoc(helptext))


tyro._strings.remove_single_line_breaks = _paragraph


@dataclass(frozen=True)
class Least:
    """The smallest valid number of a flag."""

    value: float


F = TypeVar("F", bound="Flags")
Count = Annotated[int, Least(1)]
SomeCount = Annotated[int | None, Least(1)]


@dataclass(frozen=True)
class Flags:
    """Base of commands."""

    @classmethod
    def read(cls, program: str, args: list[str]) -> Self:
        """Parse flags. A command with a field `config` reads a recipe first: `[RECIPE.yaml] --flags`.

        Raises:
            UsageError: one line that says what is wrong.
            ConfigError: the recipe cannot be read or has a wrong key.
        """
        refuse_repeated(args)
        model = get_type_hints(cls).get("config")
        command: Self = _parsed(cls, program, args) if model is None else _with_recipe(cls, model, program, args)
        return in_range(command, program)

    def given(self) -> set[str]:
        """Names of the fields that differ from their defaults."""
        return {f.name for f in fields(self) if getattr(self, f.name) != f.default}

    def run(self) -> None:
        raise NotImplementedError


def _parsed(cls: type[F], program: str, args: list[str], **options: Any) -> F:
    """Parse with tyro; `options` are tyro's. Its error box becomes one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            command: F = tyro.cli(cls, prog=program, args=args, **options)
            return command
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(usage_line(box.getvalue(), program)) from None


def usage_line(box: str, program: str) -> str:
    """Tyro's error box as one line: its first message, and the flag that was probably meant."""
    lines = [re.sub("[│╭╮╰╯]", "", line).strip() for line in box.splitlines()][1:]  # the first is a title
    parts = [" ".join(part.split()) for part in re.split("[─-]{3,}", " ".join(lines)) if part.strip()]
    first = re.sub(r"\s*(\[type=[^]]*\]|For further information visit \S+)", "", parts[0])
    if first.startswith("Missing from"):
        flags = re.findall(r"^(?:│ {5}| {6})(\S.*?)\s*│?$", box, re.MULTILINE)
        first = "missing: " + ", ".join(f for f in flags if not f.startswith(program))
    meant = next((p for p in parts if p.startswith("Perhaps you meant")), None)
    near = re.search(r"--[\w.-]+", meant) if meant else None
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{first[:300]}{hint}; see {program} --help"


def in_range(command: F, program: str) -> F:
    """The command itself.

    Raises:
        UsageError: a number below its `Least`.
    """
    for name, kind in get_type_hints(type(command), include_extras=True).items():
        value = getattr(command, name)
        for least in (m for m in getattr(kind, "__metadata__", ()) if isinstance(m, Least)):
            flag = f"{program.removeprefix('rewarddance ')}: --{name.replace('_', '-')}"
            need(value is None or value >= least.value, f"{flag} {value}: needs {least.value:g} or more")
    return command


def refuse_repeated(args: list[str]) -> None:
    """Refuse a flag that is given twice. The parser would silently use the last one.

    Raises:
        UsageError: names the flag.
    """
    names = [a.split("=")[0].replace("_", "-") for a in args if a.startswith("--") and a != "--"]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    need(twice is None, f"{twice} is given more than once; write it once, with all its values behind it")


def _with_recipe(cls: type[F], model: type[Config], program: str, args: list[str]) -> F:
    """The recipe gives the defaults of `config`; flags override single keys."""
    recipe: dict[str, Any] = {}
    source = "configuration"
    if args and not args[0].startswith("-"):
        source, args = args[0], args[1:]
        recipe = load_recipe(source)
    values: dict[str, Any] = {"config": parse_config(model, merge(model().model_dump(), recipe), source)}
    for f in fields(cls):
        if f.name != "config":
            values[f.name] = f.default if f.default is not MISSING else tyro.MISSING
    try:
        return _parsed(cls, program, args, default=cls(**values))
    except ValidationError as error:
        raise UsageError(f"{program.removeprefix('rewarddance ')}: {problems(model, error)}") from None


def need(condition: bool, message: str) -> None:
    """Raise `UsageError(message)` unless the condition holds."""
    if not condition:
        raise UsageError(message)
