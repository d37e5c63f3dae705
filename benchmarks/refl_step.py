"""A ReFL step against a restatement of ImageReward's published step (arXiv 2304.05977), on the embedded models.

The restatement denoises 40 steps without guidance, takes one of the last ten with gradient, predicts the clean picture,
decodes it, and asks the judge by plain padded forward passes of the transformers model. Both compare each picture with
a reference, in both orders. `same steps` runs ours on the same 40 steps and must give the same loss. `recipe` is the
default of `align`: 10 steps, guidance as the recipe has it, and the KL to the frozen policy.

Bars: at most 0.8 of the time and of the peak memory, at equal loss, for `same steps`. The exit status is 1 where one is
missed.

Usage: python benchmarks/refl_step.py [--batch 16] [--rounds 5]
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance import load_generator, load_judge
from rewarddance.align.config import ReflConfig
from rewarddance.align.refl import refl_step
from rewarddance.core.media import Media
from rewarddance.core.protocols import Generator
from rewarddance.core.runs import environment
from rewarddance.core.types import Comparison
from rewarddance.reward.judge import Judge
from rewarddance.reward.layouts import dialogs_of
from rewarddance.vlm.memory import LiveBytes
from rewarddance.world.benchmark import benchmark_prompts

NUM_STEPS, FIRST = 40, 30


def padded_margin(judge: Judge, comparisons: Sequence[Comparison]) -> Tensor:
    """Margins of single forward passes over left-padded dialogs, mean of both orders, (N,)."""
    backbone, single = judge.engine.backbone, judge.single
    both = [*comparisons, *(c.swapped() for c in comparisons)]
    encoded = [backbone.encoder.chat([("user", d)]) for d in dialogs_of(judge.spec.context, both)]
    width = max(len(e.ids) for e in encoded)
    ids = torch.tensor([[0] * (width - len(e.ids)) + list(e.ids) for e in encoded])
    mask = torch.tensor([[0] * (width - len(e.ids)) + [1] * len(e.ids) for e in encoded])
    pixels = backbone.prepare([m for e in encoded for m, _ in e.images])
    states = backbone.model.model(input_ids=ids, attention_mask=mask, pixel_values=pixels, use_cache=False)
    logits = backbone.model.lm_head(states[0][:, -1])
    yes, no = (logits[:, judge.engine.word_ids(w)].logsumexp(-1) for w in single.words)
    first, second = (yes - no).chunk(2)
    return (first - second) / 2 / (judge.spec.calibration.temperature)


def restated(
    generator: Generator, judge: Judge, prompts: Sequence[str], references: Sequence[Media], rng: torch.Generator
) -> Tensor:
    """The published step: its loop and window; one padded pass over the batch, without shared prefixes."""
    condition = generator.condition(prompts)
    index = int(torch.randint(FIRST, NUM_STEPS, (), generator=rng))
    z, times = generator.noise(len(prompts), rng), generator.times(NUM_STEPS).tolist()
    with torch.no_grad():
        for now, after in zip(times[:index], times[1 : index + 1], strict=True):
            z = z + (after - now) * generator.velocity(z, now, condition)
    clean = z - times[index] * generator.velocity(z, times[index], condition)
    pictures = generator.decode(clean)
    asked = [Comparison(p, x, r, "fidelity") for p, x, r in zip(prompts, pictures, references, strict=True)]
    return -F.logsigmoid(padded_margin(judge, asked)).mean()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    generator, judge = load_generator("tiny", precision="fp32"), load_judge("tiny", precision="fp32")
    judge.engine.backbone.module.requires_grad_(False)
    prompts = [text for _, text in benchmark_prompts()[: args.batch]]
    references = generator.sample(prompts, num_steps=10, seed=7)
    generator.add_lora(16, 32.0)
    guidance = generator.guidance
    same = ReflConfig(num_steps=NUM_STEPS, window=(FIRST / NUM_STEPS, 1.0), kl_weight=0.0)

    def ours(config: ReflConfig, scale: float, seed: int) -> Tensor:
        generator.guidance = scale
        rng = torch.Generator().manual_seed(seed)
        return refl_step(generator, judge, prompts, references, config, "fidelity", rng)["loss"]

    def theirs(seed: int) -> Tensor:
        generator.guidance = 1.0
        return restated(generator, judge, prompts, references, torch.Generator().manual_seed(seed))

    ways: dict[str, Callable[[int], Tensor]] = {
        "restated": theirs,
        "same steps": lambda seed: ours(same, 1.0, seed),
        "recipe": lambda seed: ours(ReflConfig(), guidance, seed),
    }
    print(environment()["hardware"], f"threads {torch.get_num_threads()}, torch {torch.__version__}, fp32,", vars(args))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(args.rounds + 1):
        for name, way in random.sample(list(ways.items()), len(ways)):
            began = time.perf_counter()
            loss = way(i)
            loss.backward()
            if i > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
                losses[name].append(loss.item())
    peaks = {}
    for name, way in ways.items():
        live = LiveBytes()
        with live:
            way(0).backward()
        peaks[name] = live.peak
    base = statistics.median(seconds["restated"])
    for name in ways:
        took = statistics.median(seconds[name])
        print(
            f"{name}: {took:.2f} s ({took / base:.2f}x), peak {peaks[name] / 2**20:.0f} MiB "
            f"({peaks[name] / peaks['restated']:.2f}x), mean loss {statistics.mean(losses[name]):.5f}"
        )
    equal = abs(statistics.mean(losses["same steps"]) - statistics.mean(losses["restated"])) < 1e-3
    ratios = statistics.median(seconds["same steps"]) / base, peaks["same steps"] / peaks["restated"]
    return int(not equal or max(ratios) > 0.8)


if __name__ == "__main__":
    sys.exit(main())
