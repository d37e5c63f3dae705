"""Three policies on one generator: a LoRA adapter in training, a slow copy of it, and the model without adapters."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewarddance.core.errors import ConfigError
from rewarddance.core.protocols import Policy

_ADAPTERS = {"trained": "default", "old": "old"}
"""Names that peft knows the adapters by. `save_adapter` has always written the one called `default`."""


class Lora:
    """The LoRA adapters of a pipeline: one for each of its transformers, which are switched together.

    Args:
        transformers: with the adapter methods of diffusers (`PeftAdapterMixin`), frozen; two in Wan 2.2.
        targets: endings of the names of the linear layers that get an adapter.
        save_for_diffusers: `save_lora_weights` of the pipeline's class.
    """

    def __init__(
        self, transformers: Sequence[Any], targets: Sequence[str], save_for_diffusers: Callable[..., None]
    ) -> None:
        self.transformers, self.targets, self._save_for_diffusers = transformers, targets, save_for_diffusers
        self._policy: Policy = "trained"

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters with their names, which begin with the transformer's number if there are several."""
        for number, transformer in enumerate(self.transformers, 1):
            prefix = f"{number}." if len(self.transformers) > 1 else ""
            yield from ((prefix + name, p) for name, p in transformer.named_parameters())

    def _tensors(self, policy: Policy) -> dict[str, nn.Parameter]:
        """The adapters' matrices by name, without the adapter's name in it; empty if there is no such adapter."""
        part = f".{_ADAPTERS[policy]}."
        return {n.replace(part, "."): p for n, p in self._parameters() if ".lora_" in n and part in n}

    def _require(self, policy: Policy) -> dict[str, nn.Parameter]:
        """The adapters' matrices.

        Raises:
            ConfigError: there is no such adapter.
        """
        if not (trained := self._tensors("trained")):
            raise ConfigError(f"no {policy} policy: the generator has no adapter; call add_lora first")
        if policy != "old":
            return trained
        if not (old := self._tensors("old")):
            raise ConfigError("no old policy: call add_old first")
        return old

    def _activate(self, policy: Policy) -> None:
        """Compute as this policy does. Unlike the methods of peft, this leaves every `requires_grad` as it is."""
        flags = [(p, p.requires_grad) for _, p in self._parameters()]
        for transformer in self.transformers:
            if policy == "reference":
                transformer.disable_adapters()
            else:
                transformer.set_adapter(_ADAPTERS[policy])
                transformer.enable_adapters()
        for p, flag in flags:
            p.requires_grad_(flag)
        self._policy = policy

    def add(self, rank: int, alpha: float) -> None:
        """Add the trained adapters, in fp32, as the only trainable part.

        Raises:
            ConfigError: there is one already.
        """
        if self._tensors("trained"):
            raise ConfigError("the generator has a LoRA adapter already")
        for transformer in self.transformers:
            transformer.add_adapter(
                LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(self.targets), init_lora_weights="gaussian")
            )
        for _, p in self._parameters():
            if p.requires_grad:
                p.data = p.data.float()  # at the learning rates of reward feedback, updates of bf16 weights round to 0

    @contextmanager
    def policy(self, policy: Policy) -> Iterator[None]:
        """See `Tunable.policy`."""
        if policy != "trained":
            self._require(policy)
        before = self._policy
        if policy == before:
            yield
            return
        self._activate(policy)
        try:
            yield
        finally:
            self._activate(before)

    def add_old(self) -> None:
        """See `Tunable.add_old`."""
        trained = self._require("trained")
        if self._tensors("old"):
            raise ConfigError("the generator has an old policy already")
        flags, before = {n: p.requires_grad for n, p in self._parameters()}, self._policy
        devices = {p.device for p in trained.values() if p.device.type == "cuda"}
        # peft draws weights, which are overwritten below, and warns of the second adapter
        with torch.random.fork_rng(devices=list(devices)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            for transformer in self.transformers:
                config = deepcopy(transformer.peft_config[_ADAPTERS["trained"]])
                transformer.add_adapter(config, _ADAPTERS["old"])
        for n, p in self._parameters():
            p.requires_grad_(flags.get(n, False))
        for n, p in self._tensors("old").items():
            p.data = trained[n].detach().clone()
        self._activate(before)

    @torch.no_grad()
    def update_old(self, decay: float) -> None:
        """See `Tunable.update_old`."""
        if not 0 <= decay <= 1:
            raise ValueError(f"decay {decay}: must be from 0 to 1")
        old, trained = self._require("old"), self._tensors("trained")
        for n, p in old.items():
            p.lerp_(trained[n], 1 - decay)

    def old_state(self) -> dict[str, Tensor]:
        """See `Tunable.old_state`."""
        return {n: p.detach().clone() for n, p in self._require("old").items()}

    @torch.no_grad()
    def load_old_state(self, state: dict[str, Tensor]) -> None:
        """See `Tunable.load_old_state`."""
        old = self._require("old")
        if {n: p.shape for n, p in old.items()} != {n: t.shape for n, t in state.items()}:
            raise ConfigError("the state of the old policy was made for another generator or another LoRA rank")
        for n, p in old.items():
            p.copy_(state[n])

    def save(self, folder: Path) -> Path:
        """Write the trained adapters for `load`, with their rank and alpha.

        It also writes `pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights(folder)` of diffusers
        reads. In that file the scale alpha / rank is multiplied into the weights, so that readers which ignore the
        metadata apply the adapter at the same strength. The names of a second transformer's files end in `_2`, and
        diffusers loads its file with `load_into_transformer_2=True`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = self.transformers[0].peft_config[_ADAPTERS["trained"]]
        content = {"rank": config.r, "alpha": config.lora_alpha, "targets": sorted(config.target_modules)}
        content |= {"experts": len(self.transformers)} if len(self.transformers) > 1 else {}
        (folder / "adapter.json").write_text(json.dumps(content, indent=2) + "\n")
        scale = config.lora_alpha / config.r
        for number, transformer in enumerate(self.transformers, 1):
            state = {k: v.detach().cpu().contiguous() for k, v in get_peft_model_state_dict(transformer).items()}
            save_file(state, folder / _file_name("adapter", number))
            self._save_for_diffusers(
                folder,
                weight_name=_file_name("pytorch_lora_weights", number),
                transformer_lora_layers={k: v * scale if ".lora_B." in k else v for k, v in state.items()},
                transformer_lora_adapter_metadata=_plain({**config.to_dict(), "lora_alpha": config.r}),
            )
        return folder

    def load(self, folder: Path, *, trainable: bool = False) -> None:
        """Load saved adapters as the trained ones, frozen unless `trainable`. The reference is the model without them.

        Raises:
            ConfigError: the adapter belongs to another generator, or one of its files is missing. If a file is missing,
                nothing is changed.
        """
        settings: dict[str, Any] = json.loads((folder / "adapter.json").read_text())
        num = len(self.transformers)
        if (saved := settings.get("experts", 1)) != num:
            raise ConfigError(f"{folder}: an adapter of {saved} transformers; this generator has {num}")
        files = [folder / _file_name("adapter", number) for number in range(1, num + 1)]
        if missing := [file for file in files if not file.is_file()]:
            raise ConfigError(f"{missing[0]}: is missing; copy the whole folder of the adapter")
        self.add(settings["rank"], settings["alpha"])
        for transformer, file in zip(self.transformers, files, strict=True):
            result = set_peft_model_state_dict(transformer, load_file(file))
            lacking = [k for k in result.missing_keys if "lora_" in k]  # for example, the adapter of a smaller model
            if result.unexpected_keys or lacking:
                raise ConfigError(f"{folder}: the adapter was made for another generator")
            if not trainable:
                transformer.requires_grad_(False)


def _file_name(stem: str, number: int) -> str:
    """The file name for the `number`-th transformer, counted from 1."""
    return f"{stem}.safetensors" if number == 1 else f"{stem}_{number}.safetensors"


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that JSON can hold, with sets as lists."""
    lists = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
    return {k: v for k, v in lists.items() if isinstance(v, str | int | float | bool | list)}
