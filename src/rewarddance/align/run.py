"""The methods of an algorithm that the alignment job calls (`jobs/align.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from rewarddance.core.loop import Metrics


class AlignRun(ABC):
    """Base of algorithms. A method that an algorithm does not need does nothing."""

    def begin(self) -> None:  # noqa: B027
        """Called before the first step of a run that is not resumed."""

    @abstractmethod
    def step(self, index: int) -> Metrics:
        """Compute the gradients of step `index`; returns metrics for the log."""

    def validate(self, index: int) -> Metrics:
        """Measure after step `index`; returns metrics for the log."""
        return {}

    def stop(self, metrics: Metrics) -> str | None:
        """The reason to end the run after this step; None to continue."""
        return None

    def went_back(self) -> None:  # noqa: B027
        """Called after the trained weights went back to an earlier state (`on_hacking: rollback`)."""

    def save_state(self) -> None:  # noqa: B027
        """Put the state that is not weights into the loop, before it writes a checkpoint."""

    def load_state(self) -> None:  # noqa: B027
        """Take that state from the loop, after it has loaded a checkpoint."""
