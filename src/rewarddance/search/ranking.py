"""Round robins over samples of a generator's requests. A judge sees the picture that a request has, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewarddance.core.media import Media
from rewarddance.core.preferences import all_pairs
from rewarddance.core.task import Request, picture_of, texts_of
from rewarddance.core.types import Comparison, RewardModel, Verdict
from rewarddance.reward.rank import Ranking, rank_all


@dataclass(frozen=True)
class WithConditions:
    """A judge whose comparisons get a condition each, in the order in which they are asked by one call."""

    inner: RewardModel
    conditions: Sequence[Media | None]

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        return self.inner.judge(
            [replace(c, condition=picture) for c, picture in zip(comparisons, self.conditions, strict=True)]
        )


def rank_requests(
    judge: RewardModel, requests: Sequence[Request], media: Sequence[Sequence[Media]], criterion: str | None = None
) -> list[Ranking]:
    """`rank_all` of the samples of every request."""
    pictures = [picture_of(r) for r, own in zip(requests, media, strict=True) for _ in all_pairs(len(own))]
    asked = judge if all(p is None for p in pictures) else WithConditions(judge, pictures)
    return rank_all(asked, texts_of(requests), media, criterion)
