"""Checkpoints as safetensors and JSON: no pickle, and never half a checkpoint.

A checkpoint is a folder `step_N` with `tensors.safetensors` (flat names such as `model/vlm.weight`) and `state.json`.
It is written beside its final place, flushed and renamed. If weights are sharded, every process writes its own part to
`shards/` in the format of `torch.distributed.checkpoint`. That format pickles its metadata, so load such folders from
trusted sources only. Both kinds can be read by any number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from rewarddance.core.disk import STATE, list_checkpoints, writing
from rewarddance.core.errors import RunError
from rewarddance.core.parallel import barrier, is_leader
from rewarddance.core.sharding import is_sharded, sharded_like

_TENSORS, _SHARDS = "tensors.safetensors", "shards"

Like = Callable[[str], Tensor | None]
"""From a tensor's name to the parameter whose device and sharding the tensor takes, or to None."""


@dataclass(frozen=True)
class Checkpoint:
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under `name/`, without that prefix."""
        return {k[len(name) + 1 :]: v for k, v in self.tensors.items() if k.startswith(name + "/")}


def save_checkpoint(
    root: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write `root/step_N` and remove all but the newest `keep` checkpoints. A collective.

    The leader writes whole tensors. If any tensor is sharded, all processes write to `shards/`.

    Returns:
        The folder written.

    Raises:
        RunError: a file cannot be written, for example because the disk is full. The half-written folder is removed,
            and the checkpoints before it stay.
    """
    final, beside = root / f"step_{step}", root / f".step_{step}.partial"
    try:
        with writing(final, root):
            _write(final, beside, {"step": step, **state}, tensors)
    except RunError:
        if is_leader():
            shutil.rmtree(beside, ignore_errors=True)
        raise
    if is_leader():
        for old in list_checkpoints(root)[:-keep]:
            shutil.rmtree(root / f"step_{old}")
    barrier()
    return final


def _write(final: Path, beside: Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint to `beside`, flush it to the disk and rename it to `final`. A collective."""
    if is_leader():
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    barrier()
    if any(map(is_sharded, tensors.values())):
        with warnings.catch_warnings():  # torch warns about deprecated calls of its own
            warnings.simplefilter("ignore")
            try:
                save({k: v.detach() for k, v in tensors.items()}, checkpoint_id=beside / _SHARDS)
            except CheckpointException as error:  # every process gets the errors of all
                failure = next(iter(error.failures.values()))[0]
                raise (failure if isinstance(failure, OSError) else OSError(str(failure))) from error
    elif is_leader():
        # safetensors refuses tensors that share storage, so each one is cloned
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, beside / _TENSORS)
    barrier()
    if is_leader():
        (beside / STATE).write_text(json.dumps(state))
        for path in (p for p in beside.rglob("*") if p.is_file()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)


def load_checkpoint(root: Path, step: int | None = None, like: Like = lambda _: None) -> Checkpoint | None:
    """The checkpoint of `step` (the newest when None), or None when there is none at all.

    Args:
        like: the parameter whose device and sharding a tensor takes.

    Raises:
        RunError: the step does not exist, or one of its files cannot be read.
    """
    steps = list_checkpoints(root)
    if step is None:
        if not steps:
            return None
        step = steps[-1]
    if step not in steps:
        raise RunError(f"{root}: no checkpoint of step {step}; there are {steps or 'none'}")
    folder = root / f"step_{step}"
    try:
        state = json.loads((folder / STATE).read_text())
        if (folder / _SHARDS).is_dir():
            return Checkpoint(step, _read_shards(folder / _SHARDS, like), state)
        plain = load_file(folder / _TENSORS)
        return Checkpoint(step, {k: sharded_like(v, like(k)) for k, v in plain.items()}, state)
    except (OSError, ValueError, SafetensorError, CheckpointException) as error:
        raise RunError(
            f"{folder}: unreadable checkpoint ({error}); remove the folder to go on from an older one"
        ) from error


def _read_shards(folder: Path, like: Like) -> dict[str, Tensor]:
    """Each process reads its own part; any number of processes may have written."""
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for name, entry in metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            parameter, dtype = like(name), entry.properties.dtype
            if parameter is None:
                tensors[name] = torch.empty(entry.size, dtype=dtype)
            else:
                tensors[name] = torch.empty_like(parameter.detach(), dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(tensors, checkpoint_id=folder)
    return tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as flat tensors and JSON-ready parameter groups."""
    saved = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entries in saved["state"].items()
        for name, value in entries.items()
        if value is not None
    }
    return tensors, [{k: v for k, v in g.items() if k != "params"} for g in saved["param_groups"]]


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Load what `optimizer_tensors` returned. The kernel settings (`fused`, `foreach`) stay those of this optimizer."""
    fresh = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    fits = len(groups) == len(fresh["param_groups"]) and max(state, default=-1) < len(parameters)
    if not fits or any(
        v.shape != parameters[number].shape for number, values in state.items() for v in values.values() if v.ndim
    ):
        raise RunError(
            "the optimizer of this checkpoint trained other parameters; probably an earlier version wrote it. Start a "
            "new run from its weights"
        )
    kept = ("params", "fused", "foreach")
    merged = [{**g, **{k: f[k] for k in kept if k in f}} for g, f in zip(groups, fresh["param_groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": merged})
