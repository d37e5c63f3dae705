"""Train a judge on preference records: grouped by prompt, both orders, validated, stopped early, resumable."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewarddance.core.ahead import Ahead
from rewarddance.core.device import resolve_device
from rewarddance.core.errors import ConfigError, InputError, RunError
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.memory import forget_peak, peak_resident_mib
from rewarddance.core.monitors import StuckLoss
from rewarddance.core.parallel import is_leader, rank, wait_for_all, world_size
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import console
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.seen import write_seen
from rewarddance.core.sharding import Inside, gathered, laid_out_like, plainly, shard
from rewarddance.core.streams import seed_of, stream
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.train_reward_config import RewardConfig
from rewarddance.reward.accumulate import Accumulator
from rewarddance.reward.checkpoint import Judge, new_judge, save_judge
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.generative import GenerativeJudge
from rewarddance.reward.measure import measure_judge
from rewarddance.reward.start import fitting_rows, starting_temperature
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.tuning import add_lora, checkpoint_gradients, merged, set_dropout, train_vision

MERGE_LOSS = 0.02
"""Share of the adapters' change (of its norm) that may be rounded away without a word."""


def training_batch(records: Sequence[PreferenceRecord], config: RewardConfig, index: int) -> list[PreferenceRecord]:
    """This process's share of the `prompts_per_step` records of one step; no other record's pictures are decoded.

    A pure function of the seed and the step, so that a resumed run sees the same batches.
    """
    per_epoch = max(1, len(records) // config.prompts_per_step)
    epoch, place = divmod(index, per_epoch)
    order = stream(config.seed, "epoch", epoch).permutation(len(records))
    chosen = order[place * config.prompts_per_step : (place + 1) * config.prompts_per_step]
    batch = [records[int(i)] for i in chosen[rank() :: world_size()]]
    return [at_random(r, config.seed) for r in batch] if config.shuffle_labels else batch


def _hashed(batch: list[PreferenceRecord]) -> list[PreferenceRecord]:
    """With every picture's key computed, which takes as long as decoding it."""
    for record in batch:
        for media in record.media:
            _ = media.key
    return batch


def criteria_of(records: Sequence[PreferenceRecord]) -> tuple[str, ...]:
    """What records are about, the most frequent first; no picture is decoded."""
    names = records.criteria if isinstance(records, RecordTable) else [r.criterion for r in records]
    return tuple(name for name, _ in Counter(names).most_common())


def prompts_of(records: Sequence[PreferenceRecord]) -> list[str]:
    """Prompts of records; no picture is decoded."""
    return records.prompts if isinstance(records, RecordTable) else [r.prompt for r in records]


def at_random(record: PreferenceRecord, seed: int) -> PreferenceRecord:
    """The record with every choice turned round or not by a coin that depends on seed and record alone.

    Ratings change places between its pictures, and reasons, which tell the truth, go.
    """
    rng = stream(seed, "shuffle", record.record_id)
    coins = rng.random(len(record.choices)) < 0.5
    made = [replace(c, label=1 - c.label if turn else c.label) for c, turn in zip(record.choices, coins, strict=True)]
    ratings = None if record.ratings is None else tuple(rng.permutation(record.ratings).tolist())
    return replace(record, choices=tuple(replace(c, rationale=None) for c in made), ratings=ratings)


def _prepare(backbone: Backbone, config: RewardConfig) -> Any:
    """Say what is trained and how; the adapters, where there are any."""
    backbone.module.train()
    backbone.module.requires_grad_(True)
    tuner = None
    if config.lora.rank:
        tuner = add_lora(backbone, config.lora.rank, config.lora.alpha, config.lora.targets, config.dropout)
        if config.lora.vision:
            train_vision(backbone)
    if config.freeze_vision:
        backbone.freeze_vision()
    if config.dropout:
        set_dropout(backbone, config.dropout)
    if config.gradient_checkpointing:
        checkpoint_gradients(backbone)
    return tuner


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
    report: Callable[[int, int, Metrics], None] | None = None,
) -> Path:
    """Train and save to `out/model`.

    Args:
        validation: named sets, scored every `loop.validate_every` steps; the first one decides early stopping.
        known: fingerprints of what the backbone was trained on as a judge (`core/seen.py`); None where nobody knows.

    Returns:
        The judge's folder, for `load_judge`.
    """
    if config.prompts_per_step < world_size():
        raise ConfigError(f"prompts_per_step {config.prompts_per_step}: {world_size()} processes want as many or more")
    folder = RunFolder(out)
    if is_leader():
        folder.start("judge", config, resume=resume)
    wait_for_all()
    torch.manual_seed(config.seed)
    backbone.tile(config.tiles)
    spec = JudgeSpec(
        paradigm=config.paradigm,
        context=config.context,
        precision=config.precision,
        tiles=config.tiles,
        criteria=criteria_of(train),
        trained=True,
    )
    judge = new_judge(spec, backbone)
    tuner = _prepare(backbone, config)
    if rank():  # equal adapters first, then dropout of its own
        torch.manual_seed(seed_of(config.seed, "process", rank()))
    inside = _shard(judge, config) if config.shard > 1 else plainly
    loop = Loop(judge.trainable(), config.optim, config.loop, folder)
    if resume:
        loop.resume()
    run = JudgeRun(config, judge, train, validation, loop, inside, title)
    run.begin_calibrated()
    steps, each = config.loop.num_steps, config.prompts_per_step
    run.announce(f"{steps:,} steps of {each}: {steps * each / max(1, len(train)):.2f} epochs of {len(train):,} records")
    run.fit(report)
    backbone.module.eval()
    weights = _whole_weights(judge, config, run.announce) if config.shard > 1 or tuner is not None else None
    if config.shard == 1 and tuner is not None:
        tuner.unload()
    if is_leader():
        save_judge(judge, out / "model", weights)
        if known is not None:
            write_seen(out / "model", prompts_of(train), known)
    wait_for_all()
    return out / "model"


@dataclass
class JudgeRun:
    """What a training does in a step and at a validation, and when it stops early.

    Attributes:
        inside: how passes through sharded weights are called.
    """

    config: RewardConfig
    judge: Judge
    train: Sequence[PreferenceRecord]
    validation: dict[str, Sequence[PreferenceRecord]]
    loop: Loop
    inside: Inside
    title: str

    def __post_init__(self) -> None:
        config, kept = self.config, self.loop.extra
        self.accumulate = Accumulator(
            self.judge.single,
            list(self.loop.parameters.values()),
            config.paradigm,
            config.label_smoothing,
            config.micro_batch or config.prompts_per_step,
            self.say,
            shuffle=config.context.layout != "strict",
            reason_weight=config.reason_weight,
            reference=config.context.reference,
            inside=self.inside,
        )
        self.asked = self.accumulate.size
        """Records of a pass as configured; what memory made of it is kept for as long as that stays."""
        if kept.get("micro_batch_asked", self.asked) == self.asked:
            self.accumulate.size = min(self.asked, kept.get("micro_batch", self.asked))
        self.stuck = StuckLoss(recent=kept.get("recent_losses", []))
        self.batches = Ahead(lambda index: _hashed(training_batch(self.train, config, index)), config.loop.num_steps)
        self.watched = f"{next(iter(self.validation), None)}/accuracy"
        """The figure that decides early stopping."""
        self.best = self.loop.folder.path / "best.safetensors"

    def begin_calibrated(self) -> None:
        """Give a generative judge its temperature: the configuration's, a resumed run's, or the likeliest one."""
        config, single = self.config, self.judge.single
        if not isinstance(single, GenerativeJudge):
            return
        begun = {"temperature": 1.0} if self.loop.step else {"temperature": config.temperature}  # before there was one
        chosen = (begun | self.loop.extra)["temperature"]
        if chosen == "fit":
            rows = fitting_rows(len(self.train), config.seed)
            records = ((place, self.train[row]) for place, row in rows.items())
            if config.shuffle_labels:
                records = ((place, at_random(r, config.seed)) for place, r in records)
            module = self.judge.engine.backbone.module.eval()
            chosen = starting_temperature(
                single,
                records,
                config.paradigm,
                config.context.reference,
                shuffle=config.context.layout != "strict",
                inside=self.inside,
            )
            module.train()
            num = world_size() * len(rows)
            self.announce(f"answers divided by {chosen:.3g}, the likeliest temperature on {num} prompts")
        self.loop.extra["temperature"] = single.temperature = float(chosen)
        self.judge.spec = self.judge.spec.model_copy(update={"temperature": single.temperature})
        self.accumulate.reason_weight = config.reason_weight / single.temperature  # as the verdict's gradient is

    def announce(self, text: str) -> None:
        """What is the same in every process, once."""
        if is_leader():
            self.say(text)

    def say(self, text: str) -> None:
        console.print(f"{self.title}: {text}", highlight=False, markup=False, soft_wrap=True)

    def fit(self, report: Callable[[int, int, Metrics], None] | None) -> None:
        """To the end; then the best weights are in place where early stopping kept some, else the averaged ones."""
        with self.batches:
            validate = self.validate if self.validation else None
            self.loop.fit(self.title, ("loss", "accuracy", "answer_mass"), self.step, validate, self.stop, report)
        wait_for_all()
        if self.config.patience and self.best.is_file():
            with torch.no_grad():
                for k, kept in load_file(self.best).items():
                    self.loop.parameters[k].copy_(laid_out_like(kept, self.loop.parameters[k]))

    def step(self, index: int) -> Metrics:
        batch = self.batches(index)
        try:
            metrics: Metrics = dict(self.accumulate(batch, index))
        except RunError as error:
            raise RunError(f"step {index}: {error}; {self.loop.folder.path} keeps its last checkpoint") from None
        verdict, coin = float(metrics.pop("verdict_loss")), float(metrics.pop("coin_loss"))
        warning = None if self.config.paradigm == "regression" else self.stuck.note(index + 1, verdict, coin)
        if warning:
            self.announce(warning)
            metrics["warning"] = warning
        sizes = {"micro_batch": self.accumulate.size, "micro_batch_asked": self.asked}
        self.loop.extra |= sizes | {"recent_losses": self.stuck.recent}
        self.loop.about = "records " + ", ".join(r.record_id for r in batch)
        return metrics

    @torch.no_grad()
    def validate(self, index: int) -> Metrics:
        module, patience = self.judge.engine.backbone.module, self.config.patience
        module.eval()
        metrics: Metrics = {}
        with self.loop.averaged():
            for name, records in self.validation.items():
                figures = self.inside(partial(measure_judge, shared=True), self.judge, records)
                metrics |= {f"{name}/{k}": v for k, v in figures.items()}
            if patience and metrics[self.watched] is None:
                raise InputError(f"patience: no pair of {self.watched} is decided; validate on data without ties")
            if patience and metrics[self.watched] > self.loop.extra.get("best", -1.0):
                best = gathered(self.loop.parameters)
                if is_leader():
                    save_file(best, self.best)
        module.train()
        return metrics

    def stop(self, metrics: Metrics) -> str | None:
        """Why to end here: the watched accuracy has not risen for `patience` validations."""
        if self.watched not in metrics or self.config.patience == 0:
            return None
        best, since = self.loop.extra.get("best", -1.0), self.loop.extra.get("since", 0)
        since = 0 if metrics[self.watched] > best else since + 1
        self.loop.extra |= {"best": max(best, metrics[self.watched]), "since": since}
        over = since >= self.config.patience
        return f"{self.watched} has not risen for {self.config.patience} validations" if over else None


def _whole_weights(judge: Judge, config: RewardConfig, say: Callable[[str], None]) -> dict[str, dict[str, Tensor]]:
    """Of every trained module the whole weights, from all processes, adapters merged."""
    weights = {name: gathered(module.state_dict(keep_vars=True)) for name, module in judge.trainable().items()}
    if config.lora.rank:
        weights["vlm"], lost = merged(weights["vlm"], config.lora.rank, config.lora.alpha)
        if lost > MERGE_LOSS:
            text = f"merged into {config.weights} weights, {lost:.0%} of what the adapters change is lost in rounding"
            say(f"{text}; measure the judge as saved (`rewarddance evaluate --judge`), or train with weights: fp32")
    return weights


def _shard(judge: Judge, config: RewardConfig) -> Inside:
    """Share the judge's weights out, layer by layer; what passes have to be called through."""
    engine = judge.engine
    engine.in_lockstep()
    half = torch.bfloat16 if engine.autocast is not None else None
    return shard(judge.trainable(), engine.backbone.blocks, config.shard, resolve_device(), half)


def train_once(
    config: RewardConfig,
    train: Sequence[PreferenceRecord],
    out: Path,
    load: Callable[[], Backbone],
    title: str,
    known: frozenset[str] | None,
) -> None:
    """Train without validation, unless it is finished; go on where it was stopped. For studies and folds.

    The most memory that it took (of its last part, if it was stopped) goes to `trained.json`.

    Args:
        known: fingerprints of prompts that the judge it begins from was trained on; None where nobody knows.

    Raises:
        RunError: what is there was made with another configuration.
        ConfigError: `patience`, which would choose weights by what they are then measured on.
    """
    if config.patience:
        raise ConfigError("patience: folds and studies keep nothing apart to stop early by; leave it 0")
    if (out / "model" / "judge.json").is_file():
        RunFolder(out).must_be("judge", config)
        return
    resume = (out / "run.json").is_file()
    wait_for_all()  # every process has looked before the first one writes
    forget_peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    train_judge(config, load(), train, {}, out, known=known, resume=resume, title=title)
    if is_leader():
        write_json(out / "trained.json", {"peak_memory_mib": _peak_memory_mib()})


def _peak_memory_mib() -> float:
    """Of the accelerator where there is one, else of this process."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_resident_mib()


def measured_once(target: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures in a file; when it is not there, all processes measure together and the leader writes it."""
    known = target.is_file()
    wait_for_all()  # every process has looked before the first one writes
    if not known:
        found = measure()
        if is_leader():
            write_json(target, found)
    wait_for_all()
    content: dict[str, Any] = json.loads(target.read_text())
    return content
