"""The run of ReFL: batches, the reference bank, and refused judgements."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rewarddance.align.refl import METRICS, REWARD_METRICS, refl_step
from rewarddance.align.supervised import supervised_loss
from rewarddance.align.watched_run import WatchedRun
from rewarddance.core.averages import WeightedMeans
from rewarddance.core.errors import JudgementError
from rewarddance.core.loop import Metrics
from rewarddance.core.parallel import all_gather_dicts, all_reduce_gradients, all_reduce_sum, rank, world_size
from rewarddance.core.streams import seed_of, stream
from rewarddance.core.task import Task
from rewarddance.core.types import MAX_REFUSED

FREE_STEPS = 3
"""Steps at the start in which any number may be refused."""


@dataclass
class ReflRun(WatchedRun):
    """Reward feedback against a reference bank."""

    task: Task = field(kw_only=True)

    def step(self, index: int) -> Metrics:
        if self.bank.is_due(index):
            self.bank.draw(self.generator, self.judge, index)
        means, refused = self._passes(index)
        supervised = self._supervise(index) if self.config.refl.supervised_weight else {}
        all_reduce_gradients(self.loop.parameters.values())
        parts = {name for name in means.sums if name.startswith("part/")}
        parts = {name for names in all_gather_dicts({rank(): parts}).values() for name in names}
        metrics: Metrics = dict(means.all_reduce((*METRICS, *sorted(parts))))
        self.note_kl(metrics["kl"])
        metrics |= self.note_win_rate(metrics["win_rate"])  # the running mean takes the place of the step's
        return metrics | supervised | self._count_refused(index, refused)

    def _supervise(self, index: int) -> Metrics:
        """Gradients of the supervised regulariser on this process's share of captioned pictures."""
        config, means = self.config, WeightedMeans()
        place, size = index * world_size() + rank(), len(range(rank(), config.batch_size, world_size()))
        loss = supervised_loss(self.generator, self.task, config.seed, place, size)
        (loss * (config.refl.supervised_weight * size / config.batch_size)).backward()  # type: ignore[no-untyped-call]
        means.add({"supervised_loss": float(loss.detach())}, size)
        return dict(means.all_reduce(("supervised_loss",)))

    def _passes(self, index: int) -> tuple[WeightedMeans, int]:
        """Gradients of this process's share of the batch. Returns its metrics and how many pictures were refused."""
        config, means, refused = self.config, WeightedMeans(), 0
        rng = torch.Generator().manual_seed(seed_of(config.seed, "align-noise", index, rank()))
        rows = stream(config.seed, "align-batch", index).choice(len(self.bank.prompts), config.batch_size)
        batch = [self.bank.prompts[int(r)] for r in rows[rank() :: world_size()]]
        size = config.micro_batch or len(batch)
        settings = config.with_pull(self.pull_factor).refl
        for part in (batch[i : i + size] for i in range(0, len(batch), size)):
            out = refl_step(self.generator, self.judge, part, self.bank.of(part), settings, config.criterion or "", rng)
            (out["loss"] * (len(part) / config.batch_size)).backward()  # type: ignore[no-untyped-call]
            values = {k: float(v.detach()) for k, v in out.items()}
            num_judged, num_answered = values.pop("num_judged"), values.pop("num_answered")
            refused += int(num_judged - num_answered)
            answered_only = (*REWARD_METRICS, *(name for name in values if name.startswith("part/")))
            means.add(values, len(part), dict.fromkeys(answered_only, num_answered))
        return means, refused

    def _count_refused(self, index: int, refused: int) -> Metrics:
        """Raises `JudgementError` if too many pictures have been refused so far. A collective."""
        refused_now = int(all_reduce_sum(torch.tensor(refused)))
        if not refused_now:
            return {}
        total = self.loop.extra["refused"] = self.loop.extra.get("refused", 0) + refused_now
        judged_a_step = self.config.batch_size * (1 + self.config.refl.copies)
        judged = (index + 1) * judged_a_step
        if total > max(FREE_STEPS * judged_a_step, MAX_REFUSED * judged):
            raise JudgementError(f"the judge refused {total} of {judged} pictures; last in step {index}")
        return {"refused": refused_now}
