"""How good a judge of the embedded world is, on prompts that nobody was trained on: `evaluate --judge`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rewarddance.core.device import autocast
from rewarddance.core.media import Media
from rewarddance.core.progress import progress
from rewarddance.core.protocols import Generator
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.seen import read_seen
from rewarddance.core.streams import stream
from rewarddance.core.types import RewardModel
from rewarddance.jobs.blind_spots import judge_blind_spots
from rewarddance.jobs.build.preferences import PreferencesConfig, embedded_records, generator_draw, ladder, right
from rewarddance.jobs.evaluate import gold
from rewarddance.jobs.load import find, load_generator, load_judge
from rewarddance.jobs.train import held_out_sets
from rewarddance.reward.calibration import measured_and_calibrated
from rewarddance.reward.measure import measure_margins, spearman
from rewarddance.search.best_of_n import draw
from rewarddance.world.benchmark import benchmark_prompts
from rewarddance.world.grammar import parse
from rewarddance.world.render import Image
from rewarddance.world.scene import Spec
from rewarddance.world.splits import Split

NUM_CANDIDATES, NUM_REFERENCES = 8, 4


def benchmark_judge(
    name: str | Path, *, generator: str = "tiny", num_prompts: int = 200, every: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Order of rendered, corrupted and generated pairs, rank correlation of margins with the oracle, and blind spots.

    Args:
        name: what `load_judge` takes.
        num_prompts: prompts in each of the held-out and the out-of-distribution pairs, four pictures each; the
            generator draws those of 70 in 100.
        every: take each `every`-th of the 240 benchmark prompts for the correlations: 8 candidates drawn by the
            generator, against 4 fixed references each. `margins_right` has references that fulfil the prompt
            (renders), so that margins of different prompts mean the same. Those of `margins` are renders from right to
            three edits away, those of `margins_generator` the generator's own: their quality varies with the prompt.
    """
    judge, model = load_judge(name), load_generator(generator)
    splits: dict[str, Split] = {"id": "held_out", "ood": "ood"}
    found: dict[str, Any] = {}
    for title, split in splits.items():
        config = PreferencesConfig(seed=seed + 1, split=split, num_prompts=num_prompts)
        with progress(f"pairs {title}") as report:
            records = []
            for i, record in enumerate(embedded_records(config, generator_draw(model)), 1):
                records.append(record)
                report(i, num_prompts)
        found[title] = measured_and_calibrated(judge, records)
    return {**found, **margins(judge, model, every, seed), "edits": judge_blind_spots(judge, seed=seed)}


def measure_on_data(name: str | Path, folder: Path, seed: int = 0, most: int = 2000) -> dict[str, Any]:
    """A judge on prompts of a data folder that it was not trained on, with calibration (`held_out_sets`).

    Args:
        name: what `load_judge` takes. seed: of the split, for a judge that does not know what it was trained on.
        most: records of each file at most, evenly spread.

    Returns:
        By set the figures of `measure_judge`, calibration, and num_trained_on: records left out because the judge was
        trained on their prompts. chose_by: the set by which the run's best weights were chosen, where they were; its
        figures flatter a little.

    Raises:
        InputError: no such folder, too few prompts, or none that are new to the judge.
    """
    config = RunFolder(Path(name)).read()["config"] if (Path(name) / "run.json").is_file() else {}
    judge, seen = load_judge(name), read_seen(find(name, "judge"))
    sets = held_out_sets(folder, seen, config.get("seed", seed), most)
    found: dict[str, Any] = {
        n: measured_and_calibrated(judge, r) | {"num_trained_on": known} for n, (r, known) in sets.items()
    }
    return found | ({"chose_by": next(iter(found))} if config.get("patience") else {})


@torch.no_grad()
def margins(judge: RewardModel, generator: Generator, every: int, seed: int, num_steps: int = 10) -> dict[str, Any]:
    """`measure_margins` on samples of the generator for every `every`-th benchmark prompt, by kind of reference."""
    prompts = [p for _, p in benchmark_prompts()[::every]]
    rng = torch.Generator().manual_seed(seed)
    with progress("margins") as report, autocast(generator.device):
        rows: list[list[Media]] = []
        for i in range(0, len(prompts), 10):
            rows += draw(generator, prompts[i : i + 10], NUM_CANDIDATES + NUM_REFERENCES, rng, num_steps)
            report(len(rows), len(prompts))
    candidates = [row[:NUM_CANDIDATES] for row in rows]
    truth = np.array([[gold(p, m) for m in row] for p, row in zip(prompts, candidates, strict=True)])
    own = [row[NUM_CANDIDATES:] for row in rows]
    kinds = {
        "margins_right": _references(prompts, seed, right),
        "margins": _references(prompts, seed, ladder),
        "margins_generator": own,
    }
    return {
        name: measure_margins(judge, prompts, candidates, references, truth)
        | {"pooled_ceiling": _ceiling(prompts, references, truth)}
        for name, references in kinds.items()
    }


def _references(
    prompts: Sequence[str], seed: int, make: Callable[[Spec, np.random.Generator, int], list[Image]]
) -> list[list[Media]]:
    drawn = [make(parse(p), stream(seed, "references", p), NUM_REFERENCES) for p in prompts]
    return [[Media.from_numpy(x, origin="reference") for x in row] for row in drawn]


def _ceiling(prompts: Sequence[str], references: Sequence[Sequence[Media]], truth: NDArray[np.float64]) -> float:
    """What a judge would reach whose margin is exactly the difference to the references' mean fidelity."""
    level = np.array([np.mean([gold(p, m) for m in row]) for p, row in zip(prompts, references, strict=True)])
    return spearman((truth - level[:, None]).ravel(), truth.ravel())


def evaluate_judge(run: Path) -> dict[str, Any]:
    """Figures of a judge run on the held-out sets of its data, written to `evaluation.json`."""
    config = RunFolder(run).read()["config"]
    found = measure_on_data(run, run / "data" if config["data"] == "embedded" else Path(config["data"]))
    write_json(run / "evaluation.json", found)
    return found
