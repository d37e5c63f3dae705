"""Settings of a desk, as they are kept in its database. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rewarddance.core.config import Config

Task = Literal["pairwise", "rating", "ranking"]
RATED = ("fidelity", "style", "composition", "novelty")
"""Criteria of a rating where none are given: `data.derive.LIKERT`, which is not imported because it loads torch."""
WON_BY_NOISE = frozenset({"novelty"})
"""Criteria by which noise may rightly win; attention checks are not judged by them."""
MAX_RANKED = 9
"""Pictures of one ranking, which the digit keys name."""


class DeskConfig(Config):
    """The questions of a desk, and how often each item is judged.

    Attributes:
        task: `pairwise` compares two pictures, `rating` rates each picture from 1 to 5, `ranking` orders all pictures
            of a prompt.
        criteria: the questions about each item. Empty: `overall`, or four for `rating`.
        judgements: how many people judge each item.
        checks: share of items whose answer is known: one picture is noise. None where noise may win by every criterion.
        repeats: share of items that are shown to the same person again, with the sides exchanged.
        most_pairs: pairs of one prompt at most, drawn at random; all where None.
        lease_minutes: time after which an unanswered item goes to somebody else.
        whole_items_first: finish an item before the next one begins. Studies that look at results early need it.
        seed: of the drawn pairs, checks and repeats. Sides are drawn from the system's randomness.
    """

    task: Task = "pairwise"
    criteria: tuple[Annotated[str, Field(min_length=1, max_length=60)], ...] = ()
    judgements: int = Field(3, ge=1)
    checks: float = Field(0.05, ge=0, le=0.5)
    repeats: float = Field(0.05, ge=0, le=0.5)
    most_pairs: int | None = Field(None, ge=1)
    lease_minutes: float = Field(15, gt=0)
    whole_items_first: bool = False
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _distinct(self) -> DeskConfig:
        if len(set(self.criteria)) < len(self.criteria):
            raise ValueError("criteria: one of them is named twice")
        return self

    @property
    def asked(self) -> tuple[str, ...]:
        """The criteria, in the order in which they are asked."""
        return self.criteria or (RATED if self.task == "rating" else ("overall",))

    @property
    def checked(self) -> tuple[str, ...]:
        """The criteria by which attention checks are judged. A desk without any has no checks."""
        return tuple(c for c in self.asked if c not in WON_BY_NOISE)


CHANGEABLE = frozenset({"judgements", "checks", "repeats", "lease_minutes", "whole_items_first"})
"""Settings that may change while people work. The others decide what an item is."""


class ServerConfig(Config):
    """Limits of one server process.

    Each process counts requests by itself, so n servers allow n times as many. A shared count would write to the
    database at every request, pictures too, and would make people wait for each other's writes. The limits keep one
    browser from overloading a server; they do not protect links, whose tokens have 256 random bits.

    Attributes:
        session_hours: a session ends after this time without a request.
        longest_session_hours: a session ends after this time in any case.
        invitation_days: an invitation can be used this long.
        requests_per_minute: of one person; wrong_links_per_minute: unknown links that one address may open.
        url: the beginning of links; the address of the request if None.
    """

    session_hours: float = Field(12, gt=0)
    longest_session_hours: float = Field(24 * 7, gt=0)
    invitation_days: float = Field(30, gt=0)
    requests_per_minute: int = Field(240, ge=1)
    wrong_links_per_minute: int = Field(20, ge=1)
    url: str | None = None
