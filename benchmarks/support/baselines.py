"""Baselines of the engine: padded batches of whole dialogs, and transformers' `DecisionPipeline`.

A baseline may time only `sample` of its batches, evenly spread. Its time is then multiplied by `scale`. Only the logits
of timed questions (`rows`) are compared with the engine's.
"""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import DecisionPipeline
from transformers.decision import DecisionConfig

from rewarddance.core.media import Media
from rewarddance.core.types import Comparison
from rewarddance.vlm.internvl import InternVLBackbone

WORDS = ("yes", "no")


def loss(logits: torch.Tensor) -> torch.Tensor:
    return F.softplus(logits[:, 1] - logits[:, 0]).sum()


def spread(num: int, batch: int, sample: int) -> list[range]:
    """The questions of every batch, or of `sample` of them, evenly spread."""
    batches = [range(i, min(i + batch, num)) for i in range(0, num, batch)]
    if not sample or sample >= len(batches):
        return batches
    return [batches[i * len(batches) // sample] for i in range(sample)]


class Padded:
    """Left-padded batches of whole dialogs through the transformers model.

    Every picture of every question is encoded. The language-model head runs at the last position alone. In training
    every batch has its own backward pass.
    """

    def __init__(self, backbone: InternVLBackbone, dialogs: list, batch: int, *, sample: int, train: bool) -> None:
        self.backbone, self.dialogs, self.train = backbone, dialogs, train
        self.batches = spread(len(dialogs), batch, sample)
        self.rows = [i for b in self.batches for i in b]
        self.scale = len(dialogs) / len(self.rows)
        words = [backbone.tokenizer.convert_tokens_to_ids(w) for w in WORDS]
        self.ids = torch.tensor(words, device=backbone.device)

    def __call__(self) -> torch.Tensor:
        rows, model = [], self.backbone.model
        for batch in self.batches:
            encoded = [self.backbone.encoder.chat([("user", self.dialogs[i])]) for i in batch]
            width = max(len(e.ids) for e in encoded)
            tokens = torch.tensor([[0] * (width - len(e.ids)) + list(e.ids) for e in encoded]).to(model.device)
            mask = torch.tensor([[0] * (width - len(e.ids)) + [1] * len(e.ids) for e in encoded]).to(model.device)
            pixels = self.backbone.prepare([m for e in encoded for m, _ in e.images]).to(model.device, model.dtype)
            states = model.model(input_ids=tokens, attention_mask=mask, pixel_values=pixels, use_cache=False)
            logits = model.lm_head(states[0][:, -1])[:, self.ids].float()
            if self.train:
                loss(logits).backward()
            rows.append(logits.detach())
        return torch.cat(rows)


class Processor:
    """The processor methods that the pipeline calls. transformers' own processor for InternVL needs torchvision."""

    chat_template = ""

    def __init__(self, backbone: InternVLBackbone) -> None:
        self.backbone, self.tokenizer, self.image_processor = backbone, backbone.tokenizer, backbone.prepare

    def apply_chat_template(self, conversation: list[dict[str, Any]], **_: Any) -> dict[str, torch.Tensor]:
        text, pixels = f"<|{conversation[0]['role']}|>", []
        for part in conversation[0]["content"]:
            if part["type"] == "text":
                text += part["text"]
                continue
            pixels.append(Media.from_pil(part["image"]))
            text += "<img>" + "<IMG_CONTEXT>" * self.backbone.model.config.image_seq_length + "</img>"
        tokens = self.tokenizer(f"{text}<|assistant|>", add_special_tokens=False, return_tensors="pt")
        model = self.backbone.model
        pixel_values = self.backbone.prepare(pixels).to(model.device, model.dtype)
        return {"input_ids": tokens["input_ids"].to(model.device), "pixel_values": pixel_values}


class Decision:
    """transformers' `DecisionPipeline`, one question a call, with its own wording. It has no gradients."""

    rows: tuple[int, ...] = ()  # its wording differs, so its logits are not compared (tests/vlm/test_decision.py does)

    def __init__(self, backbone: InternVLBackbone, comparisons: list[Comparison], *, sample: int) -> None:
        self.decide: Callable[[dict[str, Any]], Any] = DecisionPipeline(
            model=backbone.model, tokenizer=backbone.tokenizer, processor=Processor(backbone),
            decision_config=DecisionConfig(labels={"noul": list(WORDS)}),
        )  # fmt: skip
        timed = [comparisons[i] for b in spread(len(comparisons), 1, sample) for i in b]
        self.scale = len(comparisons) / len(timed)
        images: dict[int, Image.Image] = {}
        self.requests = [self._request(c, images) for c in timed]

    @staticmethod
    def _request(comparison: Comparison, images: dict[int, Image.Image]) -> dict[str, Any]:
        media = {"ref-img": comparison.reference, "cand-img": comparison.candidate}
        question = "is the candidate better than the reference?"
        return {
            "state": f"prompt: {comparison.prompt}\nreference: ref-img\ncandidate: cand-img",
            "questions": {"better": {"type": "noul", "instructions": question}},
            "assets": {k: images.setdefault(id(m), m.to_pil()) for k, m in media.items() if m is not None},
        }

    def __call__(self) -> torch.Tensor:
        return torch.tensor([self.decide(r)["better"]["noul"] for r in self.requests])
