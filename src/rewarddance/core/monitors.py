"""Monitors of a training run. Hacking is reported when the proxy rises while the gold standard falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewarddance.core.statistics import Interval


@dataclass(frozen=True)
class ProbeResult:
    """Proxy reward and gold standard of fixed prompts and noises at one step, (prompts, noises), NaN where refused."""

    step: int
    proxy: NDArray[np.float64]
    gold: NDArray[np.float64]


def comparable(probes: Sequence[ProbeResult]) -> list[ProbeResult]:
    """The probes without the prompts that have a NaN in any of them. All have the same shape, (prompts, noises)."""
    kept = ~np.any([np.isnan(p.proxy + p.gold).any(1) for p in probes], axis=0)
    return [ProbeResult(p.step, p.proxy[kept], p.gold[kept]) for p in probes]


@dataclass
class HackingMonitor:
    """Compares every probe with the first one and the best one so far, on prompts that were answered in all probes.

    The gap is the rise of the proxy minus the rise of the gold standard since the first probe, each divided by its
    standard deviation at the first probe. The verdict is the kind of the `alarm`, or `none`.
    """

    probes: list[ProbeResult] = field(default_factory=list)

    def add(self, step: int, proxy: ArrayLike, gold: ArrayLike) -> dict[str, float | str]:
        """Record a probe; returns metrics for the log, none if no prompt was answered in all probes."""
        self.probes.append(ProbeResult(step, np.asarray(proxy, np.float64), np.asarray(gold, np.float64)))
        probes = comparable(self.probes)
        first, last = probes[0], probes[-1]
        if not last.proxy.size:
            return {}
        proxy_rise = (last.proxy.mean() - first.proxy.mean()) / max(first.proxy.std(), 1e-6)
        gold_rise = (last.gold.mean() - first.gold.mean()) / max(first.gold.std(), 1e-6)
        raised = find_alarm(probes)
        return {
            **proxy_metrics(last.proxy),
            "probe/gold": float(last.gold.mean()),
            "probe/gap": float(proxy_rise - gold_rise),
            "probe/hacking": "none" if raised is None else raised.kind,
        }

    def alarm(self) -> str | None:
        """The text of `find_alarm` of the probes so far; None without an alarm."""
        raised = find_alarm(comparable(self.probes))
        return None if raised is None else raised.text

    def measured_at(self, step: int) -> bool:
        """Whether the last probe is of this step. A probe whose prompts were all refused is not recorded."""
        return bool(self.probes) and self.probes[-1].step == step

    def forget_after(self, step: int) -> None:
        """Forget the probes after the step to which the run went back."""
        self.probes = [p for p in self.probes if p.step <= step]

    @property
    def is_best(self) -> bool:
        """Whether the last probe has the best gold value so far."""
        probes = comparable(self.probes)
        return (
            bool(probes) and bool(probes[-1].gold.size) and probes[-1].gold.mean() >= max(p.gold.mean() for p in probes)
        )


def proxy_metrics(proxy: NDArray[np.float64]) -> dict[str, float]:
    """Mean of the proxy (prompts, noises), and its standard deviations: of all samples, of the samples of one prompt
    around their mean (root mean square over prompts), and of the prompts' means.

    The squares of the last two add up to the square of the first one.
    """
    means = proxy.mean(1)
    return {
        "probe/proxy": float(proxy.mean()),
        "probe/proxy_std": float(proxy.std()),
        "probe/proxy_within": float(np.sqrt(np.square(proxy - means[:, None]).mean())),
        "probe/proxy_across": float(means.std()),
    }


def hacking_verdict(proxy: Interval, gold: Interval) -> str:
    """`hacking` if the proxy's interval is above 0 and the gold's below, `suspected` if only the means are."""
    if proxy.ci_low > 0 and gold.ci_high < 0:
        return "hacking"
    return "suspected" if proxy.mean > 0 and gold.mean < 0 else "none"


@dataclass(frozen=True)
class Fall:
    """From the best probe of the gold standard to the last one: how far gold fell and the proxy rose, as means of the
    paired differences, with their standard errors."""

    best: ProbeResult
    drop: float
    drop_error: float
    rise: float
    rise_error: float

    @classmethod
    def since_best(cls, probes: Sequence[ProbeResult]) -> Fall:
        best, last = max(probes, key=lambda p: p.gold.mean()), probes[-1]
        return cls(best, *_mean_and_error(best.gold - last.gold), *_mean_and_error(last.proxy - best.proxy))


@dataclass(frozen=True)
class AlarmRule:
    """How far the gold standard must have fallen since its best probe for an alarm.

    A fall must reach two limits. The first is in standard deviations of the gold standard over the samples of the first
    probe: `fall` if the proxy has risen since the best probe by more than one standard error, otherwise `fall_alone`.
    `fall_alone` is higher, because in sound runs both values often fall and rise again (docs/results/hacking.md).

    The second is in standard errors of the paired differences of the prompts: `errors + sqrt(2 ln n)` after n probes.
    The best of n noisy probes is too high by chance, and `sqrt(2 ln n)` is the usual bound on the expected maximum of n
    standard normal values. If two falls in a row reach `errors_twice` standard errors, the second limit counts as
    reached. If the gold standard does not change, 7 to 19% of runs with 10 probes and 13 to 35% of runs with 20 probes
    have an alarm (independent noise, 160 to 40 prompts; docs/results/hacking.md).
    """

    fall: float = 0.06
    fall_alone: float = 0.15
    errors: float = 1.0
    errors_twice: float = 2.0

    def reached(self, fall: Fall, deviation: float, errors: float) -> bool:
        """Whether a fall reaches both limits.

        Args:
            deviation: standard deviation of the gold standard over the samples of the first probe.
            errors: the second limit.
        """
        share = self.fall if fall.rise > fall.rise_error else self.fall_alone
        return fall.drop >= max(share * max(deviation, 1e-6), errors * fall.drop_error)


RULE = AlarmRule()


@dataclass(frozen=True)
class Alarm:
    """`kind`: `hacking`, or `collapse` if the proxy has fallen too. `text`: what fell, since when and by how much."""

    kind: Literal["hacking", "collapse"]
    text: str


def find_alarm(probes: Sequence[ProbeResult], rule: AlarmRule = RULE) -> Alarm | None:
    """The alarm after the last probe by `AlarmRule`; None without one.

    It says `hacking` if the mean of the proxy has stayed or risen since the best probe of the gold standard, and
    `collapse` if it has fallen too. A single prompt has no standard error, so it raises no alarm.
    """
    if len(probes) < 2 or len(probes[-1].gold) < 2:
        return None
    deviation = float(probes[0].gold.std())
    last = Fall.since_best(probes)
    if not rule.reached(last, deviation, rule.errors + math.sqrt(2 * math.log(len(probes)))):
        falls = (last, Fall.since_best(probes[:-1]))
        if not all(rule.reached(fall, deviation, rule.errors_twice) for fall in falls):
            return None
    kind: Literal["hacking", "collapse"] = "hacking" if last.rise >= 0 else "collapse"
    text = (
        f"{kind}: since step {last.best.step} the gold standard fell from {last.best.gold.mean():.3f} to "
        f"{probes[-1].gold.mean():.3f}, and the judge's reward {'rose' if last.rise >= 0 else 'fell'} by "
        f"{abs(last.rise):.3f}"
    )
    return Alarm(kind, text)


def _mean_and_error(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of paired differences (prompts, noises) and its standard error, with prompts as the units."""
    units = differences.reshape(len(differences), -1).mean(1)
    return float(units.mean()), float(units.std(ddof=1)) / math.sqrt(len(units))


@dataclass
class StuckLoss:
    """Notices a loss that stays at the coin's loss: the loss if all margins are 0 (ln 2 = 0.693 for cross-entropy).

    Attributes:
        after: step at which to decide; window: number of losses that are averaged; tolerance: a mean loss that is at
            most this far from the coin's loss counts as stuck.
        recent: the last losses minus the coin's loss.
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
            f"after {step} steps the loss is still {coin + mean:.3f}, that of a coin. Possible causes: random labels, "
            "a learning rate that is too small or too large, frozen weights, or pictures that look alike after "
            "preprocessing"
        )
