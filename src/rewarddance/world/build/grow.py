"""Make a small VLM wider and deeper, so that it still computes the same function.

A large VLM can start from a small one in this way if its pretraining is too expensive: "Net2Net" (Chen et al. 2016),
for transformers "bert2BERT" (Chen et al. 2022). Wider: every unit becomes several copies, and the weights that read it
are split among the copies. Deeper: a layer is followed by a copy of itself that adds nothing yet. With equal reading
weights, copies would always get equal gradients. So the reading weights get noise that sums to zero over the copies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from rewarddance.core.errors import ConfigError
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.world.build.tiny_vlm import tiny_config

LAYER = re.compile(r"(.*\.layers?\.)(\d+)(\..*)")
FOUR_PATCHES = {
    f"model.multi_modal_projector.{name}": 4 for name in ("layer_norm.weight", "layer_norm.bias", "linear_1.weight")
}
"""Weights that read four patches side by side, each with all units of the vision tower."""
STREAM = ("cls_token", "position_embeddings", "embed_tokens.weight", "lm_head.weight")
"""Embeddings by position or by word, whose last axis is the units."""
ADDS = (
    "self_attn.o_proj.weight",
    "mlp.down_proj.weight",
    "attention.projection_layer.weight",
    "attention.projection_layer.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
)
"""Weights through which a layer adds to the residual stream. In a layer that adds nothing yet they are noise alone."""
FINAL_NORM = "model.language_model.norm.weight"


def grown(backbone: Backbone, size: str) -> Backbone:
    """The embedded VLM in a larger size."""
    model = grow_vlm(backbone.model, size, backbone.tokenizer).eval()
    return InternVLBackbone(model, backbone.tokenizer, backbone.prepare)


@torch.no_grad()
def grow_vlm(
    model: InternVLForConditionalGeneration,
    size: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    noise: float = 0.5,
) -> InternVLForConditionalGeneration:
    """A VLM of a larger key of `SIZES` that gives the same logits up to rounding, in fp32.

    Args:
        model: an embedded VLM; its word embeddings are also its output layer.
        noise: standard deviation of the noise on weights of copies, relative to the standard deviation of the weights.

    Raises:
        ConfigError: the widths are not multiples, heads or patches have another size, the larger size has fewer layers,
            or the model has weights that the embedded VLM does not have.
    """
    config = tiny_config(size, tokenizer)
    _must_fit(model.config, config, size)
    times = config.text_config.hidden_size // model.config.text_config.hidden_size
    large = InternVLForConditionalGeneration(config).eval()
    small = {k: v.detach().float().cpu() for k, v in model.state_dict().items()}
    depths = {
        "vision": (model.config.vision_config.num_hidden_layers, config.vision_config.num_hidden_layers),
        "language": (model.config.text_config.num_hidden_layers, config.text_config.num_hidden_layers),
    }
    random = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, like in large.state_dict().items():
        source, first = _source(name, depths)
        weight = small.get(source)
        if weight is None:
            raise ConfigError(f"cannot be grown to {size}: it has no {source}")
        adds = 1.0 if first or not name.endswith(ADDS) else 0.0
        weights[name] = _wider(name, weight, like.shape, noise, random, adds)
        used.add(source)
    if unknown := sorted(set(small) - used):
        raise ConfigError(f"cannot be grown to {size}: its {', '.join(unknown)} would be lost")
    weights[FINAL_NORM] /= times  # the output layer sums over all copies of a unit
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    large.load_state_dict(weights)
    return large


def _source(name: str, depths: Mapping[str, tuple[int, int]]) -> tuple[str, bool]:
    """The parameter of the small model that a parameter comes from, and whether its layer is that layer's first
    copy.
    """
    match = LAYER.fullmatch(name)
    if match is None:
        return name, True
    few, many = depths["vision" if "vision_tower" in name else "language"]
    index = int(match[2])
    source = index * few // many
    return f"{match[1]}{source}{match[3]}", index == 0 or (index - 1) * few // many < source


def _wider(name: str, weight: Tensor, shape: torch.Size, noise: float, random: torch.Generator, adds: float) -> Tensor:
    """`weight` in a larger shape: output units are copied, input weights (times `adds`) are split among the copies."""
    if weight.dim() == 1:  # one value a unit
        parts = FOUR_PATCHES.get(name, 1)
        return adds * weight.reshape(parts, -1).repeat(1, shape[0] // weight.shape[0]).flatten()
    if name.endswith(STREAM):
        return weight.repeat(*(1,) * (weight.dim() - 1), shape[-1] // weight.shape[-1])
    written = weight.repeat(shape[0] // weight.shape[0], *(1,) * (weight.dim() - 1))
    if weight.dim() == 4:  # the patch embedding reads pixels, which have no copies
        return written
    return _split(written, FOUR_PATCHES.get(name, 1), shape[1], noise, random, adds)


def _split(weight: Tensor, parts: int, wide: int, noise: float, random: torch.Generator, adds: float) -> Tensor:
    """(rows, units) to (rows, wide): the weights of a unit's copies add up to the unit's weight, times `adds`."""
    rows, units = weight.shape
    copies = wide // units
    shared = weight.reshape(rows, parts, 1, units // parts).expand(-1, -1, copies, -1) / copies
    added = torch.randn(shared.shape, generator=random) * noise * weight.std() / copies
    return (adds * shared + added - added.mean(2, keepdim=True)).reshape(rows, wide)


def _must_fit(small: object, large: object, size: str) -> None:
    for part, widths in (
        ("vision_config", ("hidden_size", "intermediate_size", "num_attention_heads")),
        ("text_config", ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")),
    ):
        a, b = getattr(small, part), getattr(large, part)
        pairs = {key: (getattr(a, key), getattr(b, key)) for key in widths}
        wrong = [f"{k} {x} and {y}" for k, (x, y) in pairs.items() if y % x or y // x != b.hidden_size // a.hidden_size]
        for key in ("image_size", "patch_size", "vocab_size"):
            x, y = getattr(a, key, None), getattr(b, key, None)
            wrong += [] if x is None or _same(x, y) else [f"{key} {x} and {y}"]
        if b.num_hidden_layers < a.num_hidden_layers:
            wrong.append(f"num_hidden_layers {a.num_hidden_layers} and {b.num_hidden_layers}")
        if wrong:
            raise ConfigError(f"cannot be grown to {size}: {part.removesuffix('_config')} {'; '.join(wrong)}")


def _same(x: object, y: object) -> bool:
    return list(x) == list(y) if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)) else x == y
