"""Save trained models in bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


@torch.no_grad()
def rounded(module: nn.Module) -> None:
    """Round all weights to bf16 values, so that measurements fit the weights that are saved."""
    for p in module.parameters():
        p.copy_(p.to(torch.bfloat16))


def save_bf16(model: Any, folder: Path) -> None:
    """Save a model or pipeline in its library's layout, with all floating-point weights in bf16."""
    model.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        tensors = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(tensors, file, metadata=metadata)
        file.chmod(0o644)
