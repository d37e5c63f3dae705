"""Preferences for training: K pictures of one prompt, and the choices between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rewarddance.core.media import Media
from rewarddance.core.types import Comparison


@dataclass(frozen=True)
class Choice:
    """One judgement: `label` is the probability that picture `first` is better than picture `second`.

    `rationale` gives the reasons; it calls the first picture candidate and the second one reference. `strength` says
    how much better the preferred picture is, from 0 (hardly) to 1 (much), where people were asked.
    """

    first: int
    second: int
    label: float
    rationale: str | None = None
    strength: float | None = None


@dataclass(frozen=True)
class PreferenceRecord:
    """All pictures of one prompt with the choices between them.

    Attributes:
        truth: the exact value of every picture, where it is known (the embedded world); never trained on.
        ratings: mean rating of every picture under the criterion, 1 to 5, where people gave ratings.
        source: where the pictures came from, for example "rendered" or "generator".
        groups: the groups of the record, for example {"style": "flat", "annotator": "7"}; folds are made of these.
        condition: the picture that all were generated from (image-to-video), None without one.
    """

    record_id: str
    prompt: str
    media: tuple[Media, ...]
    choices: tuple[Choice, ...]
    criterion: str = "overall"
    source: str = ""
    truth: tuple[float, ...] | None = None
    ratings: tuple[float, ...] | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    condition: Media | None = None

    def comparisons(self, both_orders: bool = False) -> list[Comparison]:
        """One comparison for each choice, with the first picture as candidate; with `both_orders` also the swapped
        ones."""
        forward = [
            Comparison(
                self.prompt,
                self.media[c.first],
                self.media[c.second],
                self.criterion,
                c.label,
                c.rationale,
                self.condition,
            )
            for c in self.choices
        ]
        return forward + [c.swapped() for c in forward] if both_orders else forward


def all_pairs(num: int) -> list[tuple[int, int]]:
    """Unordered pairs of `num` things.

    >>> all_pairs(3)
    [(0, 1), (0, 2), (1, 2)]
    """
    return [(i, j) for i in range(num) for j in range(i + 1, num)]
