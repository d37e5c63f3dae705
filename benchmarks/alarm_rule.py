"""When the alarm would have gone off in finished alignment runs, by today's rule and by one that alarms more easily.

Reads the proxy and gold values of all probes from the newest checkpoint of every run. Nothing is trained or judged. An
alarm in a run that ends with a better gold value than it began with is false. `share` repeats this for random draws of
the prompts and gives the share of draws with an alarm. It shows the effect of fewer probe prompts.

`--flat` needs no runs. It simulates runs in which the proxy rises and the gold standard has nothing but noise. It gives
the share of them with an alarm. The noise of successive probes is independent, or that of a random walk.

Usage: python benchmarks/alarm_rule.py RUN... [--prompts 40] [--draws 400]
       python benchmarks/alarm_rule.py --flat [--draws 400]
"""

import argparse
from pathlib import Path

import numpy as np

from rewarddance.core.checkpoint import load_checkpoint
from rewarddance.core.errors import RunError
from rewarddance.core.monitors import RULE, AlarmRule, ProbeResult, comparable, find_alarm

RULES = {"one limit": AlarmRule(fall_alone=RULE.fall), "today": RULE}
"""`one limit`: a fall has the same limit in standard deviations whether the proxy rises or not."""


def stored_probes(run: Path) -> list[ProbeResult]:
    """The probes of a run, without the prompts for which any probe has a refused value."""
    checkpoint = load_checkpoint(run / "checkpoints")
    tensors = {} if checkpoint is None else checkpoint.part("extra")
    if checkpoint is None or "probe_gold" not in tensors:
        raise RunError(f"{run}: no checkpoint with probes of a gold standard")
    proxy, gold = (tensors[name].numpy() for name in ("probe_proxy", "probe_gold"))
    steps = checkpoint.state["extra"]["probe_steps"]
    return comparable([ProbeResult(*probe) for probe in zip(steps, proxy, gold, strict=True)])


def first_alarm(probes: list[ProbeResult], rule: AlarmRule) -> tuple[int, str, float] | None:
    """Step and kind of the first alarm, and the largest fall of the gold standard up to there; None without one."""
    largest = best = -np.inf
    for i, probe in enumerate(probes):
        best = max(best, probe.gold.mean())
        largest = max(largest, best - probe.gold.mean())
        if (alarm := find_alarm(probes[: i + 1], rule)) is not None:
            return probe.step, alarm.kind, float(largest)
    return None


def share_with_alarm(probes: list[ProbeResult], rule: AlarmRule, num_prompts: int, draws: int) -> float:
    """Share of draws of `num_prompts` different prompts in which the alarm goes off at least once."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(draws):
        rows = rng.permutation(len(probes[0].gold))[:num_prompts]
        alarms += first_alarm([ProbeResult(p.step, p.proxy[rows], p.gold[rows]) for p in probes], rule) is not None
    return alarms / draws


def flat_share(num_prompts: int, num_probes: int, walk: bool, rule: AlarmRule, draws: int) -> float:
    """Share of simulated runs with an alarm. Gold values differ by 0.33 between samples, and a probe adds noise."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(draws):
        noise = rng.normal(0, 0.05 if walk else 0.1, (num_probes, num_prompts, 2))
        golds = rng.normal(0, 0.33, (num_prompts, 2)) + (noise.cumsum(0) if walk else noise)
        probes = [ProbeResult(k, np.full(gold.shape, 0.5 + 0.01 * k), gold) for k, gold in enumerate(golds)]
        alarms += any(find_alarm(probes[:n], rule) is not None for n in range(2, num_probes + 1))
    return alarms / draws


def print_flat(draws: int) -> None:
    for walk in (False, True):
        for num_prompts in (40, 80, 160):
            shares = [flat_share(num_prompts, n, walk, RULE, draws) for n in (10, 20)]
            noise = "random walk" if walk else "independent"
            print(f"{noise}, {num_prompts} prompts: 10 probes {shares[0]:.3f}, 20 probes {shares[1]:.3f}", flush=True)


def print_runs(runs: list[Path], num_prompts: int, draws: int) -> None:
    false, shares, better = dict.fromkeys(RULES, 0), {name: [] for name in RULES}, 0
    for run in runs:
        probes = stored_probes(run)
        change = probes[-1].gold.mean() - probes[0].gold.mean()
        better += change > 0
        print(f"{run}: {len(probes)} probes of {len(probes[0].gold)} prompts, gold {change:+.3f} at the end")
        for name, rule in RULES.items():
            alarm, share = first_alarm(probes, rule), share_with_alarm(probes, rule, num_prompts, draws)
            text = "none" if alarm is None else f"step {alarm[0]}, {alarm[1]}, largest fall {alarm[2]:.3f}"
            print(f"  {name}: first alarm {text}; with {num_prompts} random prompts, share {share:.3f}")
            if change > 0:
                false[name] += alarm is not None
                shares[name].append(share)
    for name in RULES:
        mean = np.mean(shares[name]) if better else float("nan")
        print(f"{name}: {false[name]} false alarms in {better} runs that end better; mean share {mean:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--draws", type=int, default=400)
    args = parser.parse_args()
    if args.flat:
        print_flat(args.draws)
    elif args.runs:
        print_runs(args.runs, args.prompts, args.draws)
    else:
        parser.error("name runs, or --flat")


if __name__ == "__main__":
    main()
