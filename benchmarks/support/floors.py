"""The least time that the matrix products can take. All time above it could be saved."""

import time
from functools import cache

import torch
from torch import nn

from rewarddance.vlm.engine import PassCounts
from rewarddance.vlm.internvl import InternVLBackbone


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work. A CPU works synchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def linear_operations(module: nn.Module, rows: int) -> float:
    """Operations (two a multiply-add) of the linear layers on this many rows."""
    return 2.0 * rows * sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


@cache
def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large matrix product: 1024 wide on a CPU, 8192 on an accelerator."""
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.rand(side, side, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        wait(device)
        began = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def floor_seconds(backbone: InternVLBackbone, counts: PassCounts, *, train: bool) -> float:
    """Seconds of the products of one call: linear layers and attention, three times the language model in training.

    The vision tower is frozen. Recomputation by gradient checkpointing does not count.
    """
    model = backbone.model.model
    text, vision = model.config.text_config, model.config.vision_config
    patches = (vision.image_size[0] // vision.patch_size[0]) ** 2 + 1
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    language = (
        linear_operations(model.language_model, counts.tokens) + 4.0 * counts.scores * width * text.num_hidden_layers
    )
    seeing = linear_operations(model.vision_tower, patches * counts.images)
    seeing += 4.0 * counts.images * patches**2 * vision.hidden_size * vision.num_hidden_layers
    return (language * (3 if train else 1) + seeing) / peak(backbone.model.dtype, backbone.device)
