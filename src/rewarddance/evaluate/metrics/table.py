"""One table of metrics for samples before and after training, against a reference set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewarddance.core.media import Media
from rewarddance.core.progress import tracked
from rewarddance.core.statistics import bootstrap, half_sample_interval, paired_bootstrap
from rewarddance.core.task import texts_of
from rewarddance.evaluate.generator import Features, Measure, Samples, of_each
from rewarddance.evaluate.metrics.distances import Distance, among_samples, before_and_after
from rewarddance.evaluate.metrics.distributions import cmmd, frechet_inception_distance, polynomial_mmd
from rewarddance.evaluate.metrics.manifolds import mean_distance, precision_and_recall, vendi_score
from rewarddance.evaluate.metrics.text import clip_score

Array = NDArray[np.float64]
Statistic = Callable[[Array, Array], float]
BATCH = 64
HALVES = 100
"""Half-samples for the interval of a change."""
MIN_PROMPTS, MIN_PICTURES = 4, 4
"""The fewest prompts, and pictures in a half, for an interval by half-samples."""


class TextAndPictures(Protocol):
    """CLIP: pictures and texts to vectors of one space, (N, D)."""

    def __call__(self, media: Sequence[Media]) -> Tensor: ...

    def texts(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Extractors:
    """The models that the metrics use, by name.

    Attributes:
        features: for FID, KID, CMMD, precision, recall, the Vendi score and diversity.
        distances: for LPIPS.
        clip: for CLIPScore, None without one.
        measures: numbers of single samples, from their pixels alone.
    """

    features: Mapping[str, Features]
    distances: Mapping[str, Distance] = field(default_factory=dict)
    clip: TextAndPictures | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)


def embed(features: Features, media: Sequence[Media], batch: int = BATCH) -> Array:
    """Features of pictures, (N, D) float64, a batch at a time."""
    with torch.no_grad():
        parts = [features(media[i : i + batch]).double().cpu().numpy() for i in range(0, len(media), batch)]
    return np.concatenate(parts)


def metrics_table(
    before: Samples, after: Samples, reference: Sequence[Media], extractors: Extractors
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The metrics of both sets of samples, and their change.

    FID, KID, CMMD, precision and recall compare each set with the reference set; their changes have intervals by
    half-samples over prompts. Vendi scores, diversity (mean distance between the features of two samples), CLIPScore,
    LPIPS and `measures` have a value for every prompt; their changes have paired bootstrap intervals.

    Returns:
        By metric (`fid/world`): before, after, change (mean, ci_low, ci_high). `lpips_moved/...`, the distance between
        before and after of one noise, has `mean` and its interval instead. `measures` also have `reference`, the mean
        of the reference set. And by name the values of every prompt.
    """
    table, values = dict[str, Any](), dict[str, list[float]]()

    def per_prompt(name: str, first: Array, second: Array) -> None:
        values[f"{name}/before"], values[f"{name}/after"] = first.tolist(), second.tolist()
        change = paired_bootstrap(second, first).as_dict()
        table[name] = {"before": float(first.mean()), "after": float(second.mean()), "change": change}

    for name, features in tracked(list(extractors.features.items()), "features"):
        x, y = (np.stack([embed(features, row) for row in s.media]) for s in (before, after))
        target = embed(features, reference)
        table |= _distributions(name, x, y, target)
        if x.shape[1] > 1:
            for metric, variety in (("vendi", vendi_score), ("diversity", mean_distance)):
                per_prompt(f"{metric}/{name}", *(np.array([variety(row) for row in s]) for s in (x, y)))
    if extractors.clip is not None:
        per_prompt("clip_score", *(_clip_scores(s, extractors.clip) for s in (before, after)))
    for name, distance in tracked(list(extractors.distances.items()), "distances"):
        if len(before.media[0]) > 1:
            per_prompt(f"lpips_among/{name}", *(among_samples(s, distance) for s in (before, after)))
        moved = before_and_after(before, after, distance).mean(1)
        values[f"lpips_moved/{name}"] = moved.tolist()
        table[f"lpips_moved/{name}"] = bootstrap(moved).as_dict()
    for name, number in extractors.measures.items():
        per_prompt(name, *(of_each(s, number).mean(1) for s in (before, after)))
        table[name]["reference"] = float(np.mean([number(m) for m in reference]))
    return table, values


def _distributions(name: str, before: Array, after: Array, reference: Array) -> dict[str, Any]:
    """From features (prompts, noises, D) and those of the reference set (M, D)."""

    def unit(x: Array) -> Array:
        return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))

    statistics: dict[str, Statistic] = {
        "fid": frechet_inception_distance,
        "kid": polynomial_mmd,
        "cmmd": lambda x, y: cmmd(unit(x), unit(y)),
        "precision": lambda x, y: precision_and_recall(x, y)[0],
        "recall": lambda x, y: precision_and_recall(x, y)[1],
    }
    return {f"{metric}/{name}": _change(s, before, after, reference) for metric, s in statistics.items()}


def _change(statistic: Statistic, before: Array, after: Array, reference: Array) -> dict[str, Any]:
    def of(x: Array) -> float:
        return statistic(x.reshape(-1, x.shape[-1]), reference)

    change: dict[str, Any] = {"mean": of(after) - of(before)}
    if len(before) >= MIN_PROMPTS and len(before) // 2 * before.shape[1] >= MIN_PICTURES:
        change = half_sample_interval(
            lambda rows: of(after[rows]) - of(before[rows]), len(before), num=HALVES
        ).as_dict()
    return {"before": of(before), "after": of(after), "change": change}


def _clip_scores(samples: Samples, clip: TextAndPictures) -> Array:
    """Mean over the samples of every prompt, (prompts,)."""
    texts = clip.texts(texts_of(samples.prompts)).double().cpu().numpy()
    rows = zip(texts, samples.media, strict=True)
    return np.array([clip_score(p := embed(clip, row), np.repeat(t[None], len(p), 0)).mean() for t, row in rows])
