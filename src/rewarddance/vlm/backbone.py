"""A vision-language model in the pieces that the engine calls: encoder of dialogs, vision, language model, head."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from rewarddance.core.clip_frames import ClipFrames
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Dialog
from rewarddance.vlm.attention import attach
from rewarddance.vlm.encoding import ChatEncoder, Encoded, Frame, messages_of
from rewarddance.vlm.layout import Ints, Kernel, Visible
from rewarddance.vlm.varlen import is_available

PROJECTORS = ("merger", "deepstack_merger_list")
"""Parts of Qwen's vision towers that project into the language model; InternVL's projector is outside the tower."""


@dataclass
class Backbone(ABC):
    """Base of the adapters.

    Shapes: T packed tokens, D width, B rows, V vocabulary, C channels of an image token (D, or a multiple of it if the
    model feeds pictures into several layers).
    """

    model: Any
    tokenizer: Any
    prepare: Any
    encoder: ChatEncoder = field(init=False)
    prefers_varlen: bool = field(default=False, init=False)
    """Use flash attention over the nodes (`varlen.py`) in half precision on CUDA, in place of flex attention. Its
    answers are tested. Its speed and its compiled training have not been measured."""

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
            weights: weights to write in place of the model's own, if those are sharded.
        """
        path = Path(folder)
        self.model.save_pretrained(path, state_dict=None if weights is None else dict(weights))
        self.tokenizer.save_pretrained(path)
        self.prepare.save(path)
        return path

    @abstractmethod
    def new_encoder(self) -> ChatEncoder:
        """The encoder of dialogs to token ids."""

    def tile(self, most: int) -> None:
        """Cut large pictures into at most `most` parts from now on.

        Raises:
            ConfigError: `most` is above 1 and the model takes pictures of any size as they are.
        """
        if most != 1:
            raise ConfigError(
                f"tiles: {self.model.config.model_type} sees pictures whole, whatever their size; leave 1"
            )

    def sample_clips(self, clips: ClipFrames) -> None:
        """From now on show these frames of a clip."""
        self.encoder.clips = clips

    @abstractmethod
    def image_tokens(self, frames: Sequence[Frame]) -> Tensor:
        """Image tokens of all images, one after another, (sum of their counts, C); differentiable to pixels."""

    @abstractmethod
    def positions(self, encoded: Encoded) -> Ints:
        """Rotary positions of a dialog's tokens, (axes, S). A position depends only on the tokens before it."""

    @abstractmethod
    def picture_inputs(self, encoded: Sequence[Encoded]) -> Mapping[str, Any]:
        """Arguments of transformers' `generate` that hold the pictures of several dialogs."""

    @torch.no_grad()
    def generate(self, dialogs: Sequence[Dialog], max_tokens: int, temperature: float = 0.0) -> list[str]:
        """The model's answers, up to its end of turn: greedy at temperature 0, else sampled (torch's random stream)."""
        encoded = [self.encoder.chat(messages_of(d)) for d in dialogs]
        width = max(len(e.ids) for e in encoded)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(e.ids)) + list(e.ids) for e in encoded], device=self.device)
        mask = torch.tensor([[0] * (width - len(e.ids)) + [1] * len(e.ids) for e in encoded], device=self.device)
        # Sample from the model's own distribution. The settings in checkpoints are for chats and narrow it.
        sampling: dict[str, Any] = {"do_sample": temperature > 0, "repetition_penalty": 1.0}
        if temperature > 0:
            sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        types = {"mm_token_type_ids": self._types(ids)} if self.needs_types else {}
        written = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            pad_token_id=pad,
            **sampling,
            **types,
            **self.picture_inputs(encoded),
        )
        texts: list[str] = self.tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
        return [t.strip() for t in texts]

    def _types(self, ids: Tensor) -> Tensor:
        """0 for text, 1 for pictures, 2 for clips."""
        pictures, clips = (ids == i for i in (self.encoder.context_id, self.encoder.clip_context_id))
        return torch.where(pictures, 1, torch.where(clips, 2, 0)).int()

    needs_types: ClassVar[bool] = False
    """Whether the model needs an argument that says which tokens are pictures."""

    @property
    def image_token_id(self) -> int:
        return self.encoder.context_id

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the language model supports."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.model
        return module

    @property
    def vision(self) -> nn.Module:
        """The vision tower. Qwen's contains the projection into the language model too."""
        model = self.model.model
        tower: nn.Module = model.vision_tower if hasattr(model, "vision_tower") else model.visual
        return tower

    @property
    def vision_blocks(self) -> list[nn.Module]:
        """Layers of the vision tower."""
        vision: Any = self.vision
        return [*(vision.blocks if hasattr(vision, "blocks") else vision.encoder.layer)]

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers of both towers; sharding gathers them one at a time."""
        return [*self.vision_blocks, *self.model.model.language_model.layers]

    def attention_kernel(self, dtype: torch.dtype) -> Kernel:
        """The attention for passes that compute in this type. The kernels of CUDA have no dropout."""
        if self.device.type != "cuda":
            return "buckets"
        layers = self.model.model.language_model.layers
        if self.module.training and any(getattr(layer.self_attn, "attention_dropout", 0.0) for layer in layers):
            return "buckets"
        use_varlen = self.prefers_varlen and is_available(dtype, int(layers[0].self_attn.head_dim))
        return "varlen" if use_varlen else "flex"

    def freeze_vision(self) -> None:
        """Freeze the vision tower. The projector into the language model stays as it is, trained or not."""
        for name, p in self.vision.named_parameters():
            if not name.startswith(PROJECTORS):
                p.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def hidden_states(
        self,
        ids: Tensor,
        image_tokens: Tensor | None,
        image_places: Tensor,
        positions: Tensor,
        visible: Visible,
        answer_places: Tensor,
    ) -> Tensor:
        """Last hidden states (N, D) of the language model at the packed positions `answer_places` (N,).

        Args:
            ids: token ids (T,), -1 at image tokens.
            image_tokens: (number of them, C), in the order in which they stand; image_places: where they stand.
            positions: rotary positions (axes, T).
        """
        is_image = ids < 0
        embeds = self.model.get_input_embeddings()(ids.masked_fill(is_image, 0))
        if image_tokens is not None:
            width = embeds.shape[-1]
            embeds = embeds.index_put((image_places,), image_tokens[:, :width].to(embeds.dtype))
        out = self.model.model.language_model(
            inputs_embeds=embeds[None],
            position_ids=positions[0][None] if len(positions) == 1 else positions[:, None],
            use_cache=False,
            tree=visible,
            answers=answer_places,
            **self.extra_inputs(is_image, image_tokens),
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden if self._trims else hidden[answer_places]

    def extra_inputs(self, is_image: Tensor, image_tokens: Tensor | None) -> Mapping[str, Any]:
        """Further arguments of the language model. These masks keep transformers from building its own.

        A model whose layers differ takes a mask for each kind, others (Llama) take one of four axes as it is.
        """
        if getattr(self.model.config.get_text_config(), "layer_types", None):
            return {"attention_mask": dict.fromkeys(("full_attention", "sliding_attention"))}
        return {"attention_mask": torch.zeros(1, 1, 1, 1, device=is_image.device)}

    def head_rows(self, ids: Tensor) -> Tensor:
        """Rows of the language-model head for some tokens, (N, D)."""
        weight: Tensor = self.model.lm_head.weight
        return weight[ids]

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits (B, V) of hidden states (B, D). Two dimensions, since bf16 is slow with three on a CPU."""
        out: Tensor = self.model.lm_head(hidden)
        return out


def open_config(folder: str | Path, known: Sequence[str]) -> Any:
    """The model configuration of a folder.

    Raises:
        ConfigError: not a model's folder, or an architecture that is not in `known`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: no config.json; needs a folder in Hugging Face layout")
    try:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise ConfigError(f"{folder}: config.json is not JSON of a model ({error})") from None
    if model_type == "internvl_chat":
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
