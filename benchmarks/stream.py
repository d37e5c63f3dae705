"""Memory of `judge()` over a long list in one call, without its pictures: for 1,000 comparisons and for more.

Usage: python benchmarks/stream.py [--comparisons 100000] [--judge tiny]

Every reference has eight candidates, judged in both orders. All pictures are different.
"""

import argparse
import time

import torch
from support.questions import PROMPT, pictures

from rewarddance import load_judge
from rewarddance.core.memory import peak_resident_mib, reset_peak
from rewarddance.core.runs import environment
from rewarddance.core.types import Comparison

FEW, CANDIDATES = 1_000, 8


def new_comparisons(num: int) -> list[Comparison]:
    """Comparisons over about 9/8 as many pictures of 32x32."""
    comparisons: list[Comparison] = []
    for group in range(-(-num // CANDIDATES)):
        reference, *candidates = pictures(1 + CANDIDATES, 32, seed=group)
        comparisons += [Comparison(f"{PROMPT} {group % 500}", c, reference, "fidelity") for c in candidates]
    return comparisons[:num]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=2_000)
    parser.add_argument("--judge", default="tiny")
    args = parser.parse_args()
    judge = load_judge(args.judge)
    threads = torch.get_num_threads()
    print(environment()["hardware"], f"threads {threads}, torch {torch.__version__}, judge {args.judge}")
    judge.judge(new_comparisons(CANDIDATES))  # builds what is kept between calls
    reset_peak()
    before = peak_resident_mib()
    for num in (FEW, args.comparisons):
        comparisons = new_comparisons(num)
        picture_bytes = {
            id(m): m.frames.nbytes for c in comparisons for m in (c.candidate, c.reference) if m is not None
        }
        began = time.perf_counter()
        with torch.no_grad():
            verdict = judge.judge(comparisons)
        seconds = time.perf_counter() - began
        pictures_mib = sum(picture_bytes.values()) / 2**20
        used_mib = peak_resident_mib() - before - pictures_mib
        pictures_used = f"{len(picture_bytes):,} pictures ({pictures_mib:,.0f} MiB)"
        print(
            f"{len(verdict.reward):,} comparisons in one call: {used_mib:,.0f} MiB beside {pictures_used}; "
            f"{num / seconds:.0f}/s",
            flush=True,
        )
        del comparisons, picture_bytes


if __name__ == "__main__":
    main()
