"""`rewarddance evaluate`: reads a run folder, measures what it trained, writes `evaluation.json` and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from rewarddance.align.config import AlignConfig
from rewarddance.core.errors import RunError
from rewarddance.core.media import Media
from rewarddance.core.monitors import called
from rewarddance.core.progress import progress, tracked
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.statistics import bootstrap, paired_bootstrap
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.evaluate.generator import Samples, compare, diversity, fixed_samples, levels, measure
from rewarddance.jobs.load import find, generator_of, load_generator, load_internvl, load_judge, weights_id
from rewarddance.world.benchmark import benchmark_prompts
from rewarddance.world.oracle import fidelity


def gold(prompt: str, media: Media) -> float:
    """Oracle fidelity of one picture."""
    return fidelity(media.to_numpy(), prompt)


def evaluate_alignment(
    run: Path,
    *,
    num_noises: int = 4,
    num_steps: int | None = None,
    every: int = 1,
    diversity_prompts: int = 60,
    diversity_noises: int = 8,
    seed: int = 0,
    guidance: float | None = None,
) -> dict[str, Any]:
    """Before and after on the benchmark: oracle by category with intervals, proxy reward, diversity, samples.

    `hacking` in the result holds the judge's P(after is better) against the oracle's gain (`monitors.called`).

    Args:
        every: take each `every`-th benchmark prompt (1 takes all 240).
        num_steps, guidance: of the sampling; the run's own when None.
    """
    content = RunFolder(run).read()
    if content["kind"] != "align":
        raise RunError(f"{run}: holds a {content['kind']} run; evaluate alignment runs or judges")
    config = content["config"]
    if config.get("prompts") is not None:
        raise RunError(
            f"{run}: trained on its own prompts, which the oracle does not know; evaluate --prompts FILE asks its judge"
        )
    chosen = benchmark_prompts()[::every]
    categories, prompts = [c for c, _ in chosen], [p for _, p in chosen]
    aligned = Aligned.of_run(run, config, num_steps, guidance)
    generator = aligned.generator
    judge = load_judge(config["judge"], precision="bf16")
    with generator.reference():
        before = aligned.draw("before", prompts, num_noises, seed)
    after = aligned.draw("after", prompts, num_noises, seed)
    gold_before, gold_after = measure(before, gold), measure(after, gold)
    proxy = proxy_reward(judge, after, before, config["criterion"])
    few = prompts[:: max(1, len(prompts) // diversity_prompts)][:diversity_prompts]
    features = vision_features()
    spread = {}
    with generator.reference():
        spread["before"] = diversity(aligned.draw("spread", few, diversity_noises, seed + 1), features)
    spread["after"] = diversity(aligned.draw("spread", few, diversity_noises, seed + 1), features)
    found = {
        "prompts": len(prompts),
        "noises": num_noises,
        "num_steps": aligned.num_steps,
        "guidance": generator.guidance,
        "seed": seed,
        **compare(gold_after, gold_before, categories),
        "proxy": {**bootstrap(proxy).as_dict(), "std": float(proxy.std())},
        "hacking": called(bootstrap(proxy - 0.5), paired_bootstrap(gold_after, gold_before)),
        "diversity": {**spread, "feature_ratio": spread["after"]["feature"] / max(1e-9, spread["before"]["feature"])},
    }
    write_json(run / "evaluation.json", found)
    save_pairs(run / "samples", before, after, gold_before, gold_after, proxy)
    return found


@dataclass(frozen=True)
class Aligned:
    """A run's generator with its adapter, and how it draws: as in the run, unless told otherwise."""

    generator: Tunable
    num_steps: int
    batch: int
    precision: Literal["fp32", "bf16"]

    @classmethod
    def of_run(cls, run: Path, config: Mapping[str, Any], num_steps: int | None, guidance: float | None) -> Aligned:
        own = AlignConfig.model_validate(config)
        asked = own if guidance is None else own.model_copy(update={"guidance": guidance})
        return cls(generator_of(asked, run), num_steps or own.refl.num_steps, own.sample_batch, own.precision)

    def draw(self, title: str, prompts: Sequence[str], noises: int, seed: int) -> Samples:
        """Pictures of every prompt from the same noises, whatever the generator's weights."""
        with progress(f"samples {title}") as report:
            return fixed_samples(
                self.generator, prompts, noises, self.num_steps, seed, report, self.batch, self.precision
            )


def evaluate_generator(
    name: str, *, num_noises: int = 4, num_steps: int = 10, guidance: float = 1.0, every: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Oracle fidelity of a generator of the embedded world on the benchmark, by category with intervals."""
    chosen = benchmark_prompts()[::every]
    generator = load_generator(name, guidance=guidance)
    with progress("samples") as report:
        samples = fixed_samples(generator, [p for _, p in chosen], num_noises, num_steps, seed, report)
    found = levels(measure(samples, gold), [c for c, _ in chosen])
    setting = {"prompts": len(chosen), "noises": num_noises, "num_steps": num_steps, "guidance": guidance}
    return {**setting, "fidelity": {c: i.as_dict() for c, i in found.items()}}


@torch.no_grad()
def proxy_reward(judge: RewardModel, after: Samples, before: Samples, criterion: str) -> np.ndarray:
    """P(after is better than before) by the judge, same prompt and noise, (prompts, noises).

    Of every second noise the picture before is the candidate, so that a lean to one place cancels.
    """
    rows = []
    for p, a, b in zip(after.prompts, after.media, before.media, strict=True):
        asked = [Comparison(p, x, y, criterion) for x, y in zip(a, b, strict=True)]
        rows += [c.swapped() if k % 2 else c for k, c in enumerate(asked)]
    starts = tracked(range(0, len(rows), 256), "after against before, by the judge")
    parts = [judge.judge(rows[i : i + 256]).reward.cpu().numpy() for i in starts]
    found = np.concatenate(parts).reshape(len(after.prompts), -1)
    found[:, 1::2] = 1 - found[:, 1::2]
    return found


def features_id() -> str:
    """Which weights `vision_features` has: a diversity is comparable with those of the same features alone."""
    return weights_id(find("tiny", "vlm"))


def vision_features() -> Any:
    """Mean-pooled states of the embedded VLM's vision tower: features for diversity."""
    backbone = load_internvl("tiny")

    def features(media: Sequence[Media]) -> torch.Tensor:
        pixels = backbone.prepare(list(media)).to(backbone.device)
        out: torch.Tensor = backbone.model.model.vision_tower(pixel_values=pixels).last_hidden_state.mean(1)
        return out

    return features


def save_pairs(
    folder: Path,
    before: Samples,
    after: Samples,
    value_before: np.ndarray,
    value_after: np.ndarray,
    reward: np.ndarray | None = None,
    num: int = 24,
) -> None:
    """First noise of some prompts, before and after, as PNG files with a list of prompts and values (P, noises).

    Args:
        reward: P(after is better) by the judge, (P, noises), where the values are somebody else's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for k in range(0, len(before.prompts), max(1, len(before.prompts) // num)):
        for name, samples in (("before", before), ("after", after)):
            Image.fromarray(samples.media[k][0].to_numpy()).save(folder / f"{k:03d}_{name}.png")
        entry = {"index": k, "prompt": before.prompts[k]}
        entry |= {"before": float(value_before[k, 0]), "after": float(value_after[k, 0])}
        listed.append(entry if reward is None else entry | {"reward": float(reward[k, 0])})
    write_json(folder / "samples.json", listed)
