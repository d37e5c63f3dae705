"""Adapter for `InternVLForConditionalGeneration`: the embedded VLM and public native checkpoints alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from rewarddance.vlm.backbone import Backbone, open_config
from rewarddance.vlm.encoding import ChatEncoder, Encoded, Frame
from rewarddance.vlm.preprocess import Preprocessor


@dataclass
class InternVLBackbone(Backbone):
    """InternVL: every picture is one square of a fixed number of tokens."""

    prepare: Preprocessor

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Load a local folder in Hugging Face layout.

        Raises:
            ConfigError: not an InternVL folder in native transformers format, or a tokenizer that cannot be used.
        """
        folder = Path(folder)
        config = open_config(folder, ("internvl",))
        model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        side = config.vision_config.image_size[0]
        return cls(model, AutoTokenizer.from_pretrained(folder), Preprocessor.load(folder, side))

    def new_encoder(self) -> ChatEncoder:
        return ChatEncoder(self.tokenizer, self.model.config.image_seq_length)

    def see(self, frames: Sequence[Frame]) -> Tensor:
        pixels = self._pixels(frames)
        seen: Tensor = self.model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        return seen.flatten(0, 1)

    def pictures(self, encoded: Sequence[Encoded]) -> Mapping[str, Any]:
        frames = [f for e in encoded for f in e.images]
        return {"pixel_values": self._pixels(frames).to(self.model.dtype)} if frames else {}

    def _pixels(self, frames: Sequence[Frame]) -> Tensor:
        """Prepared frames in their order, sizes together."""
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
        return pixels

    def positions(self, encoded: Encoded) -> Tensor:
        return torch.arange(len(encoded.ids))[None]
