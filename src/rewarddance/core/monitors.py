"""What watches a training run. Hacking is called when the proxy rises and the gold standard falls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewarddance.core.statistics import Interval, change_from_best, paired_bootstrap


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
        """Change of (proxy, gold) from the best gold probe to the last one; None at the best itself.

        The best of many noisy probes is partly luck; the interval of the gold standard's change allows for it.
        """
        best, last = max(self.probes, key=lambda p: p.gold.mean()), self.probes[-1]
        if best.step == last.step:
            return None
        gold = change_from_best(np.stack([p.gold.reshape(len(p.gold), -1).mean(1) for p in self.probes]))
        return paired_bootstrap(last.proxy, best.proxy), gold

    def verdict(self) -> str:
        """`called`, of the changes since the best probe; `none` at the best itself."""
        change = self.since_best()
        return "none" if change is None else called(*change)


def called(proxy: Interval, gold: Interval) -> str:
    """Of two rises: `none`, `suspected` (their means disagree) or `hacking` (their intervals do)."""
    if proxy.ci_low > 0 and gold.ci_high < 0:
        return "hacking"
    return "suspected" if proxy.mean > 0 and gold.mean < 0 else "none"


@dataclass
class StuckLoss:
    """Notices a loss that stays where margins of 0 would put it (a cross-entropy at ln 2 = 0.693): a coin's.

    Attributes:
        after: steps after which it speaks; window: steps that it averages; near: how close to a coin's is stuck.
        recent: losses less those of a coin.
    """

    after: int = 200
    window: int = 100
    near: float = 0.01
    recent: list[float] = field(default_factory=list)

    def note(self, step: int, loss: float, coin: float = math.log(2)) -> str | None:
        """A warning at step `after`, once, where the last `window` losses were a coin's on average."""
        self.recent = [*self.recent[-(self.window - 1) :], loss - coin]
        mean = sum(self.recent) / len(self.recent)
        if step != self.after or len(self.recent) < self.window or abs(mean) > self.near:
            return None
        return (
            f"after {step} steps the loss is still {coin + mean:.3f}, that of a coin: labels at random, a learning "
            "rate too small or too large, frozen weights, or pictures that look alike after preprocessing"
        )
