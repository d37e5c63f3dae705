"""`rewarddance composite`: its flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rewarddance.apps.commands import show
from rewarddance.apps.flags import Flags, Least
from rewarddance.core.config import Precision


@dataclass(frozen=True)
class FitComposite(Flags):
    """Measure mean and deviation of every part of a composite on a data folder, and fit its index of novelty.

    Writes NAME.fitted beside NAME.yaml. Then the YAML file is a judge: `--judge NAME.yaml`.

    Example: rewarddance composite recipes/tiny/composite.yaml --data data/embedded
    """

    file: tyro.conf.Positional[Path]
    """The composite, see docs/guides/composite.md."""
    data: Path
    """A folder of `data build` or `data import`, or a Parquet file of it: the reference set."""
    most: Annotated[int, Least(4)] = 400
    """Largest number of records to use, evenly spread."""
    precision: Precision | None = None
    """Precision of its judges, as for `score`."""

    def run(self) -> None:
        from rewarddance.jobs.composite import fit_composite

        show(fit_composite(self.file, self.data, max_records=self.most, precision=self.precision))
