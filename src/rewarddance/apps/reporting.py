"""Commands that make pages from the logs of runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from rewarddance.apps.flags import Flags
from rewarddance.core.errors import UsageError


@dataclass(frozen=True)
class Diagnose(Flags):
    """Signs of reward hacking in alignment runs, side by side on one page: gold, proxy, KL, diversity, drift, alarms.

    Example: rewarddance diagnose runs/refl runs/nft --out runs/diagnosis.html
    """

    run_folders: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("runs/diagnosis.html")
    """The page to write."""

    def run(self) -> None:
        from rewarddance.apps.diagnose import write_diagnosis

        if not self.run_folders:
            raise UsageError("name one alignment run or more")
        print(write_diagnosis(self.run_folders, self.out))


@dataclass(frozen=True)
class ReportCommand(Flags):
    """Write report.html, one self-contained page, into the folder of a run, a demo, a study or a cross-validation.

    Example: rewarddance report runs/refl
    """

    run_folder: tyro.conf.Positional[Path]

    def run(self) -> None:
        from rewarddance.apps.report import write_report

        print(write_report(self.run_folder))
