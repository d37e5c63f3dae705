"""`rewarddance compare`: its flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from rewarddance.apps.flags import Flags


@dataclass(frozen=True)
class Compare(Flags):
    """Two runs' evaluations side by side, from the JSON files that `evaluate` wrote into the run folders.

    If both hold values of the same prompts, differences (second run minus first) have paired 95% intervals.

    Example: rewarddance compare runs/refl runs/nft
    """

    first: tyro.conf.Positional[Path]
    second: tyro.conf.Positional[Path]

    def run(self) -> None:
        from rewarddance.apps.compare import compare_runs

        print(compare_runs(self.first, self.second))
