"""All benchmarks on a GPU, as one table with bars. Weights are random, shapes are those of public checkpoints.

Usage: python benchmarks/gpu.py [--only PART ...] [--tasks T1 T2 T3] [--minutes 6] [--out docs/results/gpu.md]

Parts: engine-1b, engine-8b, lora-8b, refl, refl-flux. A part that does not fit into the minutes is skipped, and the
table says so.
The exit status is 1 where a bar is missed.
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from support.compare import compare
from support.floors import wait
from support.questions import against_one, pictures, round_robin, step_of
from support.real import flux_dev, preset, sd35_medium
from support.shapes import build

from rewarddance.align.config import ReflConfig
from rewarddance.align.refl import refl_step
from rewarddance.core.loop import Loop
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.preferences import Choice, PreferenceRecord, all_pairs
from rewarddance.core.runs import RunFolder
from rewarddance.jobs.plan import Setting, adapters, memory_of
from rewarddance.reward.accumulate import Accumulator
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.judge import new_judge
from rewarddance.vlm.compiled import compile_layers
from rewarddance.vlm.footprint import Pass, empty_model, kept_by, parts_of
from rewarddance.vlm.tuning import add_lora, checkpoint_gradients

CUDA = torch.device("cuda")
VARLEN = os.environ.get("REWARDDANCE_VARLEN") == "1"
"""Measure the engine with flash attention over the nodes in place of flex attention."""
SIDE = 448


@dataclass(frozen=True)
class Line:
    """One figure. `bar` is the goal, "" for figures without one; `reached` is then None."""

    part: str
    what: str
    figure: str
    bar: str = ""
    reached: bool | None = None

    def markdown(self) -> str:
        mark = {None: "", True: "yes", False: "**no**"}[self.reached]
        return f"| {self.part} | {self.what} | {self.figure} | {self.bar} | {mark} |"


BARS = {
    "engine-1b": {
        "T1 strict": 2.5, "T1 two_questions": 3.3, "T2 strict": 4, "T2 two_questions": 5, "T2 listwise": 8,
        "T3 strict": 2.5, "T3 two_questions": 4, "T3 listwise": 6,
    },
}  # fmt: skip
"""Ratios over the best padded batch."""
FLOORS = {"engine-1b": {"T1": 0.35, "T2": 0.35, "T3": 0.35}, "engine-8b": {"T1": 0.7, "T2": 0.7, "T3": 0.5}}
"""Shares of the floor, of the strict layout."""
LAYOUTS = ("strict", "two_questions", "listwise")


def engine(part: str, wanted: Sequence[str]) -> Iterator[Line]:
    """T1 (rank 16 candidates), T2 (round robin of 8) and T3 (a training step), compiled, against compiled baselines."""
    shape, prompts = ("internvl3-1b", 4) if part == "engine-1b" else ("internvl3-8b", 1)
    backbone = build(shape, CUDA)
    backbone.prefers_varlen = VARLEN
    compile_layers(backbone)
    tasks = (
        ("T1", against_one(16, SIDE), LAYOUTS[:2], False),
        ("T2", round_robin(8, SIDE), LAYOUTS, False),
        ("T3", step_of(prompts, SIDE), LAYOUTS, True),
    )
    for task, comparisons, layouts, train in tasks:
        if task not in wanted:
            continue
        if train:
            backbone.module.train()
            if part == "engine-8b":
                checkpoint_gradients(backbone)
        began = time.perf_counter()
        rows = compare(
            task, backbone, comparisons, layouts, batches=(16, 32), rounds=2 if train else 3, train=train, singles=False
        )
        print(f"{part} {task}: {time.perf_counter() - began:.0f} s", flush=True)
        for row in rows:
            what = f"{row.task} {row.layout}"
            bar = BARS.get(part, {}).get(what)
            shown = f"{row.over_padded:.2f}x padded, {row.over_unshared:.2f}x unshared, {row.seconds * 1e3:.0f} ms"
            yield Line(part, what, shown, f"{bar:g}x" if bar else "", None if bar is None else row.over_padded >= bar)
            least = FLOORS[part][task] if row.layout == "strict" else None
            reached = None if least is None else row.floor >= least
            yield Line(
                part, f"{what}, share of the floor", f"{row.floor:.0%}", f"{least:.0%}" if least else "", reached
            )


def lora_8b(part: str, _: Sequence[str]) -> Iterator[Line]:
    """A training step of an 8B judge with adapters: pairs a second, and peak memory against that of `plan`."""
    name, num_records, num_pictures = "internvl3.5-8b", 4, 4
    setting = Setting(trained="adapters", weights="bf16", checkpointing=True, records=num_records)
    backbone = preset(name)
    config = backbone.model.config
    backbone.module.train()
    add_lora(backbone, setting.lora_rank, 2.0 * setting.lora_rank)
    checkpoint_gradients(backbone)
    judge = new_judge(JudgeSpec(precision="bf16"), backbone)
    media = [pictures(num_pictures, SIDE, seed=i) for i in range(num_records)]
    choices = tuple(Choice(i, j, 1.0) for i, j in all_pairs(num_pictures))
    records = [PreferenceRecord(f"r{i}", f"{'a dog ' * 12}{i}", tuple(m), choices) for i, m in enumerate(media)]
    folder = RunFolder(Path(tempfile.mkdtemp()))
    loop = Loop(judge.trainable(), OptimConfig(ema_decay=0.99), LoopConfig(num_steps=9), folder)
    step = Accumulator(judge.single, list(loop.parameters.values()), "generative_pairwise", 0.0, num_records, print)
    seconds = []
    for i in range(4):
        wait(CUDA)
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        step(records, i)
        loop.update()
        wait(CUDA)
        seconds.append(time.perf_counter() - began)
    used = torch.cuda.max_memory_allocated()
    model = empty_model(config)
    tokens = judge.engine.counts.tokens
    kept = kept_by(model, Pass(num_records, num_pictures, 96), torch.bfloat16)
    planned = memory_of(setting, parts_of(model), kept, adapters(config, setting.lora_rank)).total
    pairs = num_records * len(choices)
    yield Line(part, "training, pairs a second", f"{pairs / statistics.median(seconds[1:]):.1f}")
    off = planned / used - 1
    shown = (
        f"{used / 2**30:.1f} GiB, planned {planned / 2**30:.1f} ({off:+.0%}; {tokens} tokens, planned {kept.tokens})"
    )
    yield Line(part, "peak memory", shown, "within 10%", abs(off) <= 0.1)


def refl(part: str, _: Sequence[str]) -> Iterator[Line]:
    """A ReFL step at 512 pixels with an InternVL3-1B judge, with ours and ImageReward's settings.

    The generator has the shape of SD3.5-medium or, for `refl-flux`, of FLUX.1 [dev], whose guidance costs no pass.
    """
    batch, resolution = 4, 512
    flux = part == "refl-flux"
    backbone = build("internvl3-1b", CUDA)
    backbone.module.requires_grad_(False)
    judge = new_judge(JudgeSpec(precision="bf16"), backbone)
    ours = ReflConfig(num_steps=10, window=(0.3, 0.9))
    theirs = ReflConfig(num_steps=40, window=(0.75, 1.0), kl_weight=0.0)
    generator = flux_dev(resolution, 3.5) if flux else sd35_medium(resolution, 4.5)
    generator.add_lora(32, 64.0)
    prompts = [f"a photograph of {i} dogs" for i in range(batch)]
    for what, config, paired, guidance in (
        ("ours", ours, True, 3.5 if flux else 4.5),
        ("ImageReward's", theirs, False, 1.0),
    ):
        generator.guidance = guidance
        references = pictures(batch, resolution, seed=1) if paired else [None] * batch
        seconds = []
        torch.cuda.reset_peak_memory_stats()
        for i in range(4):
            wait(CUDA)
            began = time.perf_counter()
            rng = torch.Generator().manual_seed(i)
            out = refl_step(generator, judge, prompts, references, config, "overall", rng)
            out["loss"].backward()
            generator.transformer.zero_grad(set_to_none=True)
            wait(CUDA)
            seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() / 2**30
        shown = f"{statistics.mean(seconds[1:]):.2f} s, peak {peak:.1f} GiB"
        yield Line(part, f"ReFL step of {batch} pictures, {what}", shown)


PARTS: dict[str, tuple[Callable[[str, Sequence[str]], Iterator[Line]], float]] = {
    "engine-1b": (engine, 2.5),
    "engine-8b": (engine, 2.5),
    "lora-8b": (lora_8b, 0.7),
    "refl": (refl, 1.0),
    "refl-flux": (refl, 1.5),
}
"""Parts, and the minutes that each takes at most."""


BEGIN, END = "<!-- begin of the table -->", "<!-- end of the table -->"


def write_table(page: Path, table: str) -> None:
    """Put the table between the marks of a page. A page without marks gets them at its end."""
    text = page.read_text() if page.is_file() else "# On a GPU\n"
    if BEGIN not in text:
        text += f"\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    if END not in rest:
        rest = f"{END}{rest}"
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--tasks", nargs="+", choices=("T1", "T2", "T3"), default=("T1", "T2", "T3"))
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        return 0
    card = torch.cuda.get_device_name()
    deadline = time.monotonic() + 60 * args.minutes
    lines: list[Line] = []
    for part in args.only:
        run, minutes = PARTS[part]
        if time.monotonic() + 60 * minutes > deadline:
            lines.append(Line(part, "skipped: no time left", ""))
            continue
        try:
            for line in run(part, args.tasks):
                lines.append(line)
                print(line.markdown(), flush=True)
        except Exception as error:  # a failed part must not stop the others
            lines.append(Line(part, "failed", " ".join(str(error).split())[:200], "", False))
            print(lines[-1].markdown(), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    head = f"{card}, torch {torch.__version__}, bf16, random weights, {date.today()}: `make gpu`."
    table = ["| part | what | figure | bar | reached |", "|---|---|---|---|---|", *(x.markdown() for x in lines)]
    text = "# On a GPU\n\n" + head + "\n\n" + "\n".join(table) + "\n"
    if args.out is not None:
        write_table(args.out, head + "\n\n" + "\n".join(table))
    print(text)
    return int(any(x.reached is False for x in lines))


if __name__ == "__main__":
    sys.exit(main())
