"""`rewarddance evaluate RUN --prompts FILE`: where there is no oracle, the judge compares before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rewarddance.core.errors import RunError
from rewarddance.core.media import Media
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.seen import fingerprint, read_seen
from rewarddance.core.statistics import bootstrap, paired_bootstrap
from rewarddance.evaluate.generator import diversity
from rewarddance.jobs.align_names import read_prompts
from rewarddance.jobs.evaluate import Aligned, proxy_reward, save_pairs
from rewarddance.jobs.load import find, load_judge
from rewarddance.reward.checkpoint import Judge


def evaluate_on_prompts(
    run: Path,
    file: Path,
    *,
    judge: str | None = None,
    num_noises: int = 4,
    num_steps: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
) -> dict[str, Any]:
    """Before and after on a file of prompts, by a judge; writes `evaluation_prompts.json` and samples into the run.

    The judge that trained a generator cannot tell whether it is being hacked: name another one, look at the pictures.

    Args:
        judge: whose verdict counts; the run's own when None.
        num_steps, guidance: of the sampling; the run's own when None.

    Returns:
        win_rate: P(after is better than before), same prompt and noise, with a 95% interval over prompts; same_judge:
        is it the one that the generator was trained with; trained_on: share of the prompts that were trained on, None
        where the run did not write them down; diversity. With another judge also training_judge: the win rate by the
        one that trained, overrated: how many more wins (P > 0.5) it sees than the other (paired, with an interval), and
        hacking: `none`, `suspected` (it sees a gain and the other does not) or `hacking` (the other sees a loss; both
        intervals are clear of one half).
    """
    content = RunFolder(run).read()
    if content["kind"] != "align":
        raise RunError(f"{run}: holds a {content['kind']} run; prompts are for alignment runs")
    config = content["config"]
    prompts, _ = read_prompts(file)
    aligned = Aligned.of_run(run, config, num_steps, guidance)
    generator = aligned.generator
    ready = load_judge(judge or config["judge"], precision="bf16")
    with generator.reference():
        before = aligned.draw("before", prompts, num_noises, seed)
    after = aligned.draw("after", prompts, num_noises, seed)
    wins = proxy_reward(ready, after, before, ready.own_or(config["criterion"]))
    seen = read_seen(run / "adapter")
    features = judge_features(ready)
    spread = {"before": diversity(before, features), "after": diversity(after, features)} if num_noises > 1 else None
    found: dict[str, Any] = {
        "prompts": len(prompts),
        "noises": num_noises,
        "num_steps": aligned.num_steps,
        "guidance": generator.guidance,
        "judge": judge or config["judge"],
        "same_judge": judge is None or find(judge, "judge").resolve() == find(config["judge"], "judge").resolve(),
        "trained_on": None if seen is None else float(np.mean([fingerprint(p) in seen for p in prompts])),
        "win_rate": bootstrap(wins).as_dict(),
        "diversity": spread,
    }
    write_json(run / "evaluation_prompts.json", found)
    save_pairs(run / "samples_prompts", before, after, 1 - wins, wins)
    if not found["same_judge"]:
        del ready, features, generator, aligned  # room for the next judge
        own = proxy_reward(load_judge(config["judge"], precision="bf16"), after, before, config["criterion"])
        found |= held_against(own, wins)
        write_json(run / "evaluation_prompts.json", found)
    return found


def held_against(own: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, Any]:
    """The training judge's P(after is better) beside another's, (prompts, noises) each."""
    mine, theirs = bootstrap(own), bootstrap(other)
    verdict = "none"
    if mine.ci_low > 0.5:
        verdict = "hacking" if theirs.ci_high < 0.5 else "suspected" if theirs.mean <= 0.5 else "none"
    return {
        "training_judge": mine.as_dict(),
        "overrated": paired_bootstrap(_won(own), _won(other)).as_dict(),
        "hacking": verdict,
    }


def _won(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """1, 0 or (exactly one half) 0.5: judges are sure to different degrees, but all have a sign."""
    return (np.sign(wins - 0.5) + 1) / 2


def judge_features(judge: Judge) -> Any:
    """Mean image tokens of the judge's own eyes: features for diversity of pictures of any kind."""
    backbone = judge.engine.backbone

    @torch.no_grad()
    def features(media: Sequence[Media]) -> torch.Tensor:
        return torch.stack([backbone.see([(m, 0)]).mean(0) for m in media])

    return features
