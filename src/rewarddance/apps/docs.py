"""Writes `docs/cli.md` from the commands' help. A test compares the page with them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from unittest.mock import patch

from rewarddance.apps.cli import COMMANDS, main, overview

HEAD = """# Command line

This page is written by `python -m rewarddance.apps.docs`; a test compares it with the commands.
"""


def help_of(name: str) -> str:
    """What `rewarddance NAME --help` prints, 100 columns wide, without colour."""
    out = io.StringIO()
    with patch.dict(os.environ, COLUMNS="100", NO_COLOR="1"):  # restores all variables at its end
        os.environ.pop("FORCE_COLOR", None)
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*name.split(), "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def render_cli_page() -> str:
    """The whole page."""
    parts = [HEAD, f"```text\n{overview().strip()}\n```\n"]
    parts += [f"## rewarddance {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS]
    return "\n".join(parts)


if __name__ == "__main__":
    target, page = Path("docs/cli.md"), render_cli_page()
    if sys.argv[1:] == ["--check"]:
        if target.read_text() != page:
            sys.exit(f"{target} differs from the commands' help; run python -m rewarddance.apps.docs")
    else:
        target.write_text(page)
    print(target)
