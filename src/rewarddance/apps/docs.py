"""Writes `docs/cli.md` from the commands themselves; a test holds the page to it."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from rewarddance.apps.cli import COMMANDS, main, overview

HEAD = """# Command line

This page is written by `python -m rewarddance.apps.docs`; a test compares it with the commands.
"""


def help_of(name: str) -> str:
    """What `rewarddance NAME --help` prints, 100 columns wide, without colour."""
    old = {k: os.environ.get(k) for k in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    os.environ.pop("FORCE_COLOR", None)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*name.split(), "--help"])
    finally:
        for key, value in old.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def render_cli_page() -> str:
    """The whole page."""
    parts = [HEAD, f"```text\n{overview().strip()}\n```\n"]
    parts += [f"## rewarddance {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS]
    return "\n".join(parts)


if __name__ == "__main__":
    target = Path("docs/cli.md")
    target.write_text(render_cli_page())
    print(target)
