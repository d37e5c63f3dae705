"""Interleaved timing of the engine against its baselines, and the lines that say what came out.

The baselines (`baselines.py`) encode every picture of every question and run every dialog whole. At the widths of 1B
without bf16 they take a quarter of an hour a round: `--sample` times some of their batches and multiplies; it is
printed. Share of the floor: time that the linear layers' products on the tree's tokens and the distinct pictures take
at the speed of a large product, over the time taken; in brackets with these products timed as they are, all rows at
once, since narrow ones are slower.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from rewarddance.core.device import resolve_device
from rewarddance.core.memory import keep_freed_memory
from rewarddance.core.runs import environment
from rewarddance.core.types import Comparison
from rewarddance.reward.context import Context
from rewarddance.reward.layouts import dialogs_of
from rewarddance.vlm.internvl import InternVLBackbone
from support.baselines import Decision, Padded
from support.floors import floors, wait
from support.questions import Ours
from support.shapes import SHAPES, batches_of, build


class Way(Protocol):
    """One way to answer all questions. `rows`: which its logits are of (none: it asks otherwise than `strict`)."""

    scale: float
    rows: Sequence[int]

    def __call__(self) -> torch.Tensor: ...


def options(about: str | None) -> argparse.ArgumentParser:
    """What every benchmark of the engine takes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="2m", help="the model (support/shapes.py)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; one more warms up")
    parser.add_argument("--sample", type=int, default=0, help="time so many batches of each baseline, and multiply")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def begin(args: argparse.Namespace) -> InternVLBackbone:
    """Say where and what is measured; build the model."""
    keep_freed_memory()  # helps every way of working
    device = resolve_device(args.device)
    backbone = build(args.shape, device)
    dtype = str(backbone.model.dtype).removeprefix("torch.")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"threads {torch.get_num_threads()}"
    print(environment()["hardware"], f"{where}, torch {torch.__version__}, shape {args.shape} {dtype},", end=" ")
    print(", ".join(f"{k} {v}" for k, v in vars(args).items() if k not in ("shape", "device")), "(sample 0: all)")
    return backbone


def interleaved(
    ways: Mapping[str, Way], rounds: int, device: torch.device, before: Callable[[], object]
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Seconds of every way in every round but the first, scaled to all questions, and what each answered last."""
    seconds: dict[str, list[float]] = {k: [] for k in ways}
    results: dict[str, torch.Tensor] = {}
    for i in range(rounds + 1):
        for name, way in ways.items():
            before()
            wait(device)
            began = time.perf_counter()
            results[name] = way()
            wait(device)
            if i > 0:  # the first round warms up
                seconds[name].append((time.perf_counter() - began) * way.scale)
    return seconds, results


def compare(
    title: str,
    backbone: InternVLBackbone,
    asked: list[Comparison],
    layouts: Sequence[str],
    args: argparse.Namespace,
    *,
    train: bool = False,
) -> None:
    """Time every layout and every baseline on the same questions; print ratios and absolute figures."""
    found: dict[str, Way] = {k: Ours(backbone, k, asked, train=train) for k in layouts}
    dialogs = dialogs_of(Context(), asked)
    for batch in (1, *batches_of(args.shape)):
        name = "one a forward" if batch == 1 else f"padded batches of {batch}"
        found[name] = Padded(backbone, dialogs, batch, sample=args.sample, train=train)
    if not train:
        found["DecisionPipeline"] = Decision(backbone, asked, sample=args.sample)
    with torch.set_grad_enabled(train):
        seconds, results = interleaved(
            found, args.rounds, backbone.device, lambda: backbone.module.zero_grad(set_to_none=True)
        )
    middle = {k: statistics.median(v) for k, v in seconds.items()}
    _report(title, backbone, asked, found, middle, results, train=train)


def _report(
    title: str,
    backbone: InternVLBackbone,
    asked: list[Comparison],
    ways: Mapping[str, Way],
    middle: Mapping[str, float],
    results: Mapping[str, torch.Tensor],
    *,
    train: bool,
) -> None:
    plain = {k: v for k, v in middle.items() if k == "one a forward" or k.startswith("padded")}
    best = min(plain, key=plain.__getitem__)
    worst = max(float((results["strict"][list(ways[k].rows)] - results[k]).abs().max()) for k in plain)
    print(f"{title}: {len(asked)} questions, largest difference of logits {worst:.1e};", end=" ")
    print(f"best of the padded is {best}, {plain[best]:.3f} s, {len(asked) / plain[best]:.1f} questions/s", flush=True)
    for layout, way in ways.items():
        if not isinstance(way, Ours):
            continue
        work, taken = way.engine.work, middle[layout]
        floor, own = floors(backbone, work.tokens, work.images, train=train)
        others = "".join(
            f", over {k} {middle[k] / taken:.2f}x" for k in ("one a forward", "DecisionPipeline") if k in middle
        )
        print(
            f"  {layout}: over best padded batches {plain[best] / taken:.2f}x{others}; {work.tokens} tokens, "
            f"{work.images} pictures, {taken * 1e3:.0f} ms, {len(asked) / taken:.1f} questions/s, "
            f"{work.images / taken:.1f} pictures/s, share of floor {floor / taken:.0%} "
            f"(own products {own / taken:.0%})",
            flush=True,
        )
