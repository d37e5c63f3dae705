"""Time for 64 candidates over time for 8, against one reference in both orders (bar: at most 8.8 times).

Usage: python benchmarks/candidates.py [--shape 2m|1b|internvl3-1b|internvl3-8b] [--rounds N] [--device cuda]
"""

import statistics

import torch
from support.compare import begin, interleaved, options
from support.questions import Ours, against_one

LAYOUTS = ("strict", "two_questions")
FEW, MANY = 8, 64


def main() -> None:
    args = options(__doc__).parse_args()
    backbone = begin(args)
    side = backbone.prepare.height
    for layout in LAYOUTS:
        ways = {str(n): Ours(backbone, layout, against_one(n, side), train=False) for n in (FEW, MANY)}
        with torch.no_grad():
            seconds, _ = interleaved(ways, args.rounds, backbone.device, lambda: None)
        ratio = statistics.median(b / a for a, b in zip(seconds[str(FEW)], seconds[str(MANY)], strict=True))
        print(f"{layout}: {MANY} candidates take {ratio:.2f}x the time of {FEW}", flush=True)


if __name__ == "__main__":
    main()
