"""Adapter for `InternVLForConditionalGeneration`: the embedded VLM and public native checkpoints alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, InternVLForConditionalGeneration

from rewarddance.core.errors import ConfigError
from rewarddance.vlm.attention import Packed, attach
from rewarddance.vlm.encoding import ChatEncoder, Frame
from rewarddance.vlm.preprocess import Preprocessor


@dataclass
class InternVLBackbone:
    """A VLM in the three pieces that the engine drives: vision, language model, head.

    Shapes: N images, I tokens an image, D width, B rows, S tokens, T packed tokens, V vocabulary.
    """

    model: Any
    tokenizer: Any
    prepare: Preprocessor

    def __post_init__(self) -> None:
        self.encoder = ChatEncoder(self.tokenizer, self.model.config.image_seq_length)
        self.image_token_id: int = self.encoder.context_id
        if self.image_token_id != self.model.config.image_token_id:
            raise ConfigError("tokenizer and model disagree about the image token; the folder mixes two models")
        attach(self.model.model.language_model)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> InternVLBackbone:
        """Load a local folder in Hugging Face layout.

        Raises:
            ConfigError: not an InternVL folder in native transformers format, or a tokenizer that cannot be used.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder}: no config.json; needs a folder in Hugging Face layout")
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "internvl":
            raise ConfigError(f"{folder}: architecture {config.model_type!r} is not supported; needs 'internvl'")
        model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        side = config.vision_config.image_size[0]
        return cls(model, AutoTokenizer.from_pretrained(folder), Preprocessor.load(folder, side))

    def save(self, folder: str | Path) -> Path:
        """Write the ordinary folder: config.json, model.safetensors, tokenizer files, preprocessor_config.json."""
        path = Path(folder)
        self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        self.prepare.save(path)
        return path

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.model
        return module

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def see(self, frames: Sequence[Frame]) -> Tensor:
        """Image tokens of frames, (N, I, D); differentiable to pixels."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, (media, _) in enumerate(frames):
            by_size.setdefault(media.size, []).append(i)
        parts, order = [], []
        for rows in by_size.values():
            stacked = torch.stack([frames[i][0].frames[frames[i][1]].to(self.device) for i in rows])
            parts.append(self.prepare.frames(stacked, frames[rows[0]][0].origin))
            order += rows
        pixels = torch.cat(parts)
        if order != list(range(len(frames))):
            pixels = pixels[torch.tensor(order).argsort().to(pixels.device)]
        seen: Tensor = self.model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        return seen

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings of token ids (B, S), (B, S, D)."""
        out: Tensor = self.model.get_input_embeddings()(ids)
        return out

    def read(self, embeds: Tensor, positions: Tensor, tree: Packed, answers: Tensor) -> Tensor:
        """Hidden states (1, N, D) of the language model at the packed places `answers` (N,).

        Args:
            embeds: (1, T, D), packed by `tree`; positions: (1, T), of every token in its own sequence.
        """
        out = self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=dict.fromkeys(("full_attention", "sliding_attention")),
            position_ids=positions,
            use_cache=False,
            tree=tree,
            answers=answers,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits (B, V) of hidden states (B, D); two-dimensional, which bf16 on CPU wants."""
        out: Tensor = self.model.lm_head(hidden)
        return out
