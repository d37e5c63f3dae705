"""Weights, gradients and optimizer state sharded over processes: FSDP2 (`fully_shard`), with data-parallel replicas."""

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

ForwardCall = Callable[..., Any]
"""Calls `function(*args)`. For sharded weights the call goes through the FSDP root, which gathers them."""


def direct_call(function: Callable[..., Any], *args: Any) -> Any:
    """The `ForwardCall` of weights that are not sharded."""
    return function(*args)


class FsdpRoot(nn.Module):
    """All trained modules under one root. Its forward pass calls any function that uses them.

    FSDP gathers weights when a module is called. The engine calls parts of a model (vision, layers, head) and never
    the whole model; so it calls this root, with the function to run.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(dict(modules))

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def mesh_of(size: int, device: torch.device) -> DeviceMesh:
    """Groups of `size` processes that share one copy of the weights. Several groups are data-parallel replicas.

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
) -> ForwardCall:
    """Shard modules in place, layer by layer, so that no device ever holds all weights. Parameters become DTensors.

    Gradients are sums over all processes (not means), as `all_reduce_gradients` makes them.

    Args:
        blocks: layers whose weights are gathered one layer at a time.
        size: processes that share one copy of the weights.
        gather_as: type in which weights are gathered and compute; None keeps the stored type.

    Returns:
        The call that every forward pass must go through. All processes must make the same number of passes.
    """
    mesh = mesh_of(size, device)
    policy = MixedPrecisionPolicy(param_dtype=gather_as, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    root = FsdpRoot(modules)
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor of a shard. A collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor that every process holds, on the device and with the sharding of `like`."""
    if not isinstance(like, DTensor):
        return tensor if like is None else tensor.to(like.device)
    placed: Tensor = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return placed


def full_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in main memory in the leader, an empty dictionary in other processes. A collective.

    A tensor under two names (tied weights, from `state_dict(keep_vars=True)`) stays one tensor.
    """
    full: dict[str, Tensor] = {}
    first_name: dict[int, str] = {}
    for name, tensor in state.items():
        first = first_name.setdefault(id(tensor), name)
        whole = full_tensor(tensor.detach()) if first == name else None
        if is_leader():
            full[name] = full[first] if whole is None else whole.cpu().contiguous()
    return full
