"""What watches a training run. Hacking is called when the proxy rises and the gold standard falls."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewarddance.core.statistics import Interval, paired_bootstrap


@dataclass(frozen=True)
class Probe:
    """One look at fixed prompts and noises: proxy reward and gold standard of every sample, (prompts, noises)."""

    step: int
    proxy: NDArray[np.float64]
    gold: NDArray[np.float64]


@dataclass
class HackingMonitor:
    """Compares every probe with the first and with the best so far.

    The gap is the rise of the proxy less the rise of the gold standard, each in standard deviations of the start;
    hacking is called when, since the best gold probe, the proxy has risen while the gold standard has fallen, both
    with 95% intervals clear of 0.
    """

    probes: list[Probe] = field(default_factory=list)

    def add(self, step: int, proxy: ArrayLike, gold: ArrayLike) -> dict[str, float | str]:
        """Record a probe; returns figures for the log."""
        probe = Probe(step, np.asarray(proxy, np.float64), np.asarray(gold, np.float64))
        self.probes.append(probe)
        first = self.probes[0]
        proxy_gain = (probe.proxy.mean() - first.proxy.mean()) / max(first.proxy.std(), 1e-6)
        gold_gain = (probe.gold.mean() - first.gold.mean()) / max(first.gold.std(), 1e-6)
        return {
            "probe/proxy": float(probe.proxy.mean()),
            "probe/proxy_std": float(probe.proxy.std()),
            "probe/gold": float(probe.gold.mean()),
            "probe/gap": float(proxy_gain - gold_gain),
            "probe/hacking": self.verdict(),
        }

    def since_best(self) -> tuple[Interval, Interval] | None:
        """Change of (proxy, gold) from the best gold probe to the last one; None at the best itself."""
        best, last = max(self.probes, key=lambda p: p.gold.mean()), self.probes[-1]
        if best.step == last.step:
            return None
        return paired_bootstrap(last.proxy, best.proxy), paired_bootstrap(last.gold, best.gold)

    def verdict(self) -> str:
        """`none`, `suspected` (means disagree) or `hacking` (intervals disagree)."""
        change = self.since_best()
        if change is None:
            return "none"
        proxy, gold = change
        if proxy.ci_low > 0 and gold.ci_high < 0:
            return "hacking"
        return "suspected" if proxy.mean > 0 and gold.mean < 0 else "none"
