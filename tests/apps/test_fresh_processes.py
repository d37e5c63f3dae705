"""What a fresh interpreter prints and imports: nothing that the user did not ask for."""

import os
import subprocess
import sys

import pytest

from rewarddance.reward.wording import NAMED

HEAVY = ("torch", "transformers", "diffusers", "peft", "scipy", "pyarrow", "PIL", "plotly")


def fresh(code):
    """Output and errors of a new interpreter, which must end well. What our command line sets does not reach it."""
    env = {k: v for k, v in os.environ.items() if k not in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_importing_the_package_prints_nothing_and_loads_nothing_heavy():
    code = f"import sys, rewarddance\nassert not [m for m in {HEAVY} if m in sys.modules]"
    assert fresh(code) == ("", "")


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["align", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(args):
    code = (
        "import sys\nfrom rewarddance.apps.cli import main\n"
        f"try:\n    main({args})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"assert not [m for m in {HEAVY} if m in sys.modules]"
    )
    out, err = fresh(code)
    assert "usage: rewarddance" in out
    assert err == ""
    if args[0] == "train":
        template = out.split("--context.template")[1].split("--context.instruction")[0]
        words = " ".join(template.replace("│", " ").split())
        assert [name for name in NAMED if f"`{name}`" in words] == list(NAMED)


def test_everything_public_loads_in_silence_and_warnings_of_transformers_are_shown():
    code = """
import rewarddance
for name in rewarddance.__all__:
    getattr(rewarddance, name)
import rewarddance.generator.sd3
from transformers.utils import logging
logging.get_logger("transformers.utils.import_utils").warning("requires torchvision (not installed)")
for name in ("transformers.utils.import_utils", "transformers.modeling_utils"):
    logging.get_logger(name).warning("a real warning")
"""
    out, err = fresh(code)
    assert out == ""
    assert [line.split("] ")[-1] for line in err.splitlines()] == ["a real warning", "a real warning"]
