"""A small VLM made wider and deeper without a change of what it computes.

Where a large one cannot be pretrained, it can still begin from what a small one knows: "Net2Net" (Chen et al. 2016),
for transformers "bert2BERT" (Chen et al. 2022). Wider: every unit becomes several copies, and who reads them takes its
weight from all copies together. Deeper: a layer is followed by a copy of itself that adds nothing yet. Copies read with
equal weights would be trained in step for ever, so the readers' weights get noise that sums to zero over the copies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from rewarddance.core.errors import ConfigError
from rewarddance.vlm.tiny import tiny_config

LAYER = re.compile(r"(.*\.layers?\.)(\d+)(\..*)")
FOUR_PATCHES = {
    f"model.multi_modal_projector.{name}": 4 for name in ("layer_norm.weight", "layer_norm.bias", "linear_1.weight")
}
"""What sees four patches side by side, each with all units of the vision tower."""
STREAM = ("cls_token", "position_embeddings", "embed_tokens.weight", "lm_head.weight")
"""What is put into the stream by place or by word: units come last."""
ADDS = (
    "self_attn.o_proj.weight",
    "mlp.down_proj.weight",
    "attention.projection_layer.weight",
    "attention.projection_layer.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
)
"""What a layer adds to the stream with; in a layer that is to change nothing, noise that sums to zero over copies."""
FINAL_NORM = "model.language_model.norm.weight"


@torch.no_grad()
def grow(
    model: InternVLForConditionalGeneration,
    size: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    noise: float = 0.5,
    seed: int = 0,
) -> InternVLForConditionalGeneration:
    """A VLM of a larger key of `SIZES` that gives the same logits (up to rounding), in fp32.

    Args:
        model: an embedded VLM; its word embeddings are its output layer too.
        noise: standard deviation of what is added to the weights of copies, in shares of that of the weights.

    Raises:
        ConfigError: the widths are not multiples, heads or patches are of another size, there are fewer layers, or
            weights that the embedded VLM does not have.
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
    random = torch.Generator().manual_seed(seed)
    grown: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, like in large.state_dict().items():
        source, first = _source(name, depths)
        weight = small.get(source)
        if weight is None:
            raise ConfigError(f"cannot be grown to {size}: it has no {source}")
        adds = 1.0 if first or not name.endswith(ADDS) else 0.0
        grown[name] = _wider(name, weight, like.shape, noise, random, adds)
        used.add(source)
    if unknown := sorted(set(small) - used):
        raise ConfigError(f"cannot be grown to {size}: its {', '.join(unknown)} would be lost")
    grown[FINAL_NORM] /= times  # the output layer sums over all copies of a unit
    grown["lm_head.weight"] = grown["model.language_model.embed_tokens.weight"]
    large.load_state_dict(grown)
    return large


def _source(name: str, depths: Mapping[str, tuple[int, int]]) -> tuple[str, bool]:
    """The parameter that one of the large model comes from, and whether it is the first copy of that one's layer."""
    found = LAYER.fullmatch(name)
    if found is None:
        return name, True
    few, many = depths["vision" if "vision_tower" in name else "language"]
    index = int(found[2])
    source = index * few // many
    return f"{found[1]}{source}{found[3]}", index == 0 or (index - 1) * few // many < source


def _wider(name: str, weight: Tensor, shape: torch.Size, noise: float, random: torch.Generator, adds: float) -> Tensor:
    """`weight` in a larger shape: copies of what is written; what is read (times `adds`) split among the copies."""
    if weight.dim() == 1:  # one number a unit
        parts = FOUR_PATCHES.get(name, 1)
        return adds * weight.reshape(parts, -1).repeat(1, shape[0] // weight.shape[0]).flatten()
    if name.endswith(STREAM):
        return weight.repeat(*(1,) * (weight.dim() - 1), shape[-1] // weight.shape[-1])
    written = weight.repeat(shape[0] // weight.shape[0], *(1,) * (weight.dim() - 1))
    if weight.dim() == 4:  # patches read pixels, of which there are no copies
        return written
    return _split(written, FOUR_PATCHES.get(name, 1), shape[1], noise, random, adds)


def _split(weight: Tensor, parts: int, wide: int, noise: float, random: torch.Generator, adds: float) -> Tensor:
    """(rows, units) to (rows, wide): the weights of a unit's copies sum up to its own, times `adds`."""
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
