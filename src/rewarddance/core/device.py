"""Where to compute, and in which precision."""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import nn

from rewarddance.core.config import Computed, Precision
from rewarddance.core.errors import ConfigError

SMALL_MODEL = 100_000_000
"""Models of at most this many parameters compute in fp32 on a CPU, unless the user asks for bf16."""
SWITCH = "REWARDDANCE_NATIVE_BF16"
"""Environment variable that overrides what the CPU reports: 1 (it has native bf16) or 0 (it has not). For tests."""


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA if there is one, otherwise the CPU.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: this torch sees no CUDA device")
    return torch.device(name)


@cache
def native_bf16(device_type: str) -> bool:
    """Whether the hardware multiplies in bf16. A CPU without AVX512-BF16 emulates it, several times slower than
    fp32.
    """
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type != "cpu":
        return True
    forced = os.environ.get(SWITCH, "")
    if forced not in ("", "0", "1"):
        raise ConfigError(f"{SWITCH}={forced}: must be 0, 1 or unset")
    return forced == "1" if forced else bool(torch.cpu._is_avx512_bf16_supported())


def resolve_precision(requested: Precision, device: torch.device | str, num_parameters: int) -> Computed:
    """The precision that a model's passes will compute in on this device.

    - `fp32`: fp32.
    - `bf16`: bf16 where the hardware has it, else fp32.
    - `auto`: as `bf16`, but a model of at most `SMALL_MODEL` parameters computes in fp32 on a CPU. In bf16 an answer
      depends on what else is in the pass: margins of the embedded judge move by up to 0.04.
    """
    kind = torch.device(device).type
    if requested == "fp32" or not native_bf16(kind):
        return "fp32"
    is_small = kind == "cpu" and num_parameters <= SMALL_MODEL
    return "fp32" if requested == "auto" and is_small else "bf16"


def num_parameters(*modules: nn.Module | None) -> int:
    """Parameters of several modules together."""
    return sum(p.numel() for m in modules if m is not None for p in m.parameters())


def autocast(device: torch.device | str, computed: Computed) -> torch.autocast:
    """A context that computes in bf16 (autocast) or in fp32, inside any other context."""
    # No weight cache: in older torch the gradient step would reuse casts that were made under no_grad. It would then
    # have no graph.
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=computed == "bf16", cache_enabled=False)
