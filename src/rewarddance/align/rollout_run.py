"""Roll-outs as a run: collect groups, score them, make updates; watched by probes like reward feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rewarddance.align.algorithms import Algorithm, ForwardProcess
from rewarddance.align.rollouts import Rollouts
from rewarddance.align.scoring import Scores, score_groups
from rewarddance.align.watched_run import WatchedRun
from rewarddance.core.averages import WeightedMeans
from rewarddance.core.errors import JudgementError
from rewarddance.core.loop import Metrics
from rewarddance.core.parallel import all_gather_dicts, all_reduce_gradients, rank, world_size
from rewarddance.core.streams import stream

MOST_REFUSED = 0.05
"""Share of the questions of a step that the judge may refuse; a run with more of them ends."""


@dataclass
class RolloutRun(WatchedRun):
    """Collect, then update `rollout.updates` times. Groups stay whole in one process."""

    algorithm: Algorithm = field(kw_only=True)

    def step(self, index: int) -> Metrics:
        config, watch = self.config.rollout, self.bank
        if config.score == "references" and watch.is_due(index):
            watch.draw(self.generator, self.judge, index)
        num = self.config.batch_size // config.group_size
        rows = [int(r) for r in stream(self.config.seed, "align-batch", index).choice(len(watch.prompts), num, False)]
        places = list(range(num))[rank() :: world_size()]
        passes, scores = self._collect(index, rows, places)
        advantages, counts = self.algorithm.advantages([rows[p] for p in places], scores.values)
        metrics: Metrics = {}
        for update in range(config.updates):
            metrics = self._gradients(passes, advantages, counts, index, update)
            if update < config.updates - 1:
                self.loop.update()
        gathered = all_gather_dicts(
            {p: (s, bool(c)) for p, s, c in zip(places, scores.values, counts.tolist(), strict=True)}
        )
        refused = all_gather_dicts({rank(): (scores.num_refused, scores.num_asked)})
        everything = torch.stack([gathered[p][0] for p in range(num)])
        relative = config.score in ("round_robin", "win_rate")
        metrics |= _score_metrics(everything, [gathered[p][1] for p in range(num)], relative)
        metrics |= self._count_refused(index, refused)
        return metrics | self.algorithm.end_step(index, rows, everything, metrics)

    def _collect(self, index: int, rows: Sequence[int], places: Sequence[int]) -> tuple[list[Rollouts], Scores]:
        """This process's groups in passes of at most `micro_batch` pictures, scored in one call."""
        prompts = [self.bank.prompts[rows[p]] for p in places]
        at_once = max(1, (self.config.micro_batch or len(places) * self.group_size) // self.group_size)
        passes = [
            self.algorithm.draw(prompts[i : i + at_once], places[i : i + at_once], index)
            for i in range(0, len(places), at_once)
        ]
        way, criterion = self.config.rollout.score, self.config.criterion or ""
        pictures = [group for part in passes for group in part.pictures]
        references = self.bank.of(prompts) if way == "references" else ()
        return passes, score_groups(self.judge, prompts, pictures, way, criterion, references)

    @property
    def group_size(self) -> int:
        return self.config.rollout.group_size

    def _gradients(
        self, passes: Sequence[Rollouts], advantages: Tensor, counts: Tensor, index: int, update: int
    ) -> Metrics:
        """Gradients of one update over all processes; each group weighs 1 / (groups of the step)."""
        means, start = WeightedMeans(), 0
        total = self.config.batch_size // self.group_size
        for part in passes:
            groups = slice(start, start + len(part.prompts))
            start += len(part.prompts)
            own, kept = advantages[groups], counts[groups]
            if isinstance(self.algorithm, ForwardProcess):
                part, own = part.take(kept.nonzero().flatten().tolist()), own[kept]
            if not len(own):
                continue
            out = self.algorithm.loss(part, own, index, update)
            (out["loss"] * (len(own) / total)).backward()  # type: ignore[no-untyped-call]
            means.add({k: float(v.detach()) for k, v in out.items()}, len(own))
        all_reduce_gradients(self.loop.parameters.values())
        return dict(means.all_reduce(self.algorithm.metrics))

    def _count_refused(self, index: int, by_rank: dict[int, tuple[int, int]]) -> Metrics:
        """Raises `JudgementError` where the judge refused too many questions of this step."""
        refused, asked = (sum(pair[k] for pair in by_rank.values()) for k in (0, 1))
        if refused > MOST_REFUSED * asked:
            raise JudgementError(f"step {index}: the judge refused {refused} of {asked} questions")
        return {"refused": refused} if refused else {}

    def save_state(self) -> None:
        super().save_state()
        extra, tensors = self.algorithm.state()
        self.loop.extra |= extra
        self.loop.extra_tensors |= tensors

    def load_state(self) -> None:
        super().load_state()
        self.algorithm.load_state(self.loop.extra, self.loop.extra_tensors)


def _score_metrics(scores: Tensor, counts: Sequence[bool], relative: bool) -> Metrics:
    """What the scores (P, K) of a step look like.

    Args:
        counts: which groups taught something.
        relative: scores compare the pictures of one group, so their mean says nothing.

    Returns:
        within_std: mean standard deviation within a group; zero_variance: share of the groups that taught nothing; and
        for scores that are not relative reward: their mean, and across_std: the deviation of the groups' means.
    """
    means = scores.nanmean(1)
    within = (scores - means[:, None]).square().nanmean(1).sqrt()
    metrics: Metrics = {"within_std": float(within.nanmean()), "zero_variance": 1 - sum(counts) / len(counts)}
    if not relative:
        means = means[~means.isnan()]
        metrics |= {"reward": float(scores.nanmean()), "across_std": float(means.std(correction=0))}
    return metrics
