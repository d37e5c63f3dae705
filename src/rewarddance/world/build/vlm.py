"""Pretrain the embedded VLM on captions and questions about one and two pictures (`world/lessons.py`).

The first steps use renders. Later a part of the lessons is on pictures of the embedded generator, because judges see
such pictures too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.core.device import autocast, num_parameters, resolve_device, resolve_precision
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.parallel import all_reduce_gradients, all_reduce_sum, barrier, is_leader, rank, world_size
from rewarddance.core.prefetch import Feed, num_workers
from rewarddance.core.runs import RunFolder
from rewarddance.jobs.load import load_internvl
from rewarddance.vlm.encoding import ChatEncoder
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.world.build.lesson_batches import LessonBatches, LessonSource, Stages
from rewarddance.world.build.packing import LessonPacker, LessonTensors, PackedBatch
from rewarddance.world.build.tiny_vlm import new_tokenizer, new_vlm
from rewarddance.world.build.vlm_config import VlmConfig

PER_PASS = 16
"""Lessons of one pass on a CPU."""
MAX_VALIDATION = 128
"""Largest number of lessons in each of the four validation batches."""


def train_vlm(
    config: VlmConfig, vision: Path | None, out: Path, *, drawn: Path | None = None, resume: bool = False
) -> Path:
    """Train and save to `out/model` (Hugging Face layout, with tokenizer and preprocessor).

    Args:
        vision: weights of a pretrained vision tower (`pretrain_vision`), or None for random weights.
        drawn: preferences with generated pictures for lessons (`LessonSource`), or None for renders alone.
    """
    folder = RunFolder(out)
    if is_leader():
        folder.start("vlm", config, resume=resume)
    barrier()
    model, tokenizer = _begin(config, vision)
    loop = Loop({"vlm": model}, config.optim, config.loop, folder)
    if resume:
        loop.resume()
    with VlmTraining(config, model, tokenizer, loop, drawn) as run:
        loop.fit("vlm", ("loss", "verdicts", "captions"), run.step, run.validate)
    if is_leader():
        save_vlm(model.eval(), tokenizer, run.prepare, out / "model")
    barrier()
    return out / "model"


@dataclass
class VlmTraining:
    """Steps and validations of a VLM's pretraining. A context, because worker processes make the lessons."""

    config: VlmConfig
    model: Any
    tokenizer: Any
    loop: Loop
    drawn: Path | None = None
    held_out: list[PackedBatch] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        config, num = self.config, self.config.batch_size // world_size()
        self.device = next(self.model.parameters()).device
        self.prepare = Preprocessor.square(self.model.config.vision_config.image_size[0])
        self.computed = resolve_precision(config.precision, self.device, num_parameters(self.model))
        self.model.train()
        start, stop = (share * config.loop.num_steps for share in config.relations_alone)
        stages = Stages(config.drawn_from, (start, stop))
        make = self._lessons("vlm", num, stages, world_size(), rank())
        self.feed = Feed(make, config.loop.num_steps, num_workers(config.workers, self.device))

    def _lessons(self, name: str, num: int, stages: Stages, world: int = 1, rank: int = 0) -> LessonBatches:
        config = self.config
        encoder = ChatEncoder(self.tokenizer, self.model.config.image_seq_length)
        shares = (
            config.drawn_share,
            config.matching_share,
            config.relations_share,
            config.requests_share,
            config.clips_share,
            config.actions_share,
            config.prompts_share,
        )
        per_pass = config.micro_batch or (PER_PASS if self.device.type == "cpu" else num)
        return LessonBatches(
            LessonSource(self.drawn, *shares),
            LessonPacker(encoder, config.verdict_weight),
            name,
            config.seed,
            num,
            config.num_questions,
            per_pass,
            self.tokenizer.pad_token_id,
            stages,
            world,
            rank,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.feed.__exit__(None, None, None)

    def losses(self, lessons: LessonTensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, logits (without gradient), token and weight of each answer token."""
        model = self.model
        with autocast(self.device, self.computed):
            image_tokens = model.model.get_image_features(pixel_values=self.prepare.frames(lessons.pixels))
            out = model.model(
                input_ids=lessons.ids,
                attention_mask=lessons.mask,
                position_ids=lessons.positions,
                use_cache=False,
                mm_encoder_outputs={"image": image_tokens},
            )
            logits = model.lm_head(out[0].flatten(0, 1)[lessons.before]).float()
        loss = F.cross_entropy(logits, lessons.targets, reduction="none")
        return loss, logits.detach(), lessons.targets, lessons.weights

    def step(self, index: int) -> Metrics:
        outputs = []
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        weights = torch.zeros((), device=self.device)
        for batch in self.feed(index):
            loss, *rest = self.losses(batch.to(self.device))
            (loss * rest[-1]).sum().backward()  # type: ignore[no-untyped-call]
            total, weights = total + (loss.detach() * rest[-1]).sum().double(), weights + rest[-1].sum()
            outputs.append(rest)
        local = total / weights.double()
        all_reduce_sum(weights)
        all_reduce_gradients(self.loop.parameters.values())
        torch._foreach_div_([p.grad for p in self.loop.parameters.values() if p.grad is not None], weights)
        parts = [torch.cat(p) for p in zip(*outputs, strict=True)]
        return {"loss": local, **_accuracy(*parts)}

    @torch.no_grad()
    def validate(self, index: int) -> Metrics:
        if not self.held_out:
            num = min(self.config.batch_size // world_size(), MAX_VALIDATION)
            make = self._lessons("vlm-validation", num, Stages(math.inf))
            self.held_out = [batch for i in range(4) for batch in make(i)]
        with self.loop.averaged():
            outputs = [self.losses(batch.to(self.device))[1:] for batch in self.held_out]
        parts = (torch.cat(p) for p in zip(*outputs, strict=True))
        return {f"val_{k}": v for k, v in _accuracy(*parts).items()}


def _begin(config: VlmConfig, vision: Path | None) -> tuple[Any, Any]:
    """The initial model in fp32, on its device, and its tokenizer."""
    device = resolve_device(config.device)
    if config.start is not None:
        start = load_internvl(config.start, "cpu")
        return start.model.float().requires_grad_(True).to(device), start.tokenizer
    tokenizer = new_tokenizer()
    model: Any = new_vlm(config.size, tokenizer, config.seed)
    if vision is not None:
        model.model.vision_tower.load_state_dict(load_file(vision))
    return model.to(device), tokenizer


def _accuracy(logits: Tensor, target: Tensor, weight: Tensor) -> Metrics:
    """Shares of right tokens as tensors: of one-word answers, and of longer ones."""
    right, short = (logits.argmax(-1) == target).float(), (weight > 1).float()
    return {
        "verdicts": (right * short).sum() / short.sum(),
        "captions": (right * (1 - short)).sum() / (1 - short).sum(),
    }


def save_vlm(model: nn.Module, tokenizer: object, prepare: Preprocessor, path: Path) -> Path:
    """Write the ordinary folder: config.json, model.safetensors, tokenizer files, preprocessor_config.json."""
    model.save_pretrained(path)  # type: ignore[operator]
    tokenizer.save_pretrained(path)  # type: ignore[attr-defined]
    prepare.save(path)
    return path
