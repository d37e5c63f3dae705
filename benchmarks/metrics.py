"""Processor seconds of the distribution metrics in one table of `evaluate --metrics`.

Usage: python benchmarks/metrics.py [--pictures 60 120 240 480] [--dimensions 128]

An interval of a change takes 100 half-samples of two sets, so each metric is computed 200 times. Features are random.
"""

import argparse
import time

import numpy as np

from rewarddance.core.runs import environment
from rewarddance.evaluate.metrics import cmmd, frechet_inception_distance, precision_and_recall
from rewarddance.evaluate.metrics.distributions import polynomial_mmd
from rewarddance.evaluate.metrics.table import HALVES

METRICS = {
    "FID": frechet_inception_distance,
    "KID": polynomial_mmd,
    "CMMD": cmmd,
    "precision and recall": precision_and_recall,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[60, 120, 240, 480])
    parser.add_argument("--dimensions", type=int, default=128)
    args = parser.parse_args()
    print(environment()["hardware"])
    for num in args.pictures:
        rng = np.random.default_rng(0)
        x, y = (rng.normal(size=(num, args.dimensions)) for _ in range(2))
        x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
        for name, metric in METRICS.items():
            began = time.process_time()
            for _ in range(2 * HALVES):
                metric(x, y)
            print(f"{num:>5} pictures  {name:<21} {time.process_time() - began:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
