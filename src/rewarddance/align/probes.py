"""Probes: fixed prompts and noises that are drawn, judged and measured again and again during an alignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rewarddance.align.diagnostics import (
    drift,
    part_means,
    pixel_diversity,
    rank_disagreement,
    saturation,
    set_disagreement,
    statistics,
    surface_sensitivity,
)
from rewarddance.align.divergence import KlProbe
from rewarddance.align.grids import save_grid
from rewarddance.core.loop import Metrics
from rewarddance.core.media import Media
from rewarddance.core.monitors import HackingMonitor
from rewarddance.core.parallel import all_gather_dicts, all_reduce_sum, is_leader, rank, world_size
from rewarddance.core.protocols import Tunable
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Gold
from rewarddance.core.types import Comparison, RewardModel, Verdict
from rewarddance.generator.trace import draw

FEW = 8
"""Comparisons that the judge's surface sensitivity is measured on."""


def judge_gold(judge: RewardModel, criterion: str) -> Gold:
    """P(better than the start's picture) of a second judge, NaN where it refuses. Gold where no exact measure exists.

    It should differ from the training judge (other data, another size or family). A picture that fools one may then not
    fool the other (ensembles against over-optimisation: Coste et al., arXiv 2310.02743).
    """

    def measure(prompts: Sequence[str], media: Sequence[Media], start: Sequence[Media]) -> list[float]:
        comparisons = [Comparison(p, x, s, criterion) for p, x, s in zip(prompts, media, start, strict=True)]
        return [float(v) for v in judge.judge(comparisons).reward.cpu()]

    return measure


def _of_table(table: np.ndarray) -> Metrics:
    """Signs of hacking from the values (prompts, noises, proxy and gold)."""
    metrics: Metrics = {"probe/saturation": saturation(table[..., 0])}
    if table.shape[2] > 1:
        metrics["probe/disagreement"] = rank_disagreement(table[..., 0], table[..., 1])
    return {name: None if np.isnan(value) else value for name, value in metrics.items()}


def _of_parts(verdict: Verdict) -> Metrics:
    """The curves of a set of judges: every judge's mean value, and how much they disagree. A collective."""
    own = {name: values.detach().double().cpu().numpy() for name, values in verdict.parts.items()}
    everything = list(all_gather_dicts({rank(): own}).values())
    names = sorted({name for parts in everything for name in parts})
    if not names:
        return {}
    parts = {name: np.concatenate([part[name] for part in everything if name in part]) for name in names}
    means = part_means({name: torch.from_numpy(values) for name, values in parts.items()})
    metrics: Metrics = {f"probe/part/{name}": mean for name, mean in means.items()}
    for name, value in zip(("probe/parts_std", "probe/parts_split"), set_disagreement(parts), strict=True):
        metrics |= {} if np.isnan(value) else {name: value}
    return metrics


@dataclass
class Prober:
    """Measures the proxy reward against the pictures of the start, and the gold standard, on fixed prompts and noises.

    Each data-parallel process draws a share of the prompts; all processes get all values.
    """

    generator: Tunable
    judge: RewardModel
    prompts: Sequence[str]
    num_noises: int
    num_steps: int
    criterion: str
    seed: int
    gold: Gold | None
    batch: int = 128
    samples: Path | None = None
    """Folder for one picture grid a probe; None writes none."""

    def __post_init__(self) -> None:
        self.monitor = HackingMonitor()
        self.divergence = KlProbe(self.generator, self.prompts, self.num_steps, self.seed, self.batch)
        self.references: Tensor | None = None
        """Pictures of the first probe, uint8 (prompts * noises, 3, H, W), those of one prompt together."""

    @torch.no_grad()
    def probe(self, step: int) -> Metrics:
        """Draw, judge and measure; a collective. Values that a judge refused are left out and counted."""
        own = range(len(self.prompts))[rank() :: world_size()]
        rows = [i * self.num_noises + k for i in own for k in range(self.num_noises)]
        prompts = [self.prompts[i] for i in own for _ in range(self.num_noises)]
        pictures = self._draw(prompts, rows)
        if self.references is None:
            self.references = self._all_gather(pictures, rows)
        # each sample is compared with the start's sample of the next noise, so that the start scores about one half
        start = [Media.from_bytes(self.references[[self._next_noise(i)]]) for i in rows]
        comparisons = [Comparison(p, x, r, self.criterion) for p, x, r in zip(prompts, pictures, start, strict=True)]
        verdict = self.judge.judge(comparisons) if prompts else Verdict.all_refused({})
        columns = [verdict.reward.tolist()]
        if self.gold is not None:
            columns.append(self.gold(prompts, pictures, start) if prompts else [])
        entries = all_gather_dicts({row: [c[i] for c in columns] for i, row in enumerate(rows)})
        table = np.array([entries[row] for row in sorted(entries)], np.float64)
        table = table.reshape(len(self.prompts), self.num_noises, len(columns))
        if self.samples is not None and is_leader():
            save_grid(self.samples, step, [self.prompts[i] for i in own], pictures, self.num_noises)
        looks = self._looks(pictures, own) | _of_parts(verdict)
        sensitivity = self._sensitivity(comparisons)
        figures = {"probe/kl": self.divergence.measure()} | self._metrics(step, table) | _of_table(table)
        return figures | looks | ({} if sensitivity is None else {"probe/sensitivity": sensitivity})

    def _sensitivity(self, comparisons: Sequence[Comparison]) -> float | None:
        """`surface_sensitivity` of a few comparisons; None for a judge without gradients."""
        value = surface_sensitivity(self.judge, comparisons[:FEW]) if comparisons else None
        values = [v for v in all_gather_dicts({rank(): value}).values() if v is not None and not np.isnan(v)]
        return float(np.mean(values)) if values else None

    def _looks(self, pictures: Sequence[Media], own: Sequence[int]) -> Metrics:
        """Diversity of the pictures, and how far their statistics are from the start's."""
        entries: dict[int, tuple[float, Tensor]] = {}
        for place, prompt in enumerate(own):
            group = pictures[place * self.num_noises : (place + 1) * self.num_noises]
            pixels = torch.cat([m.frames[:1] for m in group]).cpu().float()
            entries[prompt] = (pixel_diversity(pixels[None]), statistics(pixels))
        everything = [look for _, look in sorted(all_gather_dicts(entries).items())]
        assert self.references is not None
        start = torch.cat([statistics(part.float() / 255) for part in torch.split(self.references, 256)])
        changes = drift(torch.cat([s for _, s in everything]), start)
        diversity = float(np.mean([d for d, _ in everything]))
        return {"probe/diversity": diversity} | {f"probe/drift_{name}": value for name, value in changes.items()}

    def _metrics(self, step: int, table: np.ndarray) -> Metrics:
        """From the values (prompts, noises, proxy and gold); a prompt with a refused value is left out."""
        refused = np.isnan(table).any((1, 2))
        counted: Metrics = {"probe/refused": int(refused.sum())} if refused.any() else {}
        if refused.all():
            return counted
        proxy = table[..., 0]
        if self.gold is None:
            kept = proxy[~refused]
            return {"probe/proxy": float(kept.mean()), "probe/proxy_std": float(kept.std())} | counted
        return self.monitor.add(step, proxy, table[..., 1]) | counted

    def _draw(self, prompts: Sequence[str], rows: Sequence[int]) -> list[Media]:
        rng = torch.Generator().manual_seed(seed_of(self.seed, "probes"))
        noise = self.generator.noise(len(self.prompts) * self.num_noises, rng)[list(rows)]
        return list(draw(self.generator, prompts, noise, self.num_steps, batch=self.batch, title="probes"))

    def _all_gather(self, pictures: Sequence[Media], rows: Sequence[int]) -> Tensor:
        side = self.generator.side
        everything = torch.zeros(len(self.prompts) * self.num_noises, 3, side, side, dtype=torch.uint8)
        if pictures:  # a process may have no prompts
            everything[list(rows)] = torch.cat([m.to_bytes() for m in pictures])
        return all_reduce_sum(everything)

    def _next_noise(self, i: int) -> int:
        row, column = divmod(i, self.num_noises)
        return row * self.num_noises + (column + 1) % self.num_noises
