"""The learned reward: a transformer on frozen embeddings of picture and prompt, with a head for every criterion and one
scalar head.

The heads of the criteria predict ratings from 1 to 5. The scalar head predicts the overall rating, or a score that is
trained to order pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.core.config import Computed
from rewarddance.core.media import Media
from rewarddance.core.task import Request
from rewarddance.core.types import Comparison, Verdict, judge_answerable
from rewarddance.reward.learned_config import SCALAR_COLUMN, LearnedShape, LearnedSpec
from rewarddance.reward.problems import unusable
from rewarddance.reward.rank import Ranking, rank
from rewarddance.reward.scalar import MIDDLE_RATING
from rewarddance.vlm.token_embedders import TokenEmbedder

CHUNK = 64
"""Pictures in one pass."""


class RatingTransformer(nn.Module):
    """Reads [one query for each head, tokens of the picture, tokens of the prompt], and answers at the queries.

    Args:
        picture_size: (P, C), number and width of a picture's tokens.
        word_width: D.
        start: K answers, one of each head, before training.
    """

    def __init__(
        self, picture_size: tuple[int, int], word_width: int, start: Sequence[float], shape: LearnedShape
    ) -> None:
        super().__init__()
        num_columns = len(start)
        num_places, picture_width = picture_size
        width = shape.width
        self.picture_in = nn.Sequential(nn.LayerNorm(picture_width), nn.Linear(picture_width, width))
        self.word_in = nn.Sequential(nn.LayerNorm(word_width), nn.Linear(word_width, width))
        self.picture_places = nn.Parameter(torch.randn(num_places, width) * 0.02)
        self.word_places = nn.Parameter(torch.randn(shape.max_words, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(num_columns, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, shape.heads, 4 * width, shape.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, shape.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.heads = nn.Parameter(torch.zeros(num_columns, width))
        self.bias = nn.Parameter(torch.tensor(start))

    def forward(self, pictures: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        """(N, K) from pictures (N, P, C), words (N, T, D) and their padding (N, T)."""
        num, num_queries = len(pictures), len(self.queries)
        x = torch.cat(
            [
                self.queries.expand(num, -1, -1),
                self.picture_in(pictures) + self.picture_places,
                self.word_in(words) + self.word_places[: words.shape[1]],
            ],
            1,
        )
        padding_mask = F.pad(padding, (x.shape[1] - padding.shape[1], 0), value=False)
        states = self.layers(x, src_key_padding_mask=padding_mask)[:, :num_queries]
        outputs: Tensor = (states * self.heads).sum(-1) + self.bias
        return outputs


def new_transformer(embedder: TokenEmbedder, spec: LearnedSpec) -> RatingTransformer:
    """An untrained transformer for an embedder. Rating heads start at the middle rating, a ranking head at 0."""
    with torch.no_grad():
        picture = embedder.pictures([Media(torch.zeros(1, 3, 48, 48))])
        words, _ = embedder.words(["a"])
    start = [MIDDLE_RATING] * len(spec.columns)
    if spec.loss == "ranking":
        start[-1] = 0.0
    size = picture.shape[1], picture.shape[2]
    return RatingTransformer(size, words.shape[2], start, spec.shape).to(embedder.device)


def rating_loss(
    outputs: Tensor, ratings: Tensor, groups: Tensor, loss: Literal["mse", "ranking"], criteria_weight: float = 1.0
) -> dict[str, Tensor]:
    """Loss of one batch; the caller calls `backward` on `loss`.

    Args:
        outputs: (N, K); the scalar head is the last column.
        ratings: (N, K), NaN where there is none.
        groups: (N,), equal for pictures of one prompt.

    Returns:
        loss: scalar_loss + criteria_weight * criteria_loss; scalar_loss: mean squared error, or `ranking_loss`;
        criteria_loss: mean squared error of the other heads; accuracy: share of the pairs with different overall
        ratings that the scalar head orders right (NaN without any).
    """
    known = ratings.isfinite()
    errors = (outputs - ratings.masked_fill(~known, 0.0)).square() * known
    criteria = errors[:, :-1].sum() / known[:, :-1].sum().clamp(min=1)
    score, overall = outputs[:, -1], ratings[:, -1]
    scalar = errors[:, -1].sum() / known[:, -1].sum().clamp(min=1)
    if loss == "ranking":
        scalar = ranking_loss(score, overall, groups)
    better, worse = ordered_pairs(overall, groups)
    gap = (score[better] - score[worse]).detach()
    return {
        "loss": scalar + criteria_weight * criteria,
        "scalar_loss": scalar.detach(),
        "criteria_loss": criteria.detach(),
        "accuracy": (0.5 + 0.5 * gap.sign()).mean(),
    }


def ranking_loss(scores: Tensor, ratings: Tensor, groups: Tensor) -> Tensor:
    """Pairwise ranking loss, weighted by the gap of ratings: sum_ij g_ij (-log sigmoid(s_i - s_j)) / sum_ij g_ij over
    pairs of one group with g_ij = r_i - r_j > 0. 0 without such a pair.

    Args:
        scores, ratings, groups: (N,); NaN ratings are left out.
    """
    better, worse = ordered_pairs(ratings, groups)
    gaps = ratings[better] - ratings[worse]
    return (gaps * F.softplus(scores[worse] - scores[better])).sum() / gaps.sum().clamp(min=1e-9)


def ordered_pairs(ratings: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (M,) of the better and of the worse picture of every pair of one group with different ratings."""
    higher = ratings[:, None] > ratings[None]  # False where either is NaN
    better, worse = (higher & (groups[:, None] == groups[None])).nonzero().T
    return better, worse


@dataclass
class LearnedJudge:
    """A learned reward behind the score port.

    The margin of a picture alone is its rating minus 3 (the middle of the scale), or its score if the scalar head was
    trained to rank. With a reference the margin is the difference of the two.
    """

    spec: LearnedSpec
    embedder: TokenEmbedder
    module: RatingTransformer
    differentiable: bool = field(default=True, init=False)
    """Whether margins have gradients to the pixels."""

    @property
    def precision(self) -> Computed:
        """It always computes in fp32; it is small."""
        return "fp32"

    @property
    def criterion(self) -> str:
        """The criterion of the scalar head."""
        return SCALAR_COLUMN

    def own_or(self, criterion: str) -> str:
        """The criterion if there is a head for it, else that of the scalar head."""
        return criterion if criterion in self.spec.columns else self.criterion

    def problem(self, comparison: Comparison) -> str | None:
        """Why this judge cannot be asked about a comparison; None if it can."""
        num = self.embedder.num_words(comparison.prompt)
        limit = min(self.spec.shape.max_words, self.embedder.most_words)
        if num == 0 or not comparison.prompt.strip():
            return "a comparison needs a prompt; it is empty"
        if num > limit:
            return f"the prompt has {num:,} tokens, and this learned reward reads {limit:,}"
        if (comparison.criterion or self.criterion) not in self.spec.columns:
            return f"this judge has learnt no ratings of {comparison.criterion!r}, only: {', '.join(self.spec.columns)}"
        if comparison.condition is not None:
            return "this learned reward takes no condition picture"
        return unusable(comparison)

    def judge(self, comparisons: Sequence[Comparison], *, on_refused: Literal["mark", "raise"] = "mark") -> Verdict:
        """Verdicts (N,), differentiable to pixels. Items that cannot be answered are refused.

        Raises:
            JudgementError: with `on_refused="raise"`, if an item is refused.
        """
        verdict = judge_answerable(comparisons, self.problem, self._answer)
        return verdict.or_raise(comparisons) if on_refused == "raise" else verdict

    def _answer(self, comparisons: Sequence[Comparison]) -> Verdict:
        """Every distinct (prompt, picture) passes once."""
        places: dict[tuple[str, str], int] = {}
        prompts: list[str] = []
        media: list[Media] = []
        sides: tuple[list[int], list[int]] = ([], [])
        for c in comparisons:
            for picture, side in ((c.candidate, sides[0]), (c.reference, sides[1])):
                if picture is None:
                    side.append(-1)
                    continue
                key = (c.prompt, picture.key)
                if key not in places:
                    places[key] = len(media)
                    prompts.append(c.prompt)
                    media.append(picture)
                side.append(places[key])
        ratings = self.centred(self.ratings(prompts, media))
        ratings = torch.cat([ratings, ratings.new_zeros(1, ratings.shape[1])])  # row -1: no reference
        difference = ratings[sides[0]] - ratings[sides[1]]
        column = [self.spec.columns.index(c.criterion or self.criterion) for c in comparisons]
        margin = difference.gather(1, torch.tensor(column, device=difference.device)[:, None])[:, 0]
        parts = dict(zip(self.spec.columns, difference.T, strict=True))
        return replace(Verdict.from_margin(margin), parts=parts)

    def ratings(self, prompts: Sequence[str], media: Sequence[Media]) -> Tensor:
        """Outputs of all heads, (N, K) fp32, differentiable to pixels."""
        outputs = []
        for i in range(0, len(media), CHUNK):
            words, padding = self.embedder.words(prompts[i : i + CHUNK])
            outputs.append(self.module(self.embedder.pictures(media[i : i + CHUNK]), words, padding))
        return torch.cat(outputs)

    def centred(self, ratings: Tensor) -> Tensor:
        """Outputs of the heads with 0 in the middle of their scales."""
        middle = torch.full_like(ratings[:1], MIDDLE_RATING)
        if self.spec.loss == "ranking":
            middle[:, -1] = 0.0
        return ratings - middle

    def features(self, media: Sequence[Media]) -> Tensor:
        """Mean tokens of the embedder, (N, C)."""
        return self.embedder.pictures(media).mean(1)

    def keep_images(self, num_prompts: int, reference: Media | None, num_conditions: int) -> None:
        """A learned reward keeps no images."""

    def rank(self, prompt: Request, images: Sequence[Media], criterion: str | None = None) -> Ranking:
        """Order pictures of one prompt by round robin."""
        return rank(self, prompt, images, criterion)

    @torch.no_grad()
    def explain(self, comparisons: Sequence[Comparison]) -> list[str]:
        """The outputs of all heads for every candidate, in words."""
        rows = self.ratings([c.prompt for c in comparisons], [c.candidate for c in comparisons]).tolist()
        return [", ".join(f"{n} {v:.2f}" for n, v in zip(self.spec.columns, r, strict=True)) for r in rows]

    def trainable(self) -> Mapping[str, nn.Module]:
        return {"head": self.module}
