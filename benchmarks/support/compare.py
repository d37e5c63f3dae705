"""Interleaved timing of the engine against its baselines.

The padded baselines (`baselines.py`) encode every picture of every question and run every dialog whole. `unshared` is
the engine without shared prefixes. It encodes each distinct picture once and runs all dialogs whole, in one row without
padding, with the same kernels.

The share of the floor compares two times. The first is what the matrix products of linear layers and attention take at
the speed of one large product (`floors.py`). The second is the measured time. Products count the tree's tokens and the
distinct pictures; in training the language model's count three times.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from support.floors import floor_seconds, wait
from support.questions import Ours
from support.shapes import SHAPES, batches_of, build


class Way(Protocol):
    """One way to answer all questions. `rows`: questions of its logits, none where it words them differently."""

    scale: float
    rows: Sequence[int]

    def __call__(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class Row:
    """Figures of one layout.

    Attributes:
        over_padded: time of the best padded batch size over the engine's time; over_unshared: time of the unshared row
            over the engine's; over_one: time of one question a forward over the engine's.
        floor: share of the floor.
    """

    task: str
    layout: str
    seconds: float
    over_padded: float
    over_unshared: float
    over_one: float | None
    floor: float
    tokens: int
    images: int
    questions: int

    def __str__(self) -> str:
        one = "" if self.over_one is None else f", over one a forward {self.over_one:.2f}x"
        return (
            f"  {self.task} {self.layout}: {self.over_padded:.2f}x the best padded batch, "
            f"{self.over_unshared:.2f}x the unshared row{one}; {self.tokens} tokens, {self.images} pictures, "
            f"{self.seconds * 1e3:.0f} ms, {self.questions / self.seconds:.1f} questions/s, "
            f"{self.floor:.0%} of the floor"
        )


def options(about: str | None) -> argparse.ArgumentParser:
    """The flags of every benchmark of the engine."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="2m", help="the model (support/shapes.py)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; one more warms up")
    parser.add_argument("--sample", type=int, default=0, help="batches of each baseline that are timed; 0 times all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def begin(args: argparse.Namespace) -> InternVLBackbone:
    """Print hardware and settings; build the model."""
    keep_freed_memory()  # makes all ways faster
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
    """Seconds of every way in every round but the first, scaled to all questions, and the last logits of each."""
    seconds: dict[str, list[float]] = {k: [] for k in ways}
    results: dict[str, torch.Tensor] = {}
    for i in range(rounds + 1):
        for name, way in ways.items():
            before()
            wait(device)
            began = time.perf_counter()
            results[name] = way()
            wait(device)
            taken = time.perf_counter() - began
            if i > 0:  # the first round warms up
                seconds[name].append(taken * way.scale)
            elif taken > 5:
                print(f"{name}: warmed up in {taken:.0f} s", flush=True)
    return seconds, results


def compare(
    task: str,
    backbone: InternVLBackbone,
    comparisons: list[Comparison],
    layouts: Sequence[str],
    *,
    batches: Sequence[int],
    rounds: int,
    sample: int = 0,
    train: bool = False,
    singles: bool = True,
) -> list[Row]:
    """Time every layout and every baseline on the same questions.

    Args:
        batches: sizes of padded batches, of which the best counts.
        singles: also one question a forward, and transformers' `DecisionPipeline`.
    """
    ways: dict[str, Way] = {k: Ours(backbone, k, comparisons, train=train) for k in layouts}
    ways["unshared"] = Ours(backbone, "strict", comparisons, train=train, shared=False)
    dialogs = dialogs_of(Context(), comparisons)
    for batch in (*([1] if singles else []), *batches):
        ways[f"padded {batch}"] = Padded(backbone, dialogs, batch, sample=sample, train=train)
    if singles and not train:
        ways["decision"] = Decision(backbone, comparisons, sample=sample)
    with torch.set_grad_enabled(train):
        seconds, results = interleaved(
            ways, rounds, backbone.device, lambda: backbone.module.zero_grad(set_to_none=True)
        )
    medians = {k: statistics.median(v) for k, v in seconds.items()}
    padded = {k: v for k, v in medians.items() if k.startswith("padded")}
    best = min(padded, key=padded.__getitem__)
    worst = max(float((results["strict"][list(ways[k].rows)] - results[k]).abs().max()) for k in padded)
    print(f"{task}: {len(comparisons)} questions, best of the padded: {best}, {padded[best]:.3f} s;", end=" ")
    print(f"largest difference of logits {worst:.1e}", flush=True)
    rows = []
    for layout in layouts:
        way, taken = ways[layout], medians[layout]
        assert isinstance(way, Ours)
        floor = floor_seconds(backbone, way.engine.counts, train=train)
        over_one = medians["padded 1"] / taken if singles else None
        ratios = padded[best] / taken, medians["unshared"] / taken, over_one
        counts = way.engine.counts.tokens, way.engine.counts.images, len(comparisons)
        rows.append(Row(task, layout, taken, *ratios, floor / taken, *counts))
        print(rows[-1], flush=True)
    return rows


def compare_by_flags(task: str, backbone: InternVLBackbone, comparisons: list[Comparison], layouts: Sequence[str],
                     args: argparse.Namespace, *, train: bool = False) -> None:  # fmt: skip
    """`compare` with the options of the command line."""
    batches = batches_of(args.shape)
    compare(task, backbone, comparisons, layouts, batches=batches, rounds=args.rounds, sample=args.sample, train=train)
