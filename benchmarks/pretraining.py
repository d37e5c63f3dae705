"""Pretraining of the embedded VLM on a GPU by size: examples a second, memory, and what the GPU waits for.

Usage: python benchmarks/pretraining.py [--sizes tiny-2m tiny-20m tiny-200m] [--seconds 10] [--vision] [--rehearse]

Every size trains from random weights with the settings of `rewarddance build --size`. `--rehearse` runs three small
steps on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rewarddance.core.device import num_parameters, resolve_device
from rewarddance.core.loop import Loop, Metrics, as_numbers
from rewarddance.core.loop_config import LoopConfig
from rewarddance.core.prefetch import Feed, num_workers
from rewarddance.core.runs import RunFolder
from rewarddance.world.build.large_batches import vision_settings, vlm_settings
from rewarddance.world.build.tiny_vlm import SIZES, Size, new_tokenizer, new_vlm
from rewarddance.world.build.vision import Heads, VisionTraining
from rewarddance.world.build.vlm import VlmTraining

WARM_UP = 4
ENDLESS = LoopConfig(num_steps=1_000_000)
HEAD = "| part | size | parameters | batch | examples/s | step | waiting for data | without waiting | peak memory | "
HEAD += "steps in ten minutes | loss, first and last |"


@contextmanager
def vlm(size: str, args: argparse.Namespace) -> Iterator[tuple[VlmTraining, int]]:
    """A VLM's training, and the examples of its step."""
    device = resolve_device(args.device)
    config = vlm_settings(size, ENDLESS.num_steps, large=True, device=args.device, workers=args.workers)
    changes = {"loop": ENDLESS, "batch_size": args.batch_size or config.batch_size}
    changes["micro_batch"] = args.micro_batch or config.micro_batch
    config = config.model_copy(update=changes)
    tokenizer = new_tokenizer()
    model = new_vlm(size, tokenizer).to(device)
    loop = Loop({"vlm": model}, config.optim, config.loop, RunFolder(Path(tempfile.mkdtemp())))
    with VlmTraining(config, model, tokenizer, loop) as run:
        yield run, config.batch_size


@contextmanager
def vision(size: str, args: argparse.Namespace) -> Iterator[tuple[VisionTraining, int]]:
    """A vision tower's training, and the examples of its step."""
    device = resolve_device(args.device)
    config = vision_settings(size, ENDLESS.num_steps, large=True, device=args.device, workers=args.workers)
    config = config.model_copy(update={"loop": ENDLESS, "batch_size": args.batch_size or config.batch_size})
    tower = new_vlm(size, new_tokenizer()).model.vision_tower.train().to(device)
    heads = Heads(SIZES[size].vision_width).to(device)
    folder = RunFolder(Path(tempfile.mkdtemp()))
    loop = Loop({"vision": tower, "heads": heads}, config.optim, config.loop, folder)
    with VisionTraining(config, tower, heads, loop) as run:
        yield run, config.batch_size


def measure(
    step: Callable[[int], Metrics], loop: Loop, feed: Feed[object], seconds: float, most: int
) -> tuple[list[float], float, list[float]]:
    """Seconds of every step, the share of them that waited for data, and the losses."""
    on_gpu = torch.cuda.is_available()
    times: list[float] = []
    losses: list[float] = []
    began = waited = 0.0
    while True:
        if loop.step == min(WARM_UP, most - 1):
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            began, waited = time.perf_counter(), feed.waited
            times.clear()
        start = time.perf_counter()
        metrics = step(loop.step)
        loop.update()
        losses.append(as_numbers(metrics)["loss"])
        loop.step += 1
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if loop.step >= most or (began and time.perf_counter() - began > seconds):
            break
    return times, (feed.waited - waited) / sum(times), losses


def line(part: str, size: str, args: argparse.Namespace) -> str:
    """One row of the table."""
    began = time.perf_counter()
    with {"vlm": vlm, "vision": vision}[part](size, args) as (run, batch):
        num = num_parameters(*run.loop.modules.values())
        built = time.perf_counter() - began
        times, waiting, losses = measure(run.step, run.loop, run.feed, args.seconds, args.most)
        total = sum(times)
        # the mean, because steps that wait for data and steps that find some alternate
        each = total / len(times)
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        print(
            f"{part} {size}: built in {built:.0f} s, {len(times)} steps measured in {total:.1f} s, median step "
            f"{statistics.median(times) * 1e3:.0f} ms, {run.feed.workers} workers, {run.computed}",
            flush=True,
        )
    speed = batch / each
    return (
        f"| {part} | {size} | {num / 1e6:.1f}M | {batch} | {speed:,.0f} | {each * 1e3:.0f} ms | {waiting:.0%} | "
        f"{speed / max(1e-9, 1 - waiting):,.0f} | {peak:.1f} GiB | {600 / each:,.0f} | "
        f"{losses[0]:.2f}, {losses[-1]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny-2m", "tiny-20m", "tiny-200m"])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each size, after the first steps")
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--vision", action="store_true", help="measure the vision tower's pretraining too")
    parser.add_argument("--rehearse", action="store_true", help="three small steps on the CPU")
    args = parser.parse_args()
    args.most = ENDLESS.num_steps
    if args.rehearse:
        SIZES["rehearsal"] = Size(64, 2, 64, 2, 2)
        args.sizes, args.device, args.most, args.batch_size = ["rehearsal"], "cpu", 3, 8
    elif not torch.cuda.is_available():
        print("no CUDA device: nothing was measured (--rehearse runs a few small steps on the CPU)")
        return
    device = resolve_device(args.device)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}, {num_workers(args.workers, device)} workers", flush=True)
    rows = [HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    for size in args.sizes:
        for part in ("vision", "vlm") if args.vision or args.rehearse else ("vlm",):
            rows.append(line(part, size, args))
            if device.type == "cuda":
                torch.cuda.empty_cache()
    print("\n".join(rows))


if __name__ == "__main__":
    main()
