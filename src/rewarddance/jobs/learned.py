"""`rewarddance train learned`: trains a learned reward on ratings, also by folds, and measures it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rewarddance.core.device import resolve_device
from rewarddance.core.disk import writing
from rewarddance.core.errors import ConfigError
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.parallel import world_size
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder, environment, write_json
from rewarddance.core.seen import write_seen
from rewarddance.core.statistics import students_interval
from rewarddance.data.parquet import RecordTable
from rewarddance.evaluate.ratings import measure_ratings
from rewarddance.jobs.cross_validate import Fold, check_fold, fold_folder, refuse_known
from rewarddance.jobs.load import find
from rewarddance.jobs.train import load_sets, measured_once, seen_by_backbone
from rewarddance.reward.learned import LearnedJudge, new_transformer
from rewarddance.reward.learned_config import KIND, LearnedConfig, LearnedSpec
from rewarddance.reward.learned_saved import load_learned, save_learned
from rewarddance.reward.learned_training import Embeddings, LearnedTraining, RatedSet, usable
from rewarddance.vlm.token_embedders import load_token_embedder

AVERAGED = ("rating_spearman", "rating_spearman_within")
MAX_HELD_OUT = 1280
"""Largest number of records of each validation set. Five criteria make five records of one prompt."""


def train_learned_from_data(config: LearnedConfig, out: Path, *, resume: bool = False) -> Path:
    """Train on `config.data`, with its held-out files for validation. Returns the judge's folder.

    The figures of the last validation are also in `out/ratings.json`.
    """
    known = seen_by_backbone(config)
    train, validation = load_sets(Path(config.data), config.seed, MAX_HELD_OUT, known)
    rated = RatedSet.of(train)
    held_out = {name: RatedSet.of(table, rated.columns) for name, table in validation.items()}
    return train_learned(config, rated, held_out, out, known=known, resume=resume)


def train_learned(
    config: LearnedConfig,
    train: RatedSet,
    held_out: dict[str, RatedSet],
    out: Path,
    *,
    known: frozenset[str] | None = frozenset(),
    embeddings: Embeddings | None = None,
    resume: bool = False,
    title: str = "learned reward",
) -> Path:
    """Train and save to `out/model`.

    Args:
        held_out: named sets, measured every `loop.validate_every` steps.
        known: fingerprints of the prompts that the embedder was trained on as a judge (`core/seen.py`); None if they
            are not known.
        embeddings: shared by several trainings with the same embedder.

    Returns:
        The judge's folder, for `load_judge`.

    Raises:
        ConfigError: several processes.
    """
    if world_size() > 1:
        raise ConfigError("train learned: takes one process; the transformer is small, and embeddings are kept")
    torch.manual_seed(config.seed)
    spec = LearnedSpec(columns=train.columns, loss=config.loss, shape=config.shape)
    embedder = load_token_embedder(find(config.backbone, "vlm"), resolve_device())
    judge = LearnedJudge(spec, embedder, new_transformer(embedder, spec).train())
    folder = RunFolder(out)
    folder.start(KIND, config, resume=resume, facts={"computes_in": {"judge": judge.precision}})
    loop = Loop(judge.trainable(), config.optim, config.loop, folder)
    if resume:
        loop.resume()
    usable_train, num_long = usable(judge, train)
    run = LearnedTraining(config, judge, usable_train, embeddings or Embeddings())
    say(f"{title}: {len(usable_train):,} prompts with ratings of {', '.join(train.columns)}")
    if num_long or train.num_unrated:
        say(f"{title}: left out {num_long} prompts that are too long and {train.num_unrated} records without ratings")
    measured: dict[str, Any] = {}

    def validate(index: int) -> Metrics:
        with loop.averaged():
            measured.update({name: measured_set(run, rated) for name, rated in held_out.items()})
        return {f"{name}/{k}": figures[k] for name, figures in measured.items() for k in AVERAGED}

    loop.fit(title, ("loss", "accuracy"), run.step, validate if held_out else None)
    judge.module.eval()
    with writing(out / "model", folder.checkpoints):
        save_learned(judge, out / "model")
        if known is not None:
            write_seen(out / "model", train.table.prompts, known)
    if measured:
        write_json(out / "ratings.json", measured)
    return out / "model"


def measured_set(run: LearnedTraining, rated: RatedSet) -> dict[str, Any]:
    """`measure_ratings` of the judge in training."""
    usable_set, num_long = usable(run.judge, rated)
    predicted = run.all_outputs(usable_set)
    prompts = [e.prompt for e in usable_set.entries]
    figures = measure_ratings(prompts, predicted, [e.ratings for e in usable_set.entries], usable_set.columns)
    return figures | {"num_prompts": len(usable_set), "num_too_long": num_long}


def measure_learned(judge: LearnedJudge, table: RecordTable) -> dict[str, Any]:
    """`measure_ratings` of a ready judge on the rated records of a table."""
    rated = RatedSet.of(table, judge.spec.columns)
    return measured_set(LearnedTraining(LearnedConfig(), judge, rated, Embeddings(keep_bytes=0)), rated)


def cross_validate_learned(
    config: LearnedConfig, folds: Sequence[Fold], table: RecordTable, out: Path
) -> dict[str, Any]:
    """Train and measure every fold under `out`. Finished folds are kept, stopped ones are resumed.

    Returns:
        Figures of every fold and, of each figure, the mean with Student's 95% interval over folds (rough, because folds
        share most of their training records). Also in `out/cross_validation.json`.

    Raises:
        InputError: the embedder is a judge that knows prompts of the folds.
    """
    known = seen_by_backbone(config)
    refuse_known(config.backbone, table, known)
    embeddings = Embeddings()
    figures: dict[str, Any] = {}
    for i, fold in enumerate(folds, 1):
        title = f"{fold.name} ({i} of {len(folds)})"
        figures[fold.name] = _one_fold(config, fold, table, fold_folder(out, fold), title, known, embeddings)
    means = {name: students_interval([f[name] for f in figures.values()]) for name in AVERAGED}
    result = {"mean": means, "folds": figures, **environment(), "config": config.model_dump(mode="json")}
    write_json(out / "cross_validation.json", result)
    return result


def _one_fold(
    config: LearnedConfig,
    fold: Fold,
    table: RecordTable,
    folder: Path,
    title: str,
    known: frozenset[str] | None,
    embeddings: Embeddings,
) -> dict[str, Any]:
    check_fold(fold, table, folder)
    if (folder / "model" / "judge.json").is_file():
        RunFolder(folder).must_be(KIND, config)
    else:
        resume, train = (folder / "run.json").is_file(), RatedSet.of(table.take(fold.train))
        train_learned(config, train, {}, folder, known=known, embeddings=embeddings, resume=resume, title=title)
    sizes = {"num_train": len(fold.train), "num_held_out": len(fold.held_out)}

    def measure() -> dict[str, Any]:
        return sizes | measure_learned(load_learned(folder / "model"), table.take(fold.held_out))

    return measured_once(folder / "measured.json", measure)
