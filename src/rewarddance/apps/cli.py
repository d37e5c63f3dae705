"""The `rewarddance` command: runs a subcommand and prints errors as one line. It imports no torch by itself."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rewarddance.core.errors import RewardDanceError, StoppedError, UsageError
from rewarddance.core.memory import keep_freed_memory

EPILOGUE = """
Examples:
  rewarddance demo
  rewarddance data import votes.csv --media-root images --out data/mine
  rewarddance train recipes/tiny/reward.yaml --data data/mine --out runs/judge
  rewarddance score --judge runs/judge --prompt "a red circle" --candidate a.png --reference b.png
  rewarddance align recipes/tiny/refl.yaml --judge runs/judge --out runs/refl --optim.lr 3e-5
  rewarddance evaluate runs/refl && rewarddance report runs/refl

`rewarddance COMMAND --help` explains a command. Exit status: 0 success, 1 failure, 2 wrong usage, 130 ended by
Ctrl-C, 143 ended by SIGTERM. After the first Ctrl-C a training finishes its step and saves a checkpoint; the second
Ctrl-C ends it at once. --debug shows tracebacks.
"""


@dataclass(frozen=True)
class Command:
    """A subcommand: module and class with its flags and its body, imported when it is called."""

    home: str
    summary: str

    def load(self) -> Any:
        module, name = self.home.split(":")
        return getattr(import_module(f"rewarddance.apps.{module}"), name)


COMMANDS: dict[str, Command] = {
    "demo": Command("commands:Demo", "the main job on the embedded world, with a report"),
    "data build": Command("data:DataBuild", "preferences of the embedded world as Parquet"),
    "data import": Command("data:DataImport", "preferences of any format to Parquet, with every vote"),
    "data stats": Command("data:DataStats", "labels, agreement, side bias, duplicates, leakage"),
    "data split": Command("data:DataSplit", "hold out prompts, styles, models or annotators; folds"),
    "data export": Command("data:DataExport", "records as a file of another format"),
    "data select": Command("data:DataSelect", "which pairs to label next"),
    "data rationales": Command("commands:DataRationales", "reasons for preferences, by a teacher"),
    "annotate": Command("annotating:Annotate", "pages on which people judge pictures, blind"),
    "annotate export": Command("annotating:AnnotateExport", "judgements of people, as data to train on"),
    "ab create": Command("ab:AbCreate", "a blinded study of two or more systems"),
    "ab status": Command("ab:AbStatus", "progress of a study, and whether it is decided"),
    "ab report": Command("ab:AbReport", "a study's figures and page"),
    "train": Command("training:Train", "train a judge on preferences"),
    "train learned": Command("training:TrainLearned", "train a learned reward, a small transformer, on ratings"),
    "plan": Command("planning:PlanCommand", "memory of a training on given GPUs, and what to switch on"),
    "score": Command("commands:Score", "judge one picture, two, or a whole data set"),
    "serve": Command("serving:Serve", "serve a judge over HTTP"),
    "composite": Command("composing:FitComposite", "fit a composite reward to a reference set"),
    "rank": Command("commands:Rank", "order pictures of one prompt by round robin"),
    "align": Command("training:Align", "train a generator with a judge"),
    "sample": Command("commands:Sample", "draw pictures, with best-of-N or another search if asked"),
    "evaluate": Command("evaluating:Evaluate", "measure what a run trained, with intervals"),
    "diagnose": Command("reporting:Diagnose", "signs of reward hacking, runs side by side"),
    "compare": Command("comparing:Compare", "two runs' evaluations side by side"),
    "report": Command("reporting:ReportCommand", "write a run's HTML page"),
    "study alignment": Command("studies:StudyAlignment", "algorithms or judges side by side, with controls"),
    "study paradigms": Command("studies:StudyParadigms", "judges that learn in different ways, side by side"),
    "study sizes": Command("studies:StudySizes", "the size table: pretrain, teach and measure every size"),
    "study oracle": Command("studies:StudyOracle", "the oracle against a second opinion"),
    "study hacking": Command("studies:StudyHacking", "the alarm in runs that are hacked on purpose and in sound ones"),
    "study search": Command("studies:StudySearch", "searches at inference, at equal numbers of forward passes"),
    "study weights": Command("studies:StudyWeights", "what a composite's parts are worth, and fitted weights"),
    "rerun": Command("training:Rerun", "repeat a run from its run.json"),
    "build": Command("training:Build", "train the embedded models from scratch (make assets)"),
    "build ship": Command("training:BuildShip", "put a trained model of clips into the package"),
    "build video": Command("training:BuildVideo", "train the embedded video models from scratch"),
}


RESUMED = ("train", "train learned", "align", "rerun")
"""Commands with the flag --resume."""


def overview() -> str:
    """The text of `rewarddance --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {c.summary}" for name, c in COMMANDS.items()]
    return "usage: rewarddance COMMAND [flags]\n\nCommands:\n" + "\n".join(lines) + "\n" + EPILOGUE


def split_command(argv: Sequence[str]) -> tuple[str, list[str]] | None:
    """The longest command name that `argv` begins with, and the remaining arguments."""
    for length in (2, 1):
        name = " ".join(argv[:length])
        if len(argv) >= length and name in COMMANDS:
            return name, list(argv[length:])
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit status; `--help` leaves through SystemExit(0)."""
    try:
        status = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has ended. Without this the interpreter fails again when it flushes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _main(argv: Sequence[str] | None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if args else 2
    if args[0] == "--version":
        from rewarddance import __version__

        print(__version__)
        return 0
    command = split_command(args)
    if command is None:
        import difflib

        near = difflib.get_close_matches(" ".join(args[:2]), COMMANDS, 1) or difflib.get_close_matches(
            args[0], COMMANDS, 1
        )
        hint = f"; did you mean {near[0]!r}?" if near else "; see rewarddance --help"
        print(f"rewarddance: no command {args[0]!r}{hint}", file=sys.stderr)
        return 2
    return _run(*command, debug)


def _quiet() -> None:
    """Turn off messages and progress bars of other libraries, unless the user has set them."""
    for key, value in {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}.items():
        os.environ.setdefault(key, value)


def _run(name: str, rest: list[str], debug: bool) -> int:
    _quiet()
    keep_freed_memory()
    try:
        read: Callable[[str, list[str]], Any] = COMMANDS[name].load().read
        read(f"rewarddance {name}", rest).run()
    except BrokenPipeError:
        raise  # handled in `main`
    except RewardDanceError as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, StoppedError):
            print(f"rewarddance: {error} ({_how_to_resume(name)})", file=sys.stderr)
            return 128 + error.signal if error.signal else 1
        print(f"rewarddance: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        hint = "; --resume goes on from the last checkpoint" if name in RESUMED else ""
        print(f"rewarddance: interrupted{hint}", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if debug:
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split()) or type(error).__name__
        place = f"{where.filename.rsplit('/', 1)[-1]}:{where.lineno}"
        text += _space_hint(name, error)
        print(f"rewarddance: {type(error).__name__}: {text} ({place}; --debug shows more)", file=sys.stderr)
        return 1
    return 0


def _how_to_resume(name: str) -> str:
    if name == "demo":
        return "the demo starts from the beginning"
    return "--resume" if name in RESUMED else "the same command again"


def _space_hint(name: str, error: Exception) -> str:
    """What to do if an error says that the disk is full; empty for other errors."""
    from rewarddance.core.disk import is_full

    if not is_full(error):
        return ""
    return f"; free some space and resume ({_how_to_resume(name)})"


if __name__ == "__main__":
    sys.exit(main())
