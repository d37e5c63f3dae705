"""`rewarddance train`: loads the data and models that the configuration names, then trains a judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rewarddance.core.device import resolve_device
from rewarddance.core.disk import writing
from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.loop import Loop, OnStep
from rewarddance.core.memory import peak_resident_mib, reset_peak
from rewarddance.core.parallel import barrier, is_leader, long_barrier, rank, world_size
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.seen import FILE, fingerprint, read_seen, write_seen
from rewarddance.core.sharding import direct_call
from rewarddance.core.streams import seed_of, stream
from rewarddance.core.trackers import check_trackers
from rewarddance.data.folder import CHANGES_FILE
from rewarddance.data.parquet import RecordTable, split_files
from rewarddance.evaluate.calibration import Choices, calibration_text, final_calibration
from rewarddance.evaluate.judge import measure_judge
from rewarddance.jobs.load import find, load_task, load_to_train
from rewarddance.reward.config import SCALAR, JudgeSpec, columns_of
from rewarddance.reward.judge import Judge, new_judge
from rewarddance.reward.learned_config import LearnedConfig
from rewarddance.reward.saved import labelled_examples, read_spec, save_judge
from rewarddance.reward.scalar import RATE_FACTORS
from rewarddance.reward.train_config import RewardConfig
from rewarddance.reward.training import (
    JudgeTraining,
    criteria_of,
    kinds_of,
    mix_in,
    num_epochs,
    prepare_backbone,
    prompts_of,
    set_aside,
    shard_judge,
    start_ties,
    whole_weights,
)
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.compiled import compile_layers

VALIDATION_SHARE = 0.1
MAX_VALIDATION = 128
"""Largest number of records of each held-out set that are judged at a validation."""


def train_from_data(config: RewardConfig, out: Path, *, resume: bool = False) -> Path:
    """Train on `config.data`. Returns the judge's folder.

    A data folder without held-out files gives a tenth of its prompts to validation.
    """
    check_trackers(config.loop.trackers)
    known = seen_by_backbone(config)
    train, validation = load_sets(data_folder(config, out), config.seed, seen=known)
    if config.context.cot != "none" and not train.has_rationales:
        raise InputError(f"{train.name}: chain of thought needs reasons; `rewarddance data rationales` asks for them")
    warn_of_labels(train)
    if is_leader() and (warning := changed_question(config)):
        say(warning)
    return train_judge(config, load_to_train(config), train, {**validation}, out, known=known, resume=resume)


def _length(num: int, config: RewardConfig) -> str:
    """How long a training on `num` records is, in words."""
    steps, records = (
        f"{config.loop.num_steps:,} steps of {config.prompts_per_step}",
        "record" if num == 1 else "records",
    )
    return f"{steps}: {num_epochs(num, config):.2f} epochs of {num:,} {records}"


def train_judge(
    config: RewardConfig,
    backbone: Backbone,
    train: Sequence[PreferenceRecord],
    validation: dict[str, Sequence[PreferenceRecord]],
    out: Path,
    *,
    known: frozenset[str] | None = frozenset(),
    resume: bool = False,
    title: str = "judge",
    on_step: OnStep | None = None,
) -> Path:
    """Train and save to `out/model`.

    Args:
        validation: named sets, judged every `loop.validate_every` steps; the first one decides early stopping.
        known: fingerprints of the prompts that the backbone was trained on as a judge (`core/seen.py`); None if they
            are not known.

    Returns:
        The judge's folder, for `load_judge`.
    """
    if config.prompts_per_step < world_size():
        raise ConfigError(f"prompts_per_step {config.prompts_per_step}: {world_size()} processes need as many or more")
    prompts = prompts_of(train)
    train, calibration_records, example_records = set_aside(train, config)
    torch.manual_seed(config.seed)
    judge = _new_judge(config, backbone, train, example_records)
    folder = RunFolder(out)
    if is_leader():
        folder.start("judge", config, resume=resume, facts={"computes_in": {"judge": judge.precision}})
    barrier()
    tuner = prepare_backbone(backbone, config)
    if rank():  # adapters must start equal in all processes, dropout must differ
        torch.manual_seed(seed_of(config.seed, "process", rank()))
    forward = shard_judge(judge, config) if config.shard > 1 else direct_call
    compile_layers(backbone, config.compile and config.shard == 1)
    loop = Loop(judge.trainable(), config.optim, config.loop, folder, RATE_FACTORS)
    start = {k: p.detach().clone() for k, p in loop.parameters.items()} if config.start_share else {}
    if resume:
        loop.resume()
    run = JudgeTraining(config, judge, train, validation, loop, forward, measure_judge, title)
    run.set_temperature()
    run.announce(_length(len(train), config))
    run.fit(on_step)
    backbone.module.eval()
    mix_in(start, loop.parameters, config.start_share)
    _calibrate(run, calibration_records)
    weights = whole_weights(judge, config, run.announce) if config.shard > 1 or tuner is not None else None
    if config.shard == 1 and tuner is not None:
        tuner.unload()
    if is_leader():
        with writing(out / "model", folder.checkpoints):
            save_judge(judge, out / "model", weights)
            if known is not None:
                write_seen(out / "model", prompts, known)
    barrier()
    return out / "model"


def _new_judge(
    config: RewardConfig,
    backbone: Backbone,
    train: Sequence[PreferenceRecord],
    example_records: Sequence[PreferenceRecord],
) -> Judge:
    backbone.tile(config.tiles)
    backbone.sample_clips(config.clips)
    kinds = kinds_of(train)
    context = config.context.resolved(clips="clip" in kinds)
    spec = JudgeSpec(
        paradigm=config.paradigm,
        context=context,
        clips=config.clips,
        kinds=kinds,
        columns=columns_of(config.paradigm, context, kinds),
        precision=config.precision,
        tiles=config.tiles,
        criteria=criteria_of(train),
        pointwise=config.pointwise_weight > 0,
        trained=True,
    )
    num, paired = config.context.examples, config.paradigm == "generative_pairwise"
    examples = labelled_examples(example_records, num, paired)
    if len(examples) < num:
        raise InputError(f"context.examples {num}: only {len(examples)} of the records set aside have a clear choice")
    where = resolve_device() if config.shard > 1 else None
    judge = new_judge(spec, backbone, device=where, examples=examples)
    start_ties(judge, train, config)
    return judge


@torch.no_grad()
def _calibrate(run: JudgeTraining, records: Sequence[PreferenceRecord]) -> None:
    """Fit the judge's final temperature on prompts that training did not use. Refused records are left out."""
    if not records or run.config.paradigm == "regression":
        return
    choices = Choices()
    figures = run.measured(records, each=choices.note)
    fitted = final_calibration(choices, figures.get("refused", {}), len(records), run.config.seed)
    run.judge.spec = run.judge.spec.model_copy(update={"calibration": fitted})
    run.announce(calibration_text(fitted))


def seen_by_backbone(config: RewardConfig | LearnedConfig) -> frozenset[str] | None:
    """Fingerprints of the prompts that the backbone was trained on as a judge; none for a VLM that is not a judge.

    None, after a warning, for a judge whose folder does not say.
    """
    folder = find(config.backbone, "vlm")
    if not (folder / "judge.json").is_file():
        return frozenset()
    seen = read_seen(folder)
    if seen is None and is_leader():
        say(f"{config.backbone}: a judge without {FILE}; it may have been trained on prompts that count as held out")
    return seen


def changed_question(config: RewardConfig) -> str | None:
    """A warning if training continues from a judge that was asked another question than the one asked now."""
    folder = find(config.backbone, "vlm")
    if not (folder / "judge.json").is_file():
        return None
    judge = read_spec(folder)
    before, now = judge.context, config.context.resolved()
    keys = [k for k in ("instruction", "layout", "cot") if getattr(before, k) != getattr(now, k)]
    words = [k for k in type(now.words).model_fields if getattr(before.words, k) != getattr(now.words, k)]
    if not keys and not words:
        if config.paradigm in SCALAR or config.temperature in ("fit", judge.temperature):
            return None
        return (
            f"{config.backbone}: a judge whose answers are divided by {judge.temperature:.3g}, now by "
            f"{config.temperature}; `temperature: fit` keeps it about as sure as it is"
        )
    changes = [f"context.{k}: {getattr(before, k)!r}, now {getattr(now, k)!r}" for k in keys]
    changes += [f"words of {k}: {getattr(before.words, k)!r}, now {getattr(now.words, k)!r}" for k in words]
    return f"{config.backbone}: a judge that knows another question and must learn this one ({'; '.join(changes)})"


def data_folder(config: RewardConfig, out: Path) -> Path:
    """Where the data is. The data of a task, such as `embedded`, is built under `out` when it is not there yet."""
    if Path(config.data).is_dir() or config.data != "embedded":
        return Path(config.data)
    folder = out / "data"
    if is_leader() and not (folder / "ood.parquet").is_file():
        load_task(config.data).build_preferences(folder, config.seed)
    long_barrier()
    return folder


def load_sets(
    folder: Path, seed: int, max_records: int = MAX_VALIDATION, seen: frozenset[str] | None = None
) -> tuple[RecordTable, dict[str, RecordTable]]:
    """Training records and named validation sets of a data folder, at most `max_records` records each, evenly spread.

    Args:
        seen: fingerprints of prompts that the model has been trained on already; none of them is for validation.

    Raises:
        InputError: no training file, or too few prompts to hold any out.
    """
    train = RecordTable.open(folder / "train.parquet")
    named = _held_out_files(folder)
    if not named:
        train, held = split_table(train, VALIDATION_SHARE, seed, seen or ())
        named = {"id": held}
    named = {n: _unseen(t, seen)[0] for n, t in named.items()}
    if len(train) == 0:
        raise InputError(f"{folder}: no training records")
    return train, {n: t.spread(max_records) for n, t in named.items()}


def held_out_sets(
    folder: Path, seen: frozenset[str] | None, seed: int, max_records: int
) -> dict[str, tuple[RecordTable, int]]:
    """Named sets of prompts that a judge was not trained on, and how many records of each set were left out.

    A set has at most `max_records` records, evenly spread.

    They are the held-out files of a data folder (with `changes.parquet`). A folder without held-out files is one set.
    If `seen` is not known, the set is the tenth of the prompts that a training with this seed holds out.

    Raises:
        InputError: nothing is left of a set.
    """
    named = _held_out_files(folder)
    if split_files(folder / CHANGES_FILE):
        named["changes"] = RecordTable.open(folder / CHANGES_FILE)
    if not named:
        table = RecordTable.open(folder / "train.parquet")
        named = {"id": split_table(table, VALIDATION_SHARE, seed)[1] if seen is None else table}
    unseen = {name: _unseen(table, seen) for name, table in named.items()}
    return {name: (table.spread(max_records), left_out) for name, (table, left_out) in unseen.items()}


def _held_out_files(folder: Path) -> dict[str, RecordTable]:
    paths = {n: folder / f"{n}.parquet" for n in ("id", "ood")}
    return {n: RecordTable.open(path) for n, path in paths.items() if split_files(path)}


def _unseen(table: RecordTable, seen: frozenset[str] | None) -> tuple[RecordTable, int]:
    """The records whose prompts were not seen, and how many are left out."""
    if not seen:
        return table, 0
    rows = [i for i, p in enumerate(table.prompts) if fingerprint(p) not in seen]
    if not rows:
        raise InputError(f"{table.name}: the judge was trained on every prompt of it; evaluate on other data")
    return table.take(rows), len(table) - len(rows)


def warn_of_labels(table: RecordTable) -> None:
    """Print the warning of `check_labels`.

    Raises:
        InputError: all choices are ties.
    """
    warning = check_labels(table)
    if warning and is_leader():
        say(warning)


def check_labels(table: RecordTable) -> str | None:
    """A warning if every choice prefers the same side.

    Raises:
        InputError: there are no choices, or all are ties.
    """
    labels = table.labels
    if not labels:
        raise InputError(
            f"{table.name}: no choices between pictures; judges learn from prompts with two or more pictures"
        )
    if all(v == 0.5 for v in labels):
        raise InputError(f"{table.name}: {len(labels)} choices, all of them ties; there is nothing to learn")
    sides = {v > 0.5 for v in labels if v != 0.5}
    if len(sides) > 1:
        return None
    side = "first" if sides == {True} else "second"
    return (
        f"{table.name}: every choice names the {side} picture. This is right if the file puts the winner there on "
        "purpose (chosen and rejected); otherwise the label column is broken"
    )


def split_table(
    table: RecordTable, share: float, seed: int, seen: Collection[str] = ()
) -> tuple[RecordTable, RecordTable]:
    """(train, validation) by prompt: all records of one prompt are on the same side.

    Prompts whose fingerprints are in `seen` are never for validation.
    """
    prompts = table.prompts
    distinct = sorted(set(prompts))
    if len(distinct) < 2:
        raise InputError(f"{table.name}: one prompt only; a judge is validated on prompts that it was not trained on")
    num = max(1, int(len(distinct) * share))
    order = (distinct[int(i)] for i in stream(seed, "split").permutation(len(distinct)))
    held = set(islice((p for p in order if fingerprint(p) not in seen), num))
    if not held:
        raise InputError(f"{table.name}: the judge that training continues from knows all its prompts; add others")
    rows = [i for i, p in enumerate(prompts) if p in held]
    return table.take([i for i, p in enumerate(prompts) if p not in held]), table.take(rows)


def train_once(
    config: RewardConfig,
    train: Sequence[PreferenceRecord],
    out: Path,
    load: Callable[[], Backbone],
    title: str,
    known: frozenset[str] | None,
) -> None:
    """Train without validation unless the run is finished; resume it if it was stopped. For studies and folds.

    Peak memory (of the last part, if it was stopped) goes to `trained.json`.

    Args:
        known: as in `train_judge`.

    Raises:
        RunError: the run there was made with another configuration.
        ConfigError: `patience`, which would choose weights by the figures that are reported.
    """
    if config.patience:
        raise ConfigError("patience: folds and studies have no set for early stopping; leave it 0")
    if (out / "model" / "judge.json").is_file():
        RunFolder(out).must_be("judge", config)
        return
    resume = (out / "run.json").is_file()
    barrier()  # every process has looked before the leader writes
    reset_peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    train_judge(config, load(), train, {}, out, known=known, resume=resume, title=title)
    if is_leader():
        write_json(out / "trained.json", {"peak_memory_mib": _peak_memory_mib()})


def _peak_memory_mib() -> float:
    """Peak memory of the GPU if there is one, otherwise of this process."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_resident_mib()


def measured_once(target: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures in a file. If it does not exist, all processes measure together and the leader writes it."""
    exists = target.is_file()
    barrier()  # every process has looked before the leader writes
    if not exists:
        figures = measure()
        if is_leader():
            write_json(target, figures)
    barrier()
    content: dict[str, Any] = json.loads(target.read_text())
    return content
