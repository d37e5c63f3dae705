"""Pictures a second of a training step of NFT and GRPO, with and without shared prefixes of the judge's questions.

A step draws groups of pictures, asks the judge, and computes the gradients of one update. `without` runs every question
in full. Both ways encode each distinct picture once, and their scores must agree. The models are the shipped ones in
fp32. The groups have `--group` pictures, and NFT has the settings of its recipe.

Usage: python benchmarks/policy_step.py [--prompts 4] [--group 8] [--rounds 5]
"""

import argparse
import statistics
import sys
import time

import torch
from support.questions import Unshared

from rewarddance import load_generator, load_judge
from rewarddance.align.algorithms import ALGORITHMS
from rewarddance.align.config import AlignConfig
from rewarddance.align.rollouts import Rollouts
from rewarddance.align.scoring import group_advantages, score_groups
from rewarddance.core.config import load_recipe, parse_config
from rewarddance.core.runs import environment
from rewarddance.reward.judge import Judge
from rewarddance.world.benchmark import benchmark_prompts

RUNS = (("nft", "pointwise"), ("nft", "round_robin"), ("grpo", "pointwise"), ("grpo", "round_robin"))
NAMES = {"pointwise": "one by one", "round_robin": "all pairs"}


def judges() -> dict[str, Judge]:
    """The shipped judge twice: as it is, and without shared prefixes."""
    ways = {"with": load_judge("tiny", precision="fp32"), "without": load_judge("tiny", precision="fp32")}
    single = ways["without"].single
    single.engine = Unshared(single.engine.backbone)
    for judge in ways.values():
        judge.engine.backbone.module.requires_grad_(False)
    return ways


def scores_of(judge: Judge, rollouts: Rollouts, score: str) -> torch.Tensor:
    return score_groups(judge, rollouts.prompts, rollouts.pictures, score, "fidelity").values


def measure(name: str, score: str, ways: dict[str, Judge], args: argparse.Namespace) -> float:
    """Print the seconds of every part of a step; return the largest difference of scores between both ways."""
    recipe = load_recipe("recipes/tiny/nft.yaml") | {"algorithm": name, "batch_size": args.prompts * args.group}
    recipe["rollout"] = recipe["rollout"] | {"group_size": args.group, "score": score}
    if name == "grpo":
        recipe["rollout"].pop("times")
    config = parse_config(AlignConfig, recipe, "recipes/tiny/nft.yaml")
    generator = load_generator("tiny", precision="fp32")
    generator.add_lora(config.lora_rank, config.lora_alpha)
    prompts = [text for _, text in benchmark_prompts()[: args.prompts]]
    algorithm = ALGORITHMS[name](config, generator, len(prompts))
    seconds: dict[str, list[float]] = {part: [] for part in ("draw", "with", "without", "update")}
    apart = 0.0
    for i in range(args.rounds + 1):
        marks, values = [time.perf_counter()], []
        rollouts = algorithm.draw(prompts, range(len(prompts)), i)
        marks.append(time.perf_counter())
        for judge in ways.values():
            values.append(scores_of(judge, rollouts, score))
            marks.append(time.perf_counter())
        advantages, counts = group_advantages(values[0], 0.0, config.rollout.clip_advantage)
        algorithm.loss(rollouts, advantages, i, 0, counts)["loss"].backward()
        marks.append(time.perf_counter())
        apart = max(apart, float((values[0] - values[1]).abs().max()))
        if i > 0:  # the first round warms up
            for part, begin, end in zip(seconds, marks, marks[1:], strict=False):
                seconds[part].append(end - begin)
    took = {part: statistics.median(values) for part, values in seconds.items()}
    rest, num = took["draw"] + took["update"], args.prompts * args.group
    per_second = {way: num / (rest + took[way]) for way in ways}
    print(
        f"{name}, {NAMES[score]}: {per_second['with']:.1f} pictures/s with shared prefixes and "
        f"{per_second['without']:.1f} without ({per_second['with'] / per_second['without']:.2f}x); seconds: drawing "
        f"{took['draw']:.2f}, judge {took['with']:.2f} and {took['without']:.2f}, update {took['update']:.2f}",
        flush=True,
    )
    return apart


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(environment()["hardware"], f"threads {torch.get_num_threads()}, torch {torch.__version__}, fp32,", vars(args))
    ways = judges()
    apart = max(measure(name, score, ways, args) for name, score in RUNS)
    print(f"largest difference of a score: {apart:.1e}")
    return int(apart > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
