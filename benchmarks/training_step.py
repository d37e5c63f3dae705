"""T3: a training step, forward and backward, on prompts of 6 pictures, all 30 ordered pairs of each, vision frozen.

Bars: at `2m` strict 2.2x, two_questions 2.7x, listwise 3.5x; at the widths of 1B 3x, 4.8x, 6x.

Usage: python benchmarks/training_step.py [--shape 2m|1b|internvl3-1b|internvl3-8b] [--prompts N] [--rounds N]
       [--sample N] [--device cuda]
"""

from support.compare import begin, compare_by_flags, options
from support.questions import step_of

LAYOUTS = ("strict", "two_questions", "listwise")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=8, help="prompts in the step, of every way")
    args = parser.parse_args()
    backbone = begin(args)
    compare_by_flags("T3", backbone, step_of(args.prompts, backbone.prepare.height), LAYOUTS, args, train=True)


if __name__ == "__main__":
    main()
