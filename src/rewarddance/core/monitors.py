"""Monitors of a training run. Hacking is reported when the proxy rises while the gold standard falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewarddance.core.statistics import Interval, change_from_best, paired_bootstrap


@dataclass(frozen=True)
class ProbeResult:
    """Proxy reward and gold standard of fixed prompts and noises at one step, (prompts, noises), NaN where refused."""

    step: int
    proxy: NDArray[np.float64]
    gold: NDArray[np.float64]


@dataclass
class HackingMonitor:
    """Compares every probe with the first one and with the best one so far, on prompts that were answered in all.

    The gap is the rise of the proxy minus the rise of the gold standard since the first probe, each divided by its
    standard deviation at the first probe. The verdict compares the last probe with the probe of the best gold value
    (`hacking_verdict`).
    """

    probes: list[ProbeResult] = field(default_factory=list)

    def add(self, step: int, proxy: ArrayLike, gold: ArrayLike) -> dict[str, float | str]:
        """Record a probe; returns metrics for the log, none if no prompt was answered in all probes."""
        self.probes.append(ProbeResult(step, np.asarray(proxy, np.float64), np.asarray(gold, np.float64)))
        probes = self._comparable()
        first, last = probes[0], probes[-1]
        if not last.proxy.size:
            return {}
        proxy_rise = (last.proxy.mean() - first.proxy.mean()) / max(first.proxy.std(), 1e-6)
        gold_rise = (last.gold.mean() - first.gold.mean()) / max(first.gold.std(), 1e-6)
        return {
            "probe/proxy": float(last.proxy.mean()),
            "probe/proxy_std": float(last.proxy.std()),
            "probe/gold": float(last.gold.mean()),
            "probe/gap": float(proxy_rise - gold_rise),
            "probe/hacking": self.verdict(),
        }

    def _comparable(self) -> list[ProbeResult]:
        """The probes without the prompts that have a NaN in any of them."""
        values = np.stack([[p.proxy, p.gold] for p in self.probes])
        kept = ~np.isnan(values.reshape(*values.shape[:3], -1)).any((0, 1, 3))
        return [ProbeResult(p.step, p.proxy[kept], p.gold[kept]) for p in self.probes]

    def since_best(self) -> tuple[Interval, Interval] | None:
        """Changes of (proxy, gold) from the best gold probe to the last one; None if the last one is the best.

        The best of many noisy probes is partly luck; the interval of the gold change allows for it.
        """
        probes = self._comparable()
        best, last = max(probes, key=lambda p: p.gold.mean()), probes[-1]
        if best.step == last.step:
            return None
        gold = change_from_best(np.stack([p.gold.reshape(len(p.gold), -1).mean(1) for p in probes]))
        return paired_bootstrap(last.proxy, best.proxy), gold

    def alarm(self) -> str | None:
        """`alarm` of the probes so far."""
        probes = self._comparable() if self.probes else []
        return alarm(probes) if probes and probes[-1].gold.size > 1 else None

    def measured_at(self, step: int) -> bool:
        """Whether the last probe is of this step. A probe whose prompts were all refused is not recorded."""
        return bool(self.probes) and self.probes[-1].step == step

    def forget_after(self, step: int) -> None:
        """Forget the probes after the step to which the run went back."""
        self.probes = [p for p in self.probes if p.step <= step]

    @property
    def is_best(self) -> bool:
        """Whether the last probe has the best gold value so far."""
        probes = self._comparable() if self.probes else []
        return (
            bool(probes) and bool(probes[-1].gold.size) and probes[-1].gold.mean() >= max(p.gold.mean() for p in probes)
        )

    def verdict(self) -> str:
        """`hacking_verdict` of the changes since the best gold probe."""
        changes = self.since_best()
        return "none" if changes is None else hacking_verdict(*changes)


def hacking_verdict(proxy: Interval, gold: Interval) -> str:
    """`hacking` if the proxy's interval is above 0 and the gold's below, `suspected` if only the means are."""
    if proxy.ci_low > 0 and gold.ci_high < 0:
        return "hacking"
    return "suspected" if proxy.mean > 0 and gold.mean < 0 else "none"


FALL = 0.06
"""Fall of the gold standard that raises an alarm, in its standard deviations over the samples of the first probe."""


def alarm(probes: Sequence[ProbeResult], fall: float = FALL) -> str | None:
    """The rule of the alarm, checked after every probe; None without an alarm.

    It goes off if the mean of the gold standard has fallen by `fall` standard deviations since its best probe, and the
    fall is more than one standard error of the paired differences. It says `hacking` if the proxy has stayed or risen
    since then, and `collapse` if the proxy has fallen too.
    """
    if len(probes) < 2:
        return None
    best, last = max(probes, key=lambda p: p.gold.mean()), probes[-1]
    falls = (best.gold - last.gold).reshape(len(last.gold), -1).mean(1)
    unit, error = max(float(probes[0].gold.std()), 1e-6), float(falls.std(ddof=1)) / math.sqrt(len(falls))
    if falls.mean() < max(fall * unit, error):
        return None
    proxy = float(last.proxy.mean() - best.proxy.mean())
    kind = "hacking" if proxy >= 0 else "collapse"
    return (
        f"{kind}: since step {best.step} the gold standard fell from {best.gold.mean():.3f} to {last.gold.mean():.3f}, "
        f"and the judge's reward {'rose' if proxy >= 0 else 'fell'} by {abs(proxy):.3f}"
    )


@dataclass
class StuckLoss:
    """Notices a loss that stays at the loss of margins of 0, a coin's loss (ln 2 = 0.693 for cross-entropy).

    Attributes:
        after: step at which to decide; window: losses that are averaged; tolerance: distance from the coin's loss up
            to which a mean loss counts as stuck.
        recent: the last losses minus the coin's.
    """

    after: int = 200
    window: int = 100
    tolerance: float = 0.01
    recent: list[float] = field(default_factory=list)

    def note(self, step: int, loss: float, coin: float = math.log(2)) -> str | None:
        """A warning at step `after` if the mean of the last `window` losses is the coin's; otherwise None."""
        self.recent = [*self.recent[-(self.window - 1) :], loss - coin]
        mean = sum(self.recent) / len(self.recent)
        if step != self.after or len(self.recent) < self.window or abs(mean) > self.tolerance:
            return None
        return (
            f"after {step} steps the loss is still {coin + mean:.3f}, that of a coin: labels at random, a learning "
            "rate too small or too large, frozen weights, or pictures that look alike after preprocessing"
        )
