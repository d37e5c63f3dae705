"""Weights, gradients and optimizer state shared out over processes: FSDP2 (`fully_shard`), data-parallel x shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rewarddance.core.errors import ConfigError
from rewarddance.core.parallel import is_leader, world_size

Inside = Callable[..., Any]
"""Calls a function with its arguments where the weights are whole."""


def plainly(function: Callable[..., Any], *args: Any) -> Any:
    """The `Inside` of weights that are not sharded."""
    return function(*args)


class Whole(nn.Module):
    """All trained modules under one root, whose forward pass is any function that uses them.

    FSDP gathers weights when a module is called. Engines call parts of a model (vision, layers, head) and never the
    model, so the root is called instead, with what there is to do.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(dict(modules))

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def mesh_of(size: int, device: torch.device) -> DeviceMesh:
    """Groups of `size` processes that share one copy of the weights; several groups are data-parallel copies.

    Raises:
        ConfigError: the number of processes is not a multiple of `size`.
    """
    if world_size() % size:
        raise ConfigError(f"shard: {size} does not divide the {world_size()} processes that torchrun started")
    if world_size() == size:
        return init_device_mesh(device.type, (size,))
    return init_device_mesh(device.type, (world_size() // size, size), mesh_dim_names=("replicate", "shard"))


def shard(
    modules: Mapping[str, nn.Module],
    blocks: Sequence[nn.Module],
    size: int,
    device: torch.device,
    gather_as: torch.dtype | None = None,
) -> Inside:
    """Shard modules in place; their parameters become DTensors, layer by layer, so that no device holds all at once.

    Gradients are sums over all processes (not means), as `add_up_gradients` makes them.

    Args:
        blocks: layers that are gathered one at a time.
        size: processes that share one copy; gather_as: type in which weights travel and compute.

    Returns:
        What every forward pass has to be called through. All processes must make the same number of passes.
    """
    mesh = mesh_of(size, device)
    policy = MixedPrecisionPolicy(param_dtype=gather_as, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    root = Whole(modules)
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor. Every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor that every process holds, shared out as `like` is."""
    if not isinstance(like, DTensor):
        return tensor if like is None else tensor.to(like.device)
    placed: Tensor = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return placed


def gathered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in main memory for the leader, nothing for the others. Every process has to ask.

    A tensor under two names (tied weights; `state_dict(keep_vars=True)`) stays one.
    """
    found: dict[str, Tensor] = {}
    known: dict[int, str] = {}
    for name, tensor in state.items():
        first = known.setdefault(id(tensor), name)
        full = whole(tensor.detach()) if first == name else None
        if is_leader():
            found[name] = found[first] if full is None else full.cpu().contiguous()
    return found
