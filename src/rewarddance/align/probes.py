"""Probes: fixed prompts and noises that are drawn, judged and measured again and again during an alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from rewarddance.core.dynamics import dynamic_degree, flicker
from rewarddance.core.loop import Metrics
from rewarddance.core.mapped import gather_media, map_bytes
from rewarddance.core.media import Media, StoredMedia
from rewarddance.core.monitors import HackingMonitor, proxy_metrics
from rewarddance.core.parallel import all_gather_dicts, is_leader, rank, world_size
from rewarddance.core.protocols import Tunable
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Gold, Request, texts_of
from rewarddance.core.types import Comparison, RewardModel, Verdict
from rewarddance.generator.trace import draw
from rewarddance.reward.batches import in_batches

FEW, FEW_CLIPS = 8, 2
"""Comparisons of pictures, and of clips, that the judge's surface sensitivity is measured on."""


def judge_gold(judge: RewardModel, criterion: str) -> Gold:
    """P(better than the start's picture) of a second judge, NaN where it refuses.

    This is the gold standard of a task without an exact measure. The second judge should have other data, another size
    or another family than the training judge. A picture that fools one may then not fool the other (ensembles against
    over-optimisation: Coste et al., arXiv 2310.02743).
    """

    def measure(prompts: Sequence[Request], media: Sequence[Media], start: Sequence[Media]) -> list[float]:
        comparisons = [Comparison.of(p, x, s, criterion) for p, x, s in zip(prompts, media, start, strict=True)]
        return in_batches(lambda batch: judge.judge(batch).win_rate, comparisons, "gold judge").tolist()

    return measure


def _mean_statistics(samples: Tensor) -> Tensor:
    """`statistics` of N samples (N, F, 3, H, W), mean over their frames, (N, 4)."""
    return statistics(samples.flatten(0, 1)).view(*samples.shape[:2], -1).mean(1)


def _table_metrics(table: np.ndarray) -> Metrics:
    """Saturation and rank disagreement of a table of values (prompts, noises, proxy and gold)."""
    metrics: Metrics = {"probe/saturation": saturation(table[..., 0])}
    if table.shape[2] > 1:
        metrics["probe/disagreement"] = rank_disagreement(table[..., 0], table[..., 1])
    return {name: None if np.isnan(value) else value for name, value in metrics.items()}


def _part_metrics(verdicts: Sequence[Verdict]) -> Metrics:
    """Metrics of a set of judges: every judge's mean value, and how much the judges disagree. A collective."""
    known = sorted({name for v in verdicts for name in v.parts})
    parts_here = {name: np.concatenate([_values(v, name) for v in verdicts]) for name in known}
    parts_by_rank = list(all_gather_dicts({rank(): parts_here}).values())
    names = sorted({name for parts in parts_by_rank for name in parts})
    if not names:
        return {}
    parts = {name: np.concatenate([part[name] for part in parts_by_rank if name in part]) for name in names}
    means = part_means({name: torch.from_numpy(values) for name, values in parts.items()})
    metrics: Metrics = {f"probe/part/{name}": mean for name, mean in means.items()}
    for name, value in zip(("probe/parts_std", "probe/parts_split"), set_disagreement(parts), strict=True):
        metrics |= {} if np.isnan(value) else {name: value}
    return metrics


def _unseen_metrics(proxy: np.ndarray, unseen: Mapping[int, float]) -> Metrics:
    """How much lower P(better than the start) is when the judge sees other frames. A collective.

    Args:
        proxy: (prompts, noises). unseen: the value of each sample of this process on the other frames, by row.
    """
    entries = all_gather_dicts(dict(unseen))
    gaps = proxy.reshape(-1) - np.array([entries[row] for row in sorted(entries)])
    return {} if np.isnan(gaps).all() else {"probe/unseen_gap": float(np.nanmean(gaps))}


def _values(verdict: Verdict, name: str) -> np.ndarray:
    """The values of a part, (N,), NaN where the verdict has none."""
    if name not in verdict.parts:
        return np.full(len(verdict), np.nan)
    return np.asarray(verdict.parts[name].detach().double().cpu())


@dataclass
class Prober:
    """Measures the proxy reward against the pictures of the start, and the gold standard, on fixed prompts and noises.

    Each data-parallel process draws a share of the prompts; all processes get all values.
    """

    generator: Tunable
    judge: RewardModel
    prompts: Sequence[Request]
    num_noises: int
    num_steps: int
    criterion: str
    seed: int
    gold: Gold | None
    batch: int = 128
    truth: Gold | None = None
    """The task's exact measure, if the gold standard is another one. It is logged, and no alarm depends on it."""
    folder: Path = Path()
    """Where files of clips lie."""
    samples: Path | None = None
    """Folder of the sample grids, one PNG for each probe. None: no grids."""

    def __post_init__(self) -> None:
        self.monitor = HackingMonitor()
        self.divergence = KlProbe(self.generator, self.prompts, self.num_steps, self.seed, self.batch)
        self.references: Tensor | None = None
        """Samples of the first probe, those of one prompt together: pictures uint8 (prompts * noises, 3, H, W), clips
        uint8 (prompts * noises, F, 3, H, W) in a mapped file."""

    @torch.no_grad()
    def probe(self, step: int) -> Metrics:
        """Draw, judge and measure; a collective. Values that a judge refused are left out and counted."""
        own_prompts = range(len(self.prompts))[rank() :: world_size()]
        rows = [i * self.num_noises + k for i in own_prompts for k in range(self.num_noises)]
        prompts = [self.prompts[i] for i in own_prompts for _ in range(self.num_noises)]
        pictures = self._draw(prompts, rows)
        if self.references is None:
            num = len(self.prompts) * self.num_noises
            self.references = gather_media(pictures, rows, num, self.shape, self.file)
        values: dict[int, list[float]] = {}
        unseen: dict[int, float] = {}
        verdicts: list[Verdict] = []
        at_once = self.batch if self._draws_clips else max(1, len(rows))
        for first in range(0, len(rows), at_once):
            part = slice(first, first + at_once)
            start = self._start(rows[part])
            verdicts.append(self.judge.judge(self._comparisons(prompts[part], pictures[part], start)))
            columns = [verdicts[-1].win_rate.tolist()]
            if self.gold is not None:
                columns.append(self.gold(prompts[part], pictures[part], start))
            if self.truth is not None:
                columns.append(self.truth(prompts[part], pictures[part], start))
            if self._draws_clips:
                unseen |= dict(zip(rows[part], self._unseen(prompts[part], pictures[part], start), strict=True))
            values |= {row: [c[i] for c in columns] for i, row in enumerate(rows[part])}
        entries = all_gather_dicts(values)
        table = np.array([entries[row] for row in sorted(entries)], np.float64)
        table = table.reshape(len(self.prompts), self.num_noises, -1)
        truth: Metrics = {}
        if self.truth is not None:
            table, exact = table[..., :-1], table[..., -1]
            truth = {} if np.isnan(exact).all() else {"probe/truth": float(np.nanmean(exact))}
        if self.samples is not None and is_leader():
            save_grid(self.samples, step, texts_of([self.prompts[i] for i in own_prompts]), pictures, self.num_noises)
        others = self._picture_metrics(pictures, own_prompts) | (_part_metrics(verdicts) if self._is_set else {})
        others |= _unseen_metrics(table[..., 0], unseen) if self._draws_clips else {}
        few = slice(0, FEW_CLIPS if self._draws_clips else FEW)
        sensitivity = self._sensitivity(self._comparisons(prompts[few], pictures[few], self._start(rows[few])))
        if self._draws_clips:
            self._current.unlink(missing_ok=True)
        figures = {"probe/kl": self.divergence.measure()} | self._metrics(step, table) | _table_metrics(table)
        return figures | truth | others | ({} if sensitivity is None else {"probe/sensitivity": sensitivity})

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of one sample, (F, 3, H, W)."""
        drawn = self.generator.drawn
        return drawn.num_frames, 3, drawn.side, drawn.side

    @property
    def file(self) -> Path:
        """Where `references` lie if they are clips."""
        return self.folder / "probe_references.bytes"

    @property
    def _current(self) -> Path:
        """Where the clips of the present probe lie until it ends."""
        return self.folder / f"probe_now_{rank()}.bytes"

    @property
    def _draws_clips(self) -> bool:
        return self.generator.drawn.num_frames > 1

    @property
    def _is_set(self) -> bool:
        """Whether the parts of the judge's verdicts are judges of a set, on one scale."""
        return bool(getattr(self.judge, "parts_are_judges", False))

    def _start(self, rows: Sequence[int]) -> list[Media]:
        """For each sample the start's sample of the next noise, so that the start scores about one half."""
        assert self.references is not None
        stored = StoredMedia(self.references, self.generator.drawn.fps)
        return [stored[self._next_noise(i)] for i in rows]

    def _comparisons(
        self, prompts: Sequence[Request], media: Sequence[Media], start: Sequence[Media]
    ) -> list[Comparison]:
        return [Comparison.of(p, x, r, self.criterion) for p, x, r in zip(prompts, media, start, strict=True)]

    def _unseen(self, prompts: Sequence[Request], clips: Sequence[Media], start: Sequence[Media]) -> list[float]:
        """P(better than the start) of clips without their first frame.

        A judge that looks at every second frame then sees the other half.
        """
        later = [[replace(m, frames=m.frames[1:]) for m in media] for media in (clips, start)]
        return self.judge.judge(self._comparisons(prompts, *later)).win_rate.tolist()

    def _sensitivity(self, comparisons: Sequence[Comparison]) -> float | None:
        """`surface_sensitivity` of a few comparisons; None for a judge without gradients."""
        value = surface_sensitivity(self.judge, comparisons) if comparisons else None
        values = [v for v in all_gather_dicts({rank(): value}).values() if v is not None and not np.isnan(v)]
        return float(np.mean(values)) if values else None

    def _picture_metrics(self, pictures: Sequence[Media], own_prompts: Sequence[int]) -> Metrics:
        """Diversity of the pictures, and how far their statistics are from the start's. A collective.

        Args:
            own_prompts: numbers of this process's prompts; `pictures` has `num_noises` of each.
        """
        entries: dict[int, tuple[float, Tensor, float, float]] = {}
        for place, prompt in enumerate(own_prompts):
            group = pictures[place * self.num_noises : (place + 1) * self.num_noises]
            pixels = torch.stack([m.frames for m in group]).cpu().float()
            moves, flickers = (float(np.mean([f(x) for x in pixels])) for f in (dynamic_degree, flicker))
            entries[prompt] = (pixel_diversity(pixels[None]), _mean_statistics(pixels), moves, flickers)
        all_entries = [entry for _, entry in sorted(all_gather_dicts(entries).items())]
        assert self.references is not None
        at_once = 256 // self.shape[0] + 1 if self._draws_clips else 256
        parts = (part.view(-1, *self.shape) for part in torch.split(self.references, at_once))
        start = torch.cat([_mean_statistics(part.float() / 255) for part in parts])
        changes = drift(torch.cat([e[1] for e in all_entries]), start)
        metrics: Metrics = {"probe/diversity": float(np.mean([e[0] for e in all_entries]))}
        if self._draws_clips:
            metrics["probe/dynamics"] = float(np.mean([e[2] for e in all_entries]))
            metrics["probe/flicker"] = float(np.mean([e[3] for e in all_entries]))
        return metrics | {f"probe/drift_{name}": value for name, value in changes.items()}

    def _metrics(self, step: int, table: np.ndarray) -> Metrics:
        """From the values (prompts, noises, proxy and gold); a prompt with a refused value is left out."""
        refused = np.isnan(table).any((1, 2))
        counted: Metrics = {"probe/refused": int(refused.sum())} if refused.any() else {}
        if refused.all():
            return counted
        proxy = table[..., 0]
        if self.gold is None:
            return proxy_metrics(proxy[~refused]) | counted
        return self.monitor.add(step, proxy, table[..., 1]) | counted

    def _draw(self, prompts: Sequence[Request], rows: Sequence[int]) -> Sequence[Media]:
        """One sample for every row. Clips go to a mapped file one by one."""
        rng = torch.Generator().manual_seed(seed_of(self.seed, "probes"))
        noise = self.generator.noise(len(self.prompts) * self.num_noises, rng)[list(rows)]
        drawn = draw(self.generator, prompts, noise, self.num_steps, batch=self.batch, title="probes")
        if not self._draws_clips or not rows:  # a process may have no prompts
            return list(drawn)
        mapped = map_bytes(self._current, (len(rows), *self.shape), new=True)
        for place, clip in enumerate(drawn):
            mapped[place] = clip.to_bytes()
        return StoredMedia(mapped, self.generator.drawn.fps, origin="generator")

    def _next_noise(self, i: int) -> int:
        row, column = divmod(i, self.num_noises)
        return row * self.num_noises + (column + 1) % self.num_noises
