"""The run of rollout algorithms: collect groups, score them, update the weights. Probes watch it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rewarddance.align.algorithms import Algorithm
from rewarddance.align.rollouts import Rollouts
from rewarddance.align.scoring import Scores, score_groups
from rewarddance.align.watched_run import WatchedRun
from rewarddance.core.averages import WeightedMeans
from rewarddance.core.errors import JudgementError
from rewarddance.core.loop import Metrics
from rewarddance.core.parallel import all_gather_dicts, all_reduce_gradients, rank, world_size
from rewarddance.core.streams import stream
from rewarddance.core.types import MAX_REFUSED

ScoredPass = tuple[Rollouts, Tensor, Tensor]
"""A pass of P' groups, their advantages (P', K), and which groups count (P',)."""


@dataclass
class RolloutRun(WatchedRun):
    """Collect, then update with every part of the pictures. Groups stay whole in one process."""

    algorithm: Algorithm = field(kw_only=True)

    def step(self, index: int) -> Metrics:
        config, num = self.config.rollout, self.config.batch_size // self.group_size
        if config.score == "references" and self.bank.is_due(index):
            self.bank.draw(self.generator, self.judge, index)
        rows = [
            int(r) for r in stream(self.config.seed, "align-batch", index).choice(len(self.bank.prompts), num, False)
        ]
        parts = np.array_split(np.arange(num), config.minibatches)
        own_parts = [part[rank() :: world_size()].tolist() for part in parts]
        drawn = [self._draw(index, rows, places) for places in own_parts]
        scores = self._score([rollouts for passes in drawn for rollouts in passes])
        places = [p for part in own_parts for p in part]
        all_scores = _gathered(places, scores.values)
        metrics = self._count_refused(index, all_gather_dicts({rank(): (scores.refused, scores.num_asked)}))
        self.algorithm.pull_factor = self.pull_factor
        advantages, counts = self.algorithm.advantages(rows, all_scores)
        scored = _with_advantages(drawn, advantages[places], counts[places])
        means = WeightedMeans()
        for number in range(config.updates * config.minibatches):
            if number:
                self.loop.update()
            update, part = divmod(number, config.minibatches)
            self._gradients(scored[part], len(parts[part]), index, update, means)
        metrics |= means.all_reduce(self.algorithm.metrics)
        self.note_kl(metrics.get("kl"))
        metrics |= _score_metrics(all_scores, counts, config.relative)
        metrics |= _mean_parts(all_gather_dicts({rank(): (scores.parts, scores.num_asked - len(scores.refused))}))
        if scores.win_rates is not None:
            metrics |= self.note_win_rate(float(_gathered(places, scores.win_rates).nanmean()))
        return metrics | self.algorithm.end_step(index, rows, all_scores, metrics)

    def _draw(self, index: int, rows: Sequence[int], places: Sequence[int]) -> list[Rollouts]:
        """Groups of one part of the batch, in passes of at most `micro_batch` pictures."""
        prompts = [self.bank.prompts[rows[p]] for p in places]
        at_once = max(1, (self.config.micro_batch or len(places) * self.group_size) // self.group_size)
        return [
            self.algorithm.draw(prompts[i : i + at_once], places[i : i + at_once], index)
            for i in range(0, len(places), at_once)
        ]

    def _score(self, passes: Sequence[Rollouts]) -> Scores:
        """Scores of all groups of this process, by one call to the judge."""
        prompts = [p for rollouts in passes for p in rollouts.prompts]
        pictures = [group for rollouts in passes for group in rollouts.pictures]
        score_by, criterion = self.config.rollout.score, self.config.criterion or ""
        references = self.bank.of(prompts) if score_by == "references" else ()
        return score_groups(self.judge, prompts, pictures, score_by, criterion, references)

    @property
    def group_size(self) -> int:
        return self.config.rollout.group_size

    def _gradients(
        self, scored: Sequence[ScoredPass], num_groups: int, index: int, update: int, means: WeightedMeans
    ) -> None:
        """Gradients of one update over all processes; each of its groups that counts weighs 1 / num_groups."""
        for rollouts, advantages, counts in scored:
            if not (num := int(counts.sum())):
                continue
            out = self.algorithm.loss(rollouts, advantages, index, update, counts)
            (out["loss"] * (num / num_groups)).backward()  # type: ignore[no-untyped-call]
            means.add({k: float(v.detach()) for k, v in out.items()}, num)
        all_reduce_gradients(self.loop.parameters.values())

    def _count_refused(self, index: int, by_rank: dict[int, tuple[tuple[str, ...], int]]) -> Metrics:
        """Raises `JudgementError` if the judge refused too many questions of this step."""
        reasons = [why for refused, _ in by_rank.values() for why in refused]
        num_questions = sum(num for _, num in by_rank.values())
        if len(reasons) > MAX_REFUSED * num_questions:
            raise JudgementError(
                f"step {index}: the judge refused {len(reasons)} of {num_questions} questions; {reasons[0]}"
            )
        return {"refused": len(reasons)} if reasons else {}

    def went_back(self) -> None:
        self.algorithm.went_back()

    def save_state(self) -> None:
        super().save_state()
        extra, tensors = self.algorithm.state()
        self.loop.extra |= extra
        self.loop.extra_tensors |= tensors

    def load_state(self) -> None:
        super().load_state()
        self.algorithm.load_state(self.loop.extra, self.loop.extra_tensors)


def _gathered(places: Sequence[int], rows: Tensor) -> Tensor:
    """The rows of all groups, in the order of the batch, from the rows of this process's groups. A collective."""
    return torch.stack([row for _, row in sorted(all_gather_dicts(dict(zip(places, rows, strict=True))).items())])


def _with_advantages(drawn: Sequence[Sequence[Rollouts]], advantages: Tensor, counts: Tensor) -> list[list[ScoredPass]]:
    """Every pass with its groups' advantages and which of them count, by part."""
    sizes = [len(rollouts.prompts) for passes in drawn for rollouts in passes]
    rows = iter(zip(torch.split(advantages, sizes), torch.split(counts, sizes), strict=True))
    return [[(rollouts, *next(rows)) for rollouts in passes] for passes in drawn]


def _mean_parts(by_rank: dict[int, tuple[Mapping[str, float], int]]) -> Metrics:
    """`part/NAME`: the mean value of every judge of a set over the answered questions of all processes."""
    names = sorted({name for parts, _ in by_rank.values() for name in parts})
    metrics: Metrics = {}
    for name in names:
        values = [(parts[name], num) for parts, num in by_rank.values() if name in parts]
        if total := sum(num for _, num in values):
            metrics[f"part/{name}"] = sum(v * num for v, num in values) / total
    return metrics


def _score_metrics(scores: Tensor, counts: Tensor, relative: bool) -> Metrics:
    """Statistics of the scores (P, K) of a step.

    Args:
        counts: which groups taught something.
        relative: scores compare the pictures of one group, so their mean says nothing.

    Returns:
        within_std: mean standard deviation within a group; zero_variance: share of the groups that taught nothing.
        Scores that are not relative also have reward: their mean, and across_std: the standard deviation of the
        groups' means.
    """
    means = scores.nanmean(1)
    within = (scores - means[:, None]).square().nanmean(1).sqrt()
    metrics: Metrics = {"within_std": float(within.nanmean()), "zero_variance": 1 - float(counts.float().mean())}
    if not relative:
        means = means[~means.isnan()]
        metrics |= {"reward": float(scores.nanmean()), "across_std": float(means.std(correction=0))}
    return metrics
