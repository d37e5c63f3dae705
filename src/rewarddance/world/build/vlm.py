"""Pretrain the embedded VLM on captions and questions about one and two pictures (`world/lessons.py`).

The first steps use renders. Later a part of the lessons is on pictures of the embedded generator, because judges see
such pictures too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.core.config import Config, Precision
from rewarddance.core.device import autocast, resolve_precision
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.parallel import all_reduce_gradients, all_reduce_sum, barrier, is_leader, rank, world_size
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import stream
from rewarddance.jobs.load import load_internvl
from rewarddance.vlm.encoding import ChatEncoder
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.world.build.lesson_batches import LessonSource, PackedBatch, Stage, collate, pack
from rewarddance.world.build.tiny_vlm import new_tokenizer, new_vlm

CHUNK = 16


class VlmConfig(Config):
    """Next-token loss on the answers; the learning rate is Muon's, matched to AdamW's update size."""

    seed: int = 0
    size: str = "tiny-2m"
    start: str | None = None
    """Folder of a VLM to start from, with its tokenizer and size, instead of a new language model on `vision`."""
    batch_size: int = 32
    num_questions: int = 4
    drawn_share: float = 0.4
    """Share of lessons on the generator's pictures, from step `drawn_from` on."""
    drawn_from: int = 1000
    matching_share: float = 0.4
    """Share of lessons on matching alone (`world/lessons.py`)."""
    relations_share: float = 0.0
    """Share of lessons on relations alone (`world/lessons.py`)."""
    requests_share: float = 0.3
    """Share of lessons that begin with "answer yes or no." and ask only such questions."""
    relations_alone: tuple[float, float] = (0.0, 0.0)
    """Part of the run (start and end as shares of its steps) with lessons on relations alone, which are not learnt when
    mixed with others. Off for the shipped weights. How much is forgotten afterwards was not measured (docs/log.md)."""
    verdict_weight: float = 3.0
    """Weight of one-word answers; the words of longer answers weigh 1."""
    precision: Precision = "bf16"
    optim: OptimConfig = OptimConfig(
        name="muon", lr=2e-3, warmup_steps=100, schedule="linear_end", ema_decay=0.998, weight_decay=0.01
    )
    loop: LoopConfig = LoopConfig(num_steps=2400, log_every=10, validate_every=400, save_every=200, save_seconds=300)


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
    model.train()
    prepare = Preprocessor.square(model.config.vision_config.image_size[0])
    shares = (config.drawn_share, config.matching_share, config.relations_share, config.requests_share)
    loop = Loop({"vlm": model}, config.optim, config.loop, folder)
    if resume:
        loop.resume()
    run = VlmTraining(config, model, tokenizer, prepare, LessonSource(drawn, *shares), loop)
    loop.fit("vlm", ("loss", "verdicts", "captions"), run.step, run.validate)
    if is_leader():
        save_vlm(model.eval(), tokenizer, prepare, out / "model")
    barrier()
    return out / "model"


@dataclass
class VlmTraining:
    """Steps and validations of a VLM's pretraining."""

    config: VlmConfig
    model: Any
    tokenizer: Any
    prepare: Preprocessor
    source: LessonSource
    loop: Loop

    def __post_init__(self) -> None:
        self.encoder = ChatEncoder(self.tokenizer, self.model.config.image_seq_length)
        self.computed = resolve_precision(self.config.precision, "cpu", 0)

    def batch(self, name: str, index: int, stage: Stage) -> list[PackedBatch]:
        """This process's lessons of one step, in chunks of similar length."""
        config = self.config
        rng, share = stream(config.seed, name, index), config.batch_size // world_size()
        lessons = [self.source.draw(rng, config.num_questions, stage) for _ in range(share)]
        packed = sorted((pack(x, self.encoder, config.verdict_weight) for x in lessons), key=lambda p: len(p.ids))
        return [collate(packed[i : i + CHUNK], self.tokenizer.pad_token_id) for i in range(0, share, CHUNK)]

    def losses(self, chunk: PackedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, logits (without gradient), token and weight of each answer token."""
        model = self.model
        with autocast("cpu", self.computed):
            image_tokens = model.model.get_image_features(pixel_values=self.prepare([m for m, _ in chunk.frames]))
            out = model.model(
                input_ids=chunk.ids,
                attention_mask=chunk.mask,
                position_ids=chunk.positions,
                use_cache=False,
                mm_encoder_outputs={"image": image_tokens},
            )
            chosen = chunk.weights[:, 1:] > 0
            logits = model.lm_head(out[0][:, :-1][chosen]).float()
        target = chunk.ids[:, 1:][chosen]
        loss = F.cross_entropy(logits, target, reduction="none")
        return loss, logits.detach(), target, chunk.weights[:, 1:][chosen]

    def step(self, index: int) -> Metrics:
        total, weights, outputs = 0.0, torch.zeros(()), []
        for chunk in self.batch("vlm", index * world_size() + rank(), _stage(self.config, index)):
            loss, *rest = self.losses(chunk)
            (loss * rest[-1]).sum().backward()  # type: ignore[no-untyped-call]
            total, weights = total + float((loss.detach() * rest[-1]).sum()), weights + rest[-1].sum()
            outputs.append(rest)
        local_weights = float(weights)
        all_reduce_sum(weights)
        all_reduce_gradients(self.loop.parameters.values())
        for p in self.loop.parameters.values():
            if p.grad is not None:
                p.grad /= weights
        parts = [torch.cat(p) for p in zip(*outputs, strict=True)]
        return {"loss": total / local_weights, **_accuracy(*parts)}

    @torch.no_grad()
    def validate(self, index: int) -> Metrics:
        with self.loop.averaged():
            chunks = [chunk for i in range(4) for chunk in self.batch("vlm-validation", i, "renders")]
            outputs = [self.losses(chunk)[1:] for chunk in chunks]
        parts = (torch.cat(p) for p in zip(*outputs, strict=True))
        return {f"val_{k}": v for k, v in _accuracy(*parts).items()}


def _stage(config: VlmConfig, index: int) -> Stage:
    """The lessons of a step."""
    start, stop = (share * config.loop.num_steps for share in config.relations_alone)
    if start <= index < stop:
        return "relations"
    return "all" if index >= config.drawn_from else "renders"


def _begin(config: VlmConfig, vision: Path | None) -> tuple[Any, Any]:
    """The initial model in fp32, and its tokenizer."""
    if config.start is not None:
        start = load_internvl(config.start, "cpu")
        return start.model.float().requires_grad_(True), start.tokenizer
    tokenizer = new_tokenizer()
    model = new_vlm(config.size, tokenizer, config.seed)
    if vision is not None:
        model.model.vision_tower.load_state_dict(load_file(vision))
    return model, tokenizer


def _accuracy(logits: Tensor, target: Tensor, weight: Tensor) -> Metrics:
    right, short = (logits.argmax(-1) == target).float(), weight > 1
    return {"verdicts": right[short].mean().item(), "captions": right[~short].mean().item()}


def save_vlm(model: nn.Module, tokenizer: object, prepare: Preprocessor, path: Path) -> Path:
    """Write the ordinary folder: config.json, model.safetensors, tokenizer files, preprocessor_config.json."""
    model.save_pretrained(path)  # type: ignore[operator]
    tokenizer.save_pretrained(path)  # type: ignore[attr-defined]
    prepare.save(path)
    return path
