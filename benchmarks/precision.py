"""Scoring by a judge in bf16 against fp32: how much faster it is on this CPU, and how far margins move.

The ratio is why `precision: auto` computes small models in fp32 on a CPU. A CPU without AVX512-BF16 emulates bf16, and
`auto` never takes it there; this benchmark computes in it all the same.

Usage: python benchmarks/precision.py [--judge tiny] [--candidates 8] [--rounds 3]
"""

import argparse
import os
import statistics
from pathlib import Path

import torch
from support.compare import interleaved
from support.questions import against_one

from rewarddance import Comparison, Judge, load_judge
from rewarddance.core.device import SWITCH, native_bf16
from rewarddance.core.runs import environment

FLAGS = ("avx512_bf16", "amx_bf16")
"""Flags of CPUs that multiply in bf16 (`/proc/cpuinfo`)."""


class Scoring:
    """One way to score the same questions; a `support.compare.Way`."""

    scale, rows = 1.0, ()

    def __init__(self, judge: Judge, asked: list[Comparison]) -> None:
        self.judge, self.asked = judge, asked

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        return self.judge.judge(self.asked).margin


def flags_of_cpu() -> list[str]:
    """Those of `FLAGS` that this CPU has."""
    info = Path("/proc/cpuinfo")
    words = info.read_text().split() if info.is_file() else []
    return [flag for flag in FLAGS if flag in words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="tiny")
    parser.add_argument("--candidates", type=int, default=8, help="judged against one reference, in both orders")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; one more warms up")
    args = parser.parse_args()
    native = native_bf16("cpu")
    os.environ[SWITCH] = "1"
    native_bf16.cache_clear()
    asked = against_one(args.candidates, 48)
    ways = {
        name: Scoring(load_judge(args.judge, precision=name, device="cpu"), asked)  # type: ignore[arg-type]
        for name in ("fp32", "bf16")
    }
    print(environment()["hardware"], f"threads {torch.get_num_threads()}, torch {torch.__version__}")
    print(f"CPU flags: {', '.join(flags_of_cpu()) or 'neither of ' + ', '.join(FLAGS)}; native bf16: {native}")
    seconds, margins = interleaved(ways, args.rounds, torch.device("cpu"), lambda: None)
    fp32, bf16 = (statistics.median(seconds[name]) for name in ("fp32", "bf16"))
    moved = float((margins["bf16"] - margins["fp32"]).abs().max())
    print(
        f"{len(asked)} questions by {args.judge}: fp32 {fp32 * 1e3:.0f} ms, bf16 {bf16 * 1e3:.0f} ms; "
        f"bf16 is {fp32 / bf16:.2f}x as fast as fp32; margins move by up to {moved:.3f}"
    )


if __name__ == "__main__":
    main()
