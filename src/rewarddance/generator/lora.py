"""Three policies on one generator: a LoRA adapter in training, a slow copy of it, and the model without adapters."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    """The LoRA adapters of a transformer of diffusers.

    Args:
        transformer: with the adapter methods of diffusers (`PeftAdapterMixin`), frozen.
        targets: endings of the names of the linear layers that get an adapter.
        save_for_diffusers: `save_lora_weights` of the pipeline's class.
        expert: number of this transformer in the pipeline, from 1. The names of the second one's files end in `_2`.
        num_experts: transformers of the pipeline.
    """

    def __init__(
        self,
        transformer: Any,
        targets: Sequence[str],
        save_for_diffusers: Callable[..., None],
        expert: int = 1,
        num_experts: int = 1,
    ) -> None:
        self.transformer, self.targets, self._save_for_diffusers = transformer, targets, save_for_diffusers
        self.num_experts, self._suffix = num_experts, "" if expert == 1 else f"_{expert}"
        self._policy: Policy = "trained"

    def _tensors(self, policy: Policy) -> dict[str, nn.Parameter]:
        """The adapter's matrices by their names without the adapter's; empty where there is no such adapter."""
        part = f".{_ADAPTERS[policy]}."
        own = {n: p for n, p in self.transformer.named_parameters() if ".lora_" in n and part in n}
        return {n.replace(part, "."): p for n, p in own.items()}

    def _require(self, policy: Policy) -> dict[str, nn.Parameter]:
        """The adapter's matrices.

        Raises:
            ConfigError: the adapter is not there.
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
        flags = [(p, p.requires_grad) for p in self.transformer.parameters()]
        if policy == "reference":
            self.transformer.disable_adapters()
        else:
            self.transformer.set_adapter(_ADAPTERS[policy])
            self.transformer.enable_adapters()
        for p, flag in flags:
            p.requires_grad_(flag)
        self._policy = policy

    def add(self, rank: int, alpha: float) -> None:
        """Add the trained adapter, in fp32, as the only trainable part.

        Raises:
            ConfigError: there is one already.
        """
        if self._tensors("trained"):
            raise ConfigError("the generator has a LoRA adapter already")
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(self.targets), init_lora_weights="gaussian")
        self.transformer.add_adapter(config)
        for p in self.transformer.parameters():
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
        flags, before = {n: p.requires_grad for n, p in self.transformer.named_parameters()}, self._policy
        config = deepcopy(self.transformer.peft_config[_ADAPTERS["trained"]])
        devices = {p.device for p in trained.values() if p.device.type == "cuda"}
        # peft draws weights, which are overwritten below, and warns of the second adapter
        with torch.random.fork_rng(devices=list(devices)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            self.transformer.add_adapter(config, _ADAPTERS["old"])
        for n, p in self.transformer.named_parameters():
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
        """Write the trained adapter for `load`, with its rank and alpha.

        Beside it stands `pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights(folder)` of diffusers
        reads. There the scale alpha / rank is multiplied into the weights, so that readers which ignore the metadata
        apply the adapter at the same strength. The file of a second expert takes `load_into_transformer_2=True`.
        """
        state = {k: v.detach().cpu().contiguous() for k, v in get_peft_model_state_dict(self.transformer).items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, self._file(folder))
        config = self.transformer.peft_config[_ADAPTERS["trained"]]
        content = {"rank": config.r, "alpha": config.lora_alpha, "targets": sorted(config.target_modules)}
        content |= {"experts": self.num_experts} if self.num_experts > 1 else {}
        (folder / "adapter.json").write_text(json.dumps(content, indent=2) + "\n")
        scale = config.lora_alpha / config.r
        self._save_for_diffusers(
            folder,
            weight_name=f"pytorch_lora_weights{self._suffix}.safetensors",
            transformer_lora_layers={k: v * scale if ".lora_B." in k else v for k, v in state.items()},
            transformer_lora_adapter_metadata=_plain({**config.to_dict(), "lora_alpha": config.r}),
        )
        return folder

    def load(self, folder: Path, *, trainable: bool = False) -> None:
        """Load a saved adapter as the trained one, frozen unless `trainable`. The reference is the model without it.

        Raises:
            ConfigError: the adapter belongs to another generator.
        """
        settings = self.check(folder)
        self.add(settings["rank"], settings["alpha"])
        result = set_peft_model_state_dict(self.transformer, load_file(self._file(folder)))
        lacking = [k for k in result.missing_keys if "lora_" in k]  # for example, the adapter of a smaller model
        if result.unexpected_keys or lacking:
            raise ConfigError(f"{folder}: the adapter was made for another generator")
        if not trainable:
            self.transformer.requires_grad_(False)

    def check(self, folder: Path) -> dict[str, Any]:
        """The settings of a saved adapter.

        Raises:
            ConfigError: it is of another number of transformers, or its weights are missing.
        """
        settings: dict[str, Any] = json.loads((folder / "adapter.json").read_text())
        if (experts := settings.get("experts", 1)) != self.num_experts:
            raise ConfigError(f"{folder}: the adapter of {experts} transformers; this generator has {self.num_experts}")
        if not self._file(folder).is_file():
            raise ConfigError(f"{self._file(folder)}: is missing; copy the whole folder of the adapter")
        return settings

    def _file(self, folder: Path) -> Path:
        return folder / f"adapter{self._suffix}.safetensors"


class ExpertLoras:
    """The LoRA adapters of several transformers (Wan 2.2) as one policy. Each transformer has its own times."""

    def __init__(
        self, transformers: Sequence[Any], targets: Sequence[str], save_for_diffusers: Callable[..., None]
    ) -> None:
        num = len(transformers)
        self.loras = [Lora(t, targets, save_for_diffusers, i, num) for i, t in enumerate(transformers, 1)]

    def add(self, rank: int, alpha: float) -> None:
        """See `Lora.add`."""
        for lora in self.loras:
            lora.add(rank, alpha)

    @contextmanager
    def policy(self, policy: Policy) -> Iterator[None]:
        """See `Tunable.policy`."""
        with ExitStack() as stack:
            for lora in self.loras:
                stack.enter_context(lora.policy(policy))
            yield

    def add_old(self) -> None:
        """See `Tunable.add_old`."""
        for lora in self.loras:
            lora.add_old()

    def update_old(self, decay: float) -> None:
        """See `Tunable.update_old`."""
        for lora in self.loras:
            lora.update_old(decay)

    def old_state(self) -> dict[str, Tensor]:
        """See `Tunable.old_state`; names begin with the number of the expert."""
        return {f"{i}.{n}": t for i, lora in enumerate(self.loras, 1) for n, t in lora.old_state().items()}

    def load_old_state(self, state: dict[str, Tensor]) -> None:
        """See `Tunable.load_old_state`."""
        for i, lora in enumerate(self.loras, 1):
            part = f"{i}."
            lora.load_old_state({n.removeprefix(part): t for n, t in state.items() if n.startswith(part)})

    def save(self, folder: Path) -> Path:
        """See `Lora.save`."""
        for lora in self.loras:
            lora.save(folder)
        return folder

    def load(self, folder: Path, *, trainable: bool = False) -> None:
        """See `Lora.load`. No transformer is changed where a file is missing."""
        for lora in self.loras:
            lora.check(folder)
        for lora in self.loras:
            lora.load(folder, trainable=trainable)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that JSON can hold, with sets as lists."""
    lists = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
    return {k: v for k, v in lists.items() if isinstance(v, str | int | float | bool | list)}
