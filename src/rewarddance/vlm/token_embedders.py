"""Frozen encoders that turn a picture and a prompt into tokens: what a learned reward reads.

Shapes: N items, P tokens of a picture, C its channels, T tokens of the longest prompt, D their channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.vlm.embedders import ClipEmbedder, holds_clip
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.registry import load_backbone_folder


class TokenEmbedder(Protocol):
    """A frozen pair of encoders."""

    @property
    def device(self) -> torch.device: ...

    @property
    def most_words(self) -> int:
        """The longest prompt that the encoder reads, in tokens."""
        ...

    def pictures(self, media: Sequence[Media]) -> Tensor:
        """Tokens of the first frames, (N, P, C) fp32; differentiable to pixels."""
        ...

    def words(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of prompts (N, T, D) fp32, and which of them are padding (N, T)."""
        ...

    def num_words(self, prompt: str) -> int:
        """Number of tokens of a prompt; no prompt is cut."""
        ...

    def save(self, folder: Path) -> None:
        """Write the folder that `load_token_embedder` reads."""
        ...


class VlmTokens:
    """An InternVL: projected image tokens, and the language model's word embeddings."""

    def __init__(self, backbone: InternVLBackbone) -> None:
        self.backbone = backbone
        backbone.module.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def most_words(self) -> int:
        return self.backbone.max_tokens

    def pictures(self, media: Sequence[Media]) -> Tensor:
        tokens = self.backbone.image_tokens([(m, (0,)) for m in media]).float()
        return tokens.view(len(media), -1, tokens.shape[-1])

    @torch.no_grad()
    def words(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        table = self.backbone.model.get_input_embeddings()
        own = [table(torch.tensor(self._ids(p), device=self.device)).float() for p in prompts]
        return pad_sequence(own, batch_first=True), _padding([len(x) for x in own], self.device)

    def num_words(self, prompt: str) -> int:
        return len(self._ids(prompt))

    def _ids(self, prompt: str) -> list[int]:
        ids: list[int] = self.backbone.tokenizer(
            self.backbone.encoder.plain(prompt).strip(), add_special_tokens=False
        ).input_ids
        return ids

    def save(self, folder: Path) -> None:
        self.backbone.save(folder)


class ClipTokens:
    """A CLIP model: the states of its two towers."""

    def __init__(self, clip: ClipEmbedder, source: Path) -> None:
        self.clip, self.source = clip, source

    @property
    def device(self) -> torch.device:
        device: torch.device = self.clip.model.device
        return device

    @property
    def most_words(self) -> int:
        return self.clip.most_tokens

    def pictures(self, media: Sequence[Media]) -> Tensor:
        pixels = self.clip.prepare(media).to(self.device)
        states: Tensor = self.clip.model.vision_model(pixel_values=pixels).last_hidden_state
        return states.float()

    @torch.no_grad()
    def words(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = self.clip.tokenizer(list(prompts), padding=True, return_tensors="pt").to(self.device)
        mask = tokens.attention_mask
        states = self.clip.model.text_model(input_ids=tokens.input_ids, attention_mask=mask).last_hidden_state
        return states.float(), mask == 0

    def num_words(self, prompt: str) -> int:
        return len(self.clip.tokenizer(prompt).input_ids)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.clip.model.save_pretrained(folder)
        self.clip.tokenizer.save_pretrained(folder)
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (self.source / name).is_file():
                (folder / name).write_bytes((self.source / name).read_bytes())


def _padding(lengths: Sequence[int], device: torch.device) -> Tensor:
    places = torch.arange(max(lengths), device=device)
    return places[None] >= torch.tensor(lengths, device=device)[:, None]


def load_token_embedder(folder: Path, device: torch.device) -> TokenEmbedder:
    """CLIP where the folder holds a CLIP model, else a VLM of the embedded one's class (InternVL).

    Raises:
        ConfigError: another architecture, or files that are missing or broken.
    """
    if holds_clip(folder):
        return ClipTokens(ClipEmbedder.load(folder, str(device)), folder)
    backbone = load_backbone_folder(folder)
    if not isinstance(backbone, InternVLBackbone):
        raise ConfigError(f"{folder}: a learned reward reads embeddings of InternVL or CLIP, not of this architecture")
    backbone.module.to(device)
    return VlmTokens(backbone)
