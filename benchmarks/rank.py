"""T1: rank 16 candidates against one reference, both orders: the engine over the best padded batches.

Bars: at `2m` strict 2.1x, two_questions 3x; at the widths of 1B 2.5x and 3.3x.

Usage: python benchmarks/rank.py [--shape 2m|1b|internvl3-1b|internvl3-8b] [--rounds N] [--sample N]
       [--device cuda]
"""

from support.compare import begin, compare_by_flags, options
from support.questions import against_one

LAYOUTS = ("strict", "two_questions")


def main() -> None:
    args = options(__doc__).parse_args()
    backbone = begin(args)
    compare_by_flags("T1", backbone, against_one(16, backbone.prepare.height), LAYOUTS, args)


if __name__ == "__main__":
    main()
