"""What the engine needs of a vision-language model, and the door to all that we know."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Dialog
from rewarddance.vlm.attention import Packed, attach
from rewarddance.vlm.encoding import ChatEncoder, Encoded, Frame

PROJECTORS = ("merger", "deepstack_merger_list")
"""What Qwen's vision towers hold beside their own layers; InternVL's projector stands outside."""


@dataclass
class Backbone(ABC):
    """A VLM in the pieces that the engine drives: encoder of dialogs, vision, language model, head.

    Shapes: T packed tokens, D width, B rows, V vocabulary, C channels of an image token (D, or a multiple of it where
    a model feeds pictures into several layers).
    """

    model: Any
    tokenizer: Any
    prepare: Any
    encoder: ChatEncoder = field(init=False)

    def __post_init__(self) -> None:
        self.encoder = self.new_encoder()
        if self.image_token_id != self.model.config.image_token_id:
            raise ConfigError("tokenizer and model disagree about the image token; the folder mixes two models")
        self._trims = attach(self.model.model.language_model)

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Load a local folder in Hugging Face layout, in evaluation mode."""

    def save(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> Path:
        """Write the ordinary folder: config.json, model.safetensors, tokenizer files, preprocessor_config.json.

        Args:
            weights: what to write instead of the model's own weights, when those are sharded.
        """
        path = Path(folder)
        self.model.save_pretrained(path, state_dict=None if weights is None else dict(weights))
        self.tokenizer.save_pretrained(path)
        self.prepare.save(path)
        return path

    @abstractmethod
    def new_encoder(self) -> ChatEncoder:
        """How dialogs become token ids."""

    def tile(self, most: int) -> None:
        """Cut large pictures into at most `most` parts from now on.

        Raises:
            ConfigError: more than one, of a model that takes pictures of any size as they are.
        """
        if most != 1:
            raise ConfigError(
                f"tiles: {self.model.config.model_type} sees pictures whole, whatever their size; leave 1"
            )

    @abstractmethod
    def see(self, frames: Sequence[Frame]) -> Tensor:
        """Image tokens of all frames, one after another, (sum of their counts, C); differentiable to pixels."""

    @abstractmethod
    def positions(self, encoded: Encoded) -> Tensor:
        """Places of a dialog's tokens for rotary embeddings, (axes, S); every one depends on what is before it only."""

    @abstractmethod
    def pictures(self, encoded: Sequence[Encoded]) -> Mapping[str, Any]:
        """What transformers' own `generate` needs to see the pictures of several dialogs."""

    @torch.no_grad()
    def generate(self, dialogs: Sequence[Dialog], max_tokens: int, temperature: float = 0.0) -> list[str]:
        """What the model answers, up to its end of turn: greedy at temperature 0, else drawn (torch's stream)."""
        encoded = [self.encoder.chat([("user", d)]) for d in dialogs]
        width = max(len(e.ids) for e in encoded)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(e.ids)) + list(e.ids) for e in encoded], device=self.device)
        mask = torch.tensor([[0] * (width - len(e.ids)) + [1] * len(e.ids) for e in encoded], device=self.device)
        # from the model's own distribution: checkpoints bring settings for chats, which cut it and punish repetition
        drawn: dict[str, Any] = {"do_sample": temperature > 0, "repetition_penalty": 1.0}
        if temperature > 0:
            drawn |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        types = {"mm_token_type_ids": (ids == self.image_token_id).int()} if self.needs_types else {}
        written = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            pad_token_id=pad,
            **drawn,
            **types,
            **self.pictures(encoded),
        )
        texts: list[str] = self.tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
        return [t.strip() for t in texts]

    needs_types: ClassVar[bool] = False
    """Does the model want to be told which tokens are pictures?"""

    @property
    def image_token_id(self) -> int:
        return self.encoder.context_id

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.model
        return module

    @property
    def vision(self) -> nn.Module:
        """What pictures go through before they are tokens; Qwen's holds the projection into the language model too."""
        model = self.model.model
        found: nn.Module = model.vision_tower if hasattr(model, "vision_tower") else model.visual
        return found

    @property
    def vision_blocks(self) -> list[nn.Module]:
        """Layers of the vision tower."""
        vision: Any = self.vision
        return [*(vision.blocks if hasattr(vision, "blocks") else vision.encoder.layer)]

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers of both towers, all of one kind in each: what is sharded, one by one."""
        return [*self.vision_blocks, *self.model.model.language_model.layers]

    def freeze_vision(self) -> None:
        """Leave the vision tower as it is. What projects its tokens into the language model keeps its state."""
        for name, p in self.vision.named_parameters():
            if not name.startswith(PROJECTORS):
                p.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def read(self, ids: Tensor, seen: Tensor | None, positions: Tensor, tree: Packed, answers: Tensor) -> Tensor:
        """Hidden states (N, D) of the language model at the packed places `answers` (N,).

        Args:
            ids: token ids (T,), -1 at image tokens; seen: what stands there, (image tokens, C), in order.
            positions: (axes, T).
        """
        is_image = ids < 0
        embeds = self.model.get_input_embeddings()(ids.masked_fill(is_image, 0))
        if seen is not None:
            width = embeds.shape[-1]
            embeds = embeds.index_put((is_image.nonzero()[:, 0],), seen[:, :width].to(embeds.dtype))
        out = self.model.model.language_model(
            inputs_embeds=embeds[None],
            position_ids=positions[0][None] if len(positions) == 1 else positions[:, None],
            use_cache=False,
            tree=replace(tree, token_of=(), first=()),  # FSDP walks through every argument of every layer
            answers=answers,
            **self.extras(is_image, seen),
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden if self._trims else hidden[answers]

    def extras(self, is_image: Tensor, seen: Tensor | None) -> Mapping[str, Any]:
        """More keywords for the language model; no mask is ever built."""
        return {"attention_mask": dict.fromkeys(("full_attention", "sliding_attention"))}

    def words(self, ids: Tensor) -> Tensor:
        """Rows of the language-model head, (N, D)."""
        weight: Tensor = self.model.lm_head.weight
        return weight[ids]

    def head(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits (B, V) of hidden states (B, D); two-dimensional, which bf16 on CPU wants."""
        out: Tensor = self.model.lm_head(hidden)
        return out


def open_config(folder: str | Path, known: Sequence[str]) -> Any:
    """The configuration of a folder.

    Raises:
        ConfigError: not a model's folder, or an architecture that is not among `known`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: no config.json; needs a folder in Hugging Face layout")
    try:
        written = json.loads((folder / "config.json").read_text()).get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise ConfigError(f"{folder}: config.json is not JSON of a model ({error})") from None
    if written == "internvl_chat":
        raise ConfigError(
            f"{folder}: InternVL in its original layout, which runs code of its own; take the repository whose name "
            "ends in -HF"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"{folder}: transformers cannot read its config.json ({error})") from None
    if config.model_type not in known:
        raise ConfigError(
            f"{folder}: architecture {config.model_type!r} is not supported; known: {', '.join(map(repr, known))}"
        )
    return config


def load_backbone_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> Backbone:
    """Any VLM that we know, by the architecture in its config.json.

    Raises:
        ConfigError: no such architecture, or a folder that cannot be used.
    """
    from rewarddance.vlm.internvl import InternVLBackbone
    from rewarddance.vlm.qwen import QwenBackbone

    kinds: dict[str, type[Backbone]] = {
        "internvl": InternVLBackbone,
        "qwen2_5_vl": QwenBackbone,
        "qwen3_vl": QwenBackbone,
    }
    kind = kinds[open_config(folder, tuple(kinds)).model_type]
    try:
        return kind.load(folder, dtype)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: cannot be loaded ({' '.join(str(error).split())})") from None
