"""Errors that a person is meant to read: one line that says what, where and what to do."""

from __future__ import annotations


class RewardDanceError(Exception):
    """Anything that the command line prints as one line, with exit status 1."""


class InputError(RewardDanceError):
    """The user's files, rows, prompts or pictures cannot be used as they are."""


class ConfigError(RewardDanceError):
    """A recipe or flag is wrong."""


class UsageError(ConfigError):
    """Flags that do not go together; exit status 2, as for flags that do not exist."""


class JudgementError(RewardDanceError):
    """A judge could not answer. Never turned into a number."""


class RunError(RewardDanceError):
    """A run folder is missing, incomplete or belongs to another configuration."""


class StoppedError(RunError):
    """A run was told to stop or ran out of its time; it can be resumed.

    Attributes:
        signal: number of the signal that stopped the run; 0 if the time limit was reached.
    """

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal
