"""The training of a judge: its steps, its validations, and early stopping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewarddance.core.device import resolve_device
from rewarddance.core.disk import kept, writing
from rewarddance.core.errors import InputError, RunError
from rewarddance.core.loop import Loop, Metrics, OnStep
from rewarddance.core.monitors import StuckLoss
from rewarddance.core.parallel import barrier, is_leader, rank, world_size
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.prefetch import Prefetch
from rewarddance.core.progress import say
from rewarddance.core.sharding import ForwardCall, full_state, shard, sharded_like
from rewarddance.core.streams import stream
from rewarddance.data.parquet import RecordTable
from rewarddance.reward.accumulate import Accumulator
from rewarddance.reward.config import MediaKind
from rewarddance.reward.generative import GenerativeJudge
from rewarddance.reward.judge import Judge
from rewarddance.reward.scalar import ScalarJudge
from rewarddance.reward.temperature import fitting_rows, starting_temperature
from rewarddance.reward.train_config import RewardConfig
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.tuning import add_lora, checkpoint_gradients, merged, set_dropout, unfreeze_vision

MeasureJudge = Callable[..., dict[str, Any]]
"""The type of `evaluate.judge.measure_judge`, which is an argument because this room may not import `evaluate`."""
MERGE_LOSS = 0.02
"""Share of the adapters' change (of its norm) that rounding may lose without a warning."""


def training_batch(records: Sequence[PreferenceRecord], config: RewardConfig, index: int) -> list[PreferenceRecord]:
    """This process's share of the `prompts_per_step` records of one step. No other record's pictures are decoded.

    A pure function of the seed and the step, so that a resumed run gets the same batches.
    """
    per_epoch = max(1, len(records) // config.prompts_per_step)
    epoch, place = divmod(index, per_epoch)
    order = stream(config.seed, "epoch", epoch).permutation(len(records))
    chosen = order[place * config.prompts_per_step : (place + 1) * config.prompts_per_step]
    batch = [records[int(i)] for i in chosen[rank() :: world_size()]]
    return [with_random_labels(r, config.seed) for r in batch] if config.shuffle_labels else batch


def num_epochs(num_records: int, config: RewardConfig) -> float:
    """How often every record is seen; records that do not fill a whole step are left out of an epoch."""
    return config.loop.num_steps / max(1, num_records // config.prompts_per_step)


def _hashed(batch: list[PreferenceRecord]) -> list[PreferenceRecord]:
    """Compute the key of every picture, which takes as long as decoding it."""
    for record in batch:
        for media in record.media:
            _ = media.key
    return batch


def criteria_of(records: Sequence[PreferenceRecord]) -> tuple[str, ...]:
    """Criteria of the records, the most frequent first. No picture is decoded."""
    names = records.criteria if isinstance(records, RecordTable) else [r.criterion for r in records]
    return tuple(name for name, _ in Counter(names).most_common())


def kinds_of(records: Sequence[PreferenceRecord]) -> tuple[MediaKind, ...]:
    """What the records compare. No picture of a table is decoded."""
    clips = set(records.are_clips if isinstance(records, RecordTable) else (r.media[0].is_clip for r in records))
    kinds: tuple[tuple[MediaKind, bool], ...] = (("picture", False), ("clip", True))
    return tuple(kind for kind, is_clip in kinds if is_clip in clips)


def prompts_of(records: Sequence[PreferenceRecord]) -> list[str]:
    """Prompts of the records. No picture is decoded."""
    return records.prompts if isinstance(records, RecordTable) else [r.prompt for r in records]


def share_of_ties(records: Sequence[PreferenceRecord], config: RewardConfig) -> float:
    """The share of the training weight that falls to ties, as `rao_kupper_loss` shares it. No picture is decoded.

    Raises:
        InputError: no choice is a tie, not even in part.
    """
    by_record = (
        records.choice_labels if isinstance(records, RecordTable) else [[c.label for c in r.choices] for r in records]
    )
    labels = [label for own in by_record for label in own]
    share = sum(1 - abs(2 * label - 1) for label in labels) / max(1, len(labels))
    if share < 1e-6:
        raise InputError(
            f"paradigm bradley_terry_ties: none of the {len(labels):,} training choices is a tie; use bradley_terry"
        )
    return 1 - (1 - config.label_smoothing) * (1 - share)


def start_ties(judge: Judge, records: Sequence[PreferenceRecord], config: RewardConfig) -> None:
    """Give a new head of `bradley_terry_ties` the strength of ties that its training data suggest.

    Raises:
        InputError: no choice is a tie, not even in part.
    """
    if isinstance(judge.single, ScalarJudge) and config.paradigm == "bradley_terry_ties":
        judge.single.start_ties(share_of_ties(records, config))


def take(records: Sequence[PreferenceRecord], rows: Sequence[int]) -> Sequence[PreferenceRecord]:
    """The records at some rows. No picture is decoded."""
    return records.take(rows) if isinstance(records, RecordTable) else [records[i] for i in rows]


MIN_ASIDE, ASIDE_SHARE = 8, 20
"""The fewest prompts that calibration is fitted on, and the largest part of all prompts that is set aside for it (one
in 20)."""


def set_aside(
    records: Sequence[PreferenceRecord], config: RewardConfig
) -> tuple[Sequence[PreferenceRecord], Sequence[PreferenceRecord], Sequence[PreferenceRecord]]:
    """Records to train on, to calibrate on, and to take examples from. Each prompt is in one of the three only."""
    prompts = prompts_of(records)
    distinct = sorted(set(prompts))
    num = min(config.calibration_prompts, len(distinct) // ASIDE_SHARE)
    num = num if num >= MIN_ASIDE else 0
    shown = min(4 * config.context.examples, len(distinct) // 2)  # not every record has a clear choice
    if num + shown == 0:
        return records, (), ()
    order = [distinct[int(i)] for i in stream(config.seed, "aside").permutation(len(distinct))]
    groups = [set(order[num + shown :]), set(order[:num]), set(order[num : num + shown])]
    train, calibrate, examples = (take(records, [i for i, p in enumerate(prompts) if p in g]) for g in groups)
    return train, calibrate, examples


def with_random_labels(record: PreferenceRecord, seed: int) -> PreferenceRecord:
    """The record with a coin's choice for every choice, and with ratings permuted among its pictures.

    The coins depend on seed and record alone. Reasons are dropped, because they would reveal the true choice.
    """
    rng = stream(seed, "shuffle", record.record_id)
    coins = rng.random(len(record.choices)) < 0.5
    choices = [
        replace(c, label=1 - c.label if coin else c.label, rationale=None)
        for c, coin in zip(record.choices, coins, strict=True)
    ]
    ratings = None if record.ratings is None else tuple(rng.permutation(record.ratings).tolist())
    return replace(record, choices=tuple(choices), ratings=ratings)


def prepare_backbone(backbone: Backbone, config: RewardConfig) -> Any:
    """Set what is trained and how; returns the LoRA tuner, None without adapters."""
    backbone.module.train()
    backbone.module.requires_grad_(True)
    tuner = None
    if config.lora.rank:
        tuner = add_lora(backbone, config.lora.rank, config.lora.alpha, config.lora.targets, config.dropout)
        if config.lora.vision:
            unfreeze_vision(backbone)
    if config.freeze_vision:
        backbone.freeze_vision()
    if config.dropout:
        set_dropout(backbone, config.dropout)
    if config.gradient_checkpointing:
        checkpoint_gradients(backbone)
    return tuner


@dataclass
class JudgeTraining:
    """One training of a judge.

    Attributes:
        forward: how passes through the judge's weights are called.
        measure: `measure_judge`.
    """

    config: RewardConfig
    judge: Judge
    train: Sequence[PreferenceRecord]
    validation: dict[str, Sequence[PreferenceRecord]]
    loop: Loop
    forward: ForwardCall
    measure: MeasureJudge
    title: str

    def __post_init__(self) -> None:
        config, saved = self.config, self.loop.extra
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
            pointwise_weight=config.pointwise_weight,
            forward=self.forward,
        )
        self.configured_size = self.accumulate.size
        """Records of a pass as configured. A resumed run starts with the size that fitted, unless this changed."""
        if saved.get("micro_batch_asked", self.configured_size) == self.configured_size:
            self.accumulate.size = min(self.configured_size, saved.get("micro_batch", self.configured_size))
        self.stuck = StuckLoss(recent=saved.get("recent_losses", []))
        self.batches = Prefetch(lambda index: _hashed(training_batch(self.train, config, index)), config.loop.num_steps)
        self.watched = f"{next(iter(self.validation), None)}/accuracy"
        """The metric that decides early stopping."""
        self.best = self.loop.folder.path / "best.safetensors"

    def set_temperature(self) -> None:
        """Give a generative judge its temperature: the configuration's, a resumed run's, or the likeliest one."""
        config, single = self.config, self.judge.single
        if not isinstance(single, GenerativeJudge):
            return
        # a run that was saved before temperatures existed continues with 1
        begun = {"temperature": 1.0} if self.loop.step else {"temperature": config.temperature}
        chosen = (begun | self.loop.extra)["temperature"]
        if chosen == "fit":
            rows = fitting_rows(len(self.train), config.seed)
            records = ((place, self.train[row]) for place, row in rows.items())
            if config.shuffle_labels:
                records = ((place, with_random_labels(r, config.seed)) for place, r in records)
            module = self.judge.engine.backbone.module.eval()
            chosen = starting_temperature(
                single,
                records,
                config.paradigm,
                config.context.reference,
                shuffle=config.context.layout != "strict",
                forward=self.forward,
            )
            module.train()
            num = world_size() * len(rows)
            self.announce(f"answers divided by {chosen:.3g}, the likeliest temperature on {num} prompts")
        self.loop.extra["temperature"] = single.temperature = float(chosen)
        self.judge.spec = self.judge.spec.model_copy(update={"temperature": single.temperature})
        # the temperature divides the verdict's gradient too
        self.accumulate.reason_weight = config.reason_weight / single.temperature

    def announce(self, text: str) -> None:
        """Print a text that every process has, once."""
        if is_leader():
            self.say(text)

    def say(self, text: str) -> None:
        say(f"{self.title}: {text}")

    def fit(self, on_step: OnStep | None) -> None:
        """Train to the end. Leaves the best weights in place if early stopping kept some, else the average."""
        with self.batches:
            validate = self.validate if self.validation else None
            self.loop.fit(self.title, ("loss", "accuracy", "answer_mass"), self.step, validate, self.stop, on_step)
        barrier()
        if self.config.patience and self.best.is_file():
            with torch.no_grad():
                for k, best in load_file(self.best).items():
                    self.loop.parameters[k].copy_(sharded_like(best, self.loop.parameters[k]))

    def step(self, index: int) -> Metrics:
        batch = self.batches(index)
        try:
            metrics: Metrics = dict(self.accumulate(batch, index))
        except RunError as error:
            raise RunError(f"step {index}: {error}; {kept(self.loop.folder.checkpoints)}") from None
        verdict, coin = metrics.pop("verdict_loss", None), metrics.pop("coin_loss", None)
        if verdict is not None and self.config.paradigm != "regression":
            warning = self.stuck.note(index + 1, float(verdict), float(coin))
            if warning:
                self.announce(warning)
                metrics["warning"] = warning
        sizes = {"micro_batch": self.accumulate.size, "micro_batch_asked": self.configured_size}
        self.loop.extra |= sizes | {"recent_losses": self.stuck.recent}
        self.loop.context = "records " + ", ".join(r.record_id for r in batch)
        return metrics

    @torch.no_grad()
    def validate(self, index: int) -> Metrics:
        module, patience = self.judge.engine.backbone.module, self.config.patience
        module.eval()
        metrics: Metrics = {}
        with self.loop.averaged():
            for name, records in self.validation.items():
                figures = self.measured(records)
                if refused := figures.pop("refused", {}):
                    why = next(iter(refused.values()))
                    self.announce(f"{name}: {len(refused)} of {len(records)} records refused: {why}")
                metrics |= {f"{name}/{k}": v for k, v in figures.items()}
            accuracy = metrics[self.watched] if patience else None
            if patience and accuracy is None and f"{self.watched.split('/')[0]}/num_refused" not in metrics:
                raise InputError(f"patience: no pair of {self.watched} is decided; validate on data without ties")
            if accuracy is not None and accuracy > self.loop.extra.get("best", -1.0):
                best = full_state(self.loop.parameters)
                if is_leader():
                    with writing(self.best, self.loop.folder.checkpoints):
                        save_file(best, self.best)
        module.train()
        return metrics

    def measured(self, records: Sequence[PreferenceRecord], **settings: Any) -> dict[str, Any]:
        """`measure_judge` on records, by all processes together. Any number of records may be refused."""
        measure = partial(self.measure, shared=True, max_refused=None, **settings)
        figures: dict[str, Any] = self.forward(measure, self.judge, records)
        return figures

    def stop(self, metrics: Metrics) -> str | None:
        """The reason to end: the watched accuracy has not risen for `patience` validations."""
        if metrics.get(self.watched) is None or self.config.patience == 0:
            return None
        best, since = self.loop.extra.get("best", -1.0), self.loop.extra.get("since", 0)
        since = 0 if metrics[self.watched] > best else since + 1
        self.loop.extra |= {"best": max(best, metrics[self.watched]), "since": since}
        over = since >= self.config.patience
        return f"{self.watched} has not risen for {self.config.patience} validations" if over else None


@torch.no_grad()
def mix_in(start: Mapping[str, Tensor], parameters: Mapping[str, Tensor], share: float) -> None:
    """Move parameters towards the weights that they started from: p <- (1 - share) p + share start."""
    for name, weight in start.items():
        parameters[name].lerp_(weight, share)


def whole_weights(judge: Judge, config: RewardConfig, warn: Callable[[str], None]) -> dict[str, dict[str, Tensor]]:
    """Whole weights of every trained module, with adapters merged. A collective."""
    weights = {name: full_state(module.state_dict(keep_vars=True)) for name, module in judge.trainable().items()}
    if config.lora.rank:
        weights["vlm"], lost = merged(weights["vlm"], config.lora.rank, config.lora.alpha)
        if lost > MERGE_LOSS:
            warn(
                f"rounding to {config.weights} loses {lost:.0%} of what the merged adapters change; measure the judge "
                "as saved (`rewarddance evaluate --judge`), or train with weights: fp32"
            )
    return weights


def shard_judge(judge: Judge, config: RewardConfig) -> ForwardCall:
    """Shard the judge's weights, layer by layer; returns the call that passes must go through."""
    engine = judge.engine
    engine.in_lockstep()
    dtype = torch.bfloat16 if engine.autocast is not None else None
    return shard(judge.trainable(), engine.backbone.blocks, config.shard, resolve_device(), dtype)
