"""T2: round robin of 8 pictures, both orders (56 questions): the engine over the best padded batches.

Bars: at `2m` strict 2.8x, two_questions 3.5x, listwise 4.2x; at the widths of 1B 5.5x, 6.5x, 9x.

Usage: python benchmarks/round_robin.py [--shape 2m|1b|internvl3-1b|internvl3-8b] [--rounds N] [--sample N]
       [--device cuda]
"""

from support.compare import begin, compare_by_flags, options
from support.questions import round_robin

LAYOUTS = ("strict", "two_questions", "listwise")


def main() -> None:
    args = options(__doc__).parse_args()
    backbone = begin(args)
    compare_by_flags("T2", backbone, round_robin(8, backbone.prepare.height), LAYOUTS, args)


if __name__ == "__main__":
    main()
