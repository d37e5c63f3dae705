"""The least time that the linear layers' products can take: what is left above it is the engine's to lose."""

import time

import torch
from torch import nn

from rewarddance.vlm.internvl import InternVLBackbone


def wait(device: torch.device) -> None:
    """Until the device has done what it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def products(module: nn.Module, rows: int, *, train: bool) -> float:
    """Seconds that the module's linear layers alone take on so many rows at once: nothing else, least of three."""
    found = 0.0
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        weight = linear.weight.detach().requires_grad_(train)
        like = {"dtype": weight.dtype, "device": weight.device}
        x = torch.rand(rows, linear.in_features, requires_grad=train, **like)
        slope = torch.rand(rows, linear.out_features, **like)
        best = float("inf")
        for _ in range(3):
            wait(weight.device)
            began = time.perf_counter()
            y = nn.functional.linear(x, weight)
            if train:
                torch.autograd.grad(y, (x, weight), slope)
            wait(weight.device)
            best = min(best, time.perf_counter() - began)
        found += best
    return found


def operations(module: nn.Module, rows: int) -> float:
    """Multiply-adds times two of the linear layers on so many rows."""
    return 2.0 * rows * sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


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


def floors(backbone: InternVLBackbone, tokens: int, images: int, *, train: bool) -> tuple[float, float]:
    """Least seconds of the products: at the speed of a large product, and at that of this model's own products."""
    model = backbone.model.model
    side, patch = model.config.vision_config.image_size[0], model.config.vision_config.patch_size[0]
    patches = ((side // patch) ** 2 + 1) * images
    work = operations(model.language_model, tokens) * (3 if train else 1) + operations(model.vision_tower, patches)
    own = products(model.language_model, tokens, train=train) + products(model.vision_tower, patches, train=False)
    return work / peak(backbone.model.dtype, backbone.device), own
