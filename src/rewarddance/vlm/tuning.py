"""How a backbone is trained: low-rank adapters, dropout, gradient checkpointing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import Tensor

from rewarddance.core.errors import ConfigError
from rewarddance.vlm.backbone import Backbone

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(
    backbone: Backbone, rank: int, alpha: float, targets: Sequence[str] = TARGETS, dropout: float = 0.0
) -> LoraModel:
    """Add low-rank adapters (Hu et al., arXiv 2106.09685) to the language model's layers; only they are trained.

    Adapters are fp32 for weights of any type. `unload()` of the returned model removes them; `merged` adds them to the
    weights.

    Raises:
        ConfigError: no layer has one of the names.
    """
    names = "|".join(map(re.escape, targets))
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=rf".*language_model\..*\.({names})", lora_dropout=dropout
    )
    backbone.module.requires_grad_(False)
    try:
        tuner = LoraModel(backbone.module, {"default": config}, "default")
    except ValueError as error:
        raise ConfigError(
            f"LoRA targets {', '.join(targets)}: no such layers in the language model ({error})"
        ) from None
    for p in backbone.module.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return tuner


def unfreeze_vision(backbone: Backbone) -> None:
    """Train the vision tower together with adapters, in fp32, because bf16 weights would round small updates to 0.

    The projector into the language model computes in fp32 too.
    """
    for name, part in backbone.model.model.named_children():
        if name != "language_model":
            part.float()
    backbone.vision.requires_grad_(True)


def merged(state: Mapping[str, Tensor], rank: int, alpha: float) -> tuple[dict[str, Tensor], float]:
    """Weights with the adapters added, under the names of a model without adapters.

    Sums are made in fp32 and rounded once to the type of the weights.

    Returns:
        The weights, and the share of the change that rounding lost: |rounded - exact| / |exact - before|.
    """
    weights = {}
    lost = changed = 0.0
    for name, weight in state.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        plain, adapted, end = name.partition(".base_layer.")
        if adapted and end == "weight":
            down, up = state[f"{plain}.lora_A.default.weight"], state[f"{plain}.lora_B.default.weight"]
            change = alpha / rank * (up.float() @ down.float())
            exact = weight.float() + change
            weight = exact.to(weight.dtype)
            lost += float((weight.float() - exact).square().sum())
            changed += float(change.square().sum())
        weights[f"{plain}.{end}" if adapted else name] = weight
    return weights, (lost / changed) ** 0.5 if changed else 0.0


def set_dropout(backbone: Backbone, share: float) -> None:
    """Drop this share of attention weights in training. A frozen vision tower has no dropout."""
    layers = backbone.vision_blocks
    vision_is_trained = any(p.requires_grad for layer in layers for p in layer.parameters())
    frozen = set() if vision_is_trained else {m for layer in layers for m in layer.modules()}
    for module in backbone.module.modules():
        layer: Any = module
        if module not in frozen and isinstance(getattr(module, "attention_dropout", None), float):
            layer.attention_dropout = share


def checkpoint_gradients(backbone: Backbone) -> None:
    """Keep only the layers' inputs in the forward pass; the backward pass computes other activations again."""
    model: Any = backbone.model
    model.gradient_checkpointing_enable({"use_reentrant": False})
