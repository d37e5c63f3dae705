"""`evaluate --judge`: a judge of the embedded world on prompts that no model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rewarddance.core.config import Precision
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.progress import tracked
from rewarddance.core.protocols import Generator
from rewarddance.core.streams import stream
from rewarddance.core.types import RewardModel
from rewarddance.evaluate.calibration import measured_and_calibrated
from rewarddance.evaluate.judge import measure_margins, spearman
from rewarddance.jobs.load import load_generator, load_one_judge
from rewarddance.lab.blind_spots import judge_blind_spots
from rewarddance.reward.judge import Judge
from rewarddance.search.best_of_n import draw_candidates
from rewarddance.world.build.preferences import (
    PreferencesConfig,
    draw_images,
    embedded_records,
    falling_quality,
    right_pictures,
)
from rewarddance.world.grammar import parse
from rewarddance.world.oracle import fidelity
from rewarddance.world.render import Image
from rewarddance.world.scene import Spec
from rewarddance.world.splits import Split
from rewarddance.world.task import EmbeddedTask

NUM_CANDIDATES, NUM_REFERENCES = 8, 4


def benchmark_judge(
    name: str | Path,
    *,
    generator: str = "tiny",
    num_prompts: int = 200,
    every: int = 1,
    seed: int = 0,
    precision: Precision | None = None,
) -> dict[str, Any]:
    """Accuracy on rendered, corrupted and generated pairs, correlation of margins with the oracle, and blind spots.

    Args:
        name: what `load_one_judge` takes.
        num_prompts: prompts in each of the held-out and the out-of-distribution pairs, with four pictures each; the
            generator draws those of 70 in 100 prompts.
        every: use each `every`-th of the 240 benchmark prompts for the correlations. The generator draws 8 candidates
            for each, which are compared with 4 fixed references. In `margins_right` the references are renders that
            fulfil the prompt, so that margins of different prompts are comparable. In `margins` they are renders with 0
            to 3 edits. In `margins_generator` they are the generator's pictures.

    Raises:
        ConfigError: a judge of clips.
    """
    judge = load_one_judge(name, precision=precision)
    if isinstance(judge, Judge) and judge.spec.trained and "picture" not in judge.spec.kinds:
        raise ConfigError(
            f"evaluate --judge {name}: this judge was trained on clips, and the benchmark has pictures; name a folder "
            "of clips with --data, for example one of `rewarddance data build --task t2v`"
        )
    model = load_generator(generator)
    splits: dict[str, Split] = {"id": "held_out", "ood": "ood"}
    figures: dict[str, Any] = {}
    for title, split in splits.items():
        config = PreferencesConfig(seed=seed + 1, split=split, num_prompts=num_prompts)
        drawn = embedded_records(config, draw_images(model))
        records = [next(drawn) for _ in tracked(range(num_prompts), f"pairs {title}")]
        figures[title] = measured_and_calibrated(judge, records)
    edits = judge_blind_spots(judge, seed=seed)
    return {**figures, **margins(judge, model, every, seed), "edits": edits, "computes_in": judge.precision}


@torch.no_grad()
def margins(judge: RewardModel, generator: Generator, every: int, seed: int) -> dict[str, Any]:
    """`measure_margins` on the generator's samples of every `every`-th benchmark prompt, by kind of reference."""
    prompts = [p.text for p in EmbeddedTask().benchmark()[::every]]
    rng = torch.Generator().manual_seed(seed)
    rows: list[list[Media]] = []
    for i in tracked(range(0, len(prompts), 10), "margins"):
        rows += draw_candidates(generator, prompts[i : i + 10], NUM_CANDIDATES + NUM_REFERENCES, rng, 10)
    candidates = [row[:NUM_CANDIDATES] for row in rows]
    truth = np.array([_fidelities(p, row) for p, row in zip(prompts, candidates, strict=True)])
    kinds = {
        "margins_right": _references(prompts, seed, right_pictures),
        "margins": _references(prompts, seed, falling_quality),
        "margins_generator": [row[NUM_CANDIDATES:] for row in rows],
    }
    return {
        name: measure_margins(judge, prompts, candidates, references, truth)
        | {"pooled_ceiling": _ceiling(prompts, references, truth)}
        for name, references in kinds.items()
    }


def _fidelities(prompt: str, media: Sequence[Media]) -> list[float]:
    return [fidelity(m.to_numpy(), prompt) for m in media]


def _references(
    prompts: Sequence[str], seed: int, make: Callable[[Spec, np.random.Generator, int], list[Image]]
) -> list[list[Media]]:
    drawn = [make(parse(p), stream(seed, "references", p), NUM_REFERENCES) for p in prompts]
    return [[Media.from_numpy(x, origin="reference") for x in row] for row in drawn]


def _ceiling(prompts: Sequence[str], references: Sequence[Sequence[Media]], truth: NDArray[np.float64]) -> float:
    """The pooled correlation of an ideal judge. Its margin is the difference to the references' mean fidelity."""
    level = np.array([np.mean(_fidelities(p, row)) for p, row in zip(prompts, references, strict=True)])
    return spearman((truth - level[:, None]).ravel(), truth.ravel())
