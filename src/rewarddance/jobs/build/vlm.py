"""Pretrain the embedded VLM on captions and questions about one and two pictures (`world/questions.py`)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.core.config import Config
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.progress import progress
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import stream
from rewarddance.vlm.encoding import ChatEncoder, Encoded, Message
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.vlm.tiny import new_tokenizer, new_vlm
from rewarddance.world.questions import Lesson, lesson

CHUNK = 16


class VlmConfig(Config):
    """Next-token loss on the answers; the learning rate is Muon's, matched to AdamW's update size."""

    seed: int = 0
    size: str = "tiny-2m"
    batch_size: int = 48
    num_questions: int = 4
    verdict_weight: float = 3.0
    """Weight of one-word answers against the words of captions."""
    optim: OptimConfig = OptimConfig(
        name="muon", lr=2e-3, warmup_steps=100, schedule="linear_end", ema_decay=0.998, weight_decay=0.01
    )
    loop: LoopConfig = LoopConfig(num_steps=6000, log_every=10, validate_every=500, save_every=1000, save_seconds=300)


def lesson_messages(found: Lesson) -> list[Message]:
    """A lesson as a chat: prompt and pictures first, then the turns."""
    opening: list[str | Media] = [f"prompt: {found.prompt}\n"] if found.prompt else []
    for i, image in enumerate(found.images):
        opening += [f"image {i + 1}: ", Media.from_numpy(image), "\n"]
    messages: list[Message] = []
    for i, (question, answer) in enumerate(found.turns):
        messages += [("user", [*(opening if i == 0 else ()), question]), ("assistant", [answer])]
    return messages


def collate(batch: list[Encoded], pad: int, verdict_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids, mask and per-token loss weights, each (B, S) with S a multiple of 32.

    The weight of a token is 0 outside answers; a one-word answer and its end token weigh `verdict_weight`.
    """
    width = -(-max(len(e.ids) for e in batch) // 32) * 32
    ids = torch.full((len(batch), width), pad)
    mask, weight = torch.zeros_like(ids), torch.zeros(ids.shape)
    for row, e in enumerate(batch):
        n = len(e.ids)
        ids[row, :n] = torch.tensor(e.ids)
        mask[row, :n] = 1
        is_answer = torch.tensor(e.answers, dtype=torch.float32)
        before = torch.cat([is_answer[:1] * 0, is_answer[:-1]])
        after = torch.cat([is_answer[2:], is_answer[:2] * 0])
        one_word = (is_answer > 0) & (before == 0) & (after == 0)  # first of exactly two answer tokens
        weight[row, :n] = is_answer + (verdict_weight - 1) * one_word
    return ids, mask, weight


def train_vlm(config: VlmConfig, out: Path, *, resume: bool = False) -> Path:
    """Train and save to `out/model` (Hugging Face layout, with tokenizer and preprocessor)."""
    folder = RunFolder(out)
    folder.start("vlm", config.model_dump(mode="json"), resume=resume)
    tokenizer = new_tokenizer()
    model = new_vlm(config.size, tokenizer, config.seed)
    model.train()
    encoder = ChatEncoder(tokenizer, model.config.image_seq_length)
    prepare = Preprocessor.square(model.config.vision_config.image_size[0])
    loop = Loop({"vlm": model}, config.optim, config.loop, folder)
    if resume:
        loop.resume()

    def batch(name: str, index: int) -> list[list[Encoded]]:
        """Lessons of one step in chunks of like length."""
        rng = stream(config.seed, name, index)
        lessons = (lesson(rng, config.num_questions) for _ in range(config.batch_size))
        encoded = sorted((encoder.chat(lesson_messages(x), generate=False) for x in lessons), key=lambda e: len(e.ids))
        return [encoded[i : i + CHUNK] for i in range(0, len(encoded), CHUNK)]

    def losses(chunk: list[Encoded]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ids, mask, weight = collate(chunk, tokenizer.pad_token_id, config.verdict_weight)
        pixels = prepare([m for e in chunk for m, _ in e.images])
        spare = 2 * CHUNK - len(pixels)  # one shape for every chunk: kernels are not built again
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.model.get_image_features(pixel_values=F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, spare)))
            seen.pooler_output = seen.pooler_output[: len(pixels)]
            out = model.model(input_ids=ids, attention_mask=mask, use_cache=False, mm_encoder_outputs={"image": seen})
            chosen = weight[:, 1:] > 0
            logits = model.lm_head(out[0][:, :-1][chosen]).float()
        target = ids[:, 1:][chosen]
        return F.cross_entropy(logits, target, reduction="none"), logits.detach(), target, weight[:, 1:][chosen]

    def step(index: int) -> Metrics:
        total, weights, found = 0.0, 0.0, []
        for chunk in batch("vlm", index):
            loss, *rest = losses(chunk)
            (loss * rest[-1]).sum().backward()  # type: ignore[no-untyped-call]
            total, weights = total + float((loss.detach() * rest[-1]).sum()), weights + float(rest[-1].sum())
            found.append(rest)
        for p in loop.parameters.values():
            if p.grad is not None:
                p.grad /= weights
        parts = [torch.cat(p) for p in zip(*found, strict=True)]
        return {"loss": total / weights, **_accuracy(*parts)}

    @torch.no_grad()
    def validate(index: int) -> Metrics:
        if loop.ema is not None:
            loop.ema.swap(loop.parameters)
        found = [losses(chunk)[1:] for i in range(4) for chunk in batch("vlm-validation", i)]
        if loop.ema is not None:
            loop.ema.swap(loop.parameters)
        parts = (torch.cat(p) for p in zip(*found, strict=True))
        return {f"val_{k}": v for k, v in _accuracy(*parts).items()}

    with progress("vlm", "loss", "verdicts", "captions") as report:
        loop.run(step, validate, report)
    if loop.ema is not None:
        loop.ema.swap(loop.parameters)
    return save_vlm(model.eval(), tokenizer, prepare, out / "model")


def _accuracy(logits: Tensor, target: Tensor, weight: Tensor) -> Metrics:
    right, short = (logits.argmax(-1) == target).float(), weight > 1
    return {"verdicts": right[short].mean().item(), "captions": right[~short].mean().item()}


def save_vlm(model: nn.Module, tokenizer: object, prepare: Preprocessor, path: Path) -> Path:
    """The ordinary folder: config.json, model.safetensors, tokenizer files, preprocessor_config.json."""
    model.save_pretrained(path)  # type: ignore[operator]
    tokenizer.save_pretrained(path)  # type: ignore[attr-defined]
    prepare.save(path)
    return path
