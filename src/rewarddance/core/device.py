"""Where to compute, and in which precision."""

from __future__ import annotations

from functools import cache

import torch

from rewarddance.core.errors import ConfigError


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA where there is one.

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
    """Whether the hardware multiplies in bf16. CPUs without AVX512-BF16 emulate it ten times slower than fp32."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return True


def computes_in_bf16(precision: str, device: str = "auto") -> bool:
    """Whether `precision` comes to bf16 on that device."""
    return precision == "bf16" and native_bf16(resolve_device(device).type)


def autocast(device: torch.device | str, precision: str = "bf16") -> torch.autocast:
    """bf16 autocast where `precision` is "bf16" and the hardware has it; elsewhere nothing changes (fp32)."""
    kind = torch.device(device).type
    enabled = precision == "bf16" and native_bf16(kind)
    # no cache: older torch hands casts made under no_grad to the gradient step, which then has no graph
    return torch.autocast(kind, torch.bfloat16, enabled=enabled, cache_enabled=False)
