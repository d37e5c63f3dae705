"""Adapter for `InternVLForConditionalGeneration`: the embedded VLM and public native checkpoints alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from rewarddance.core.media import Media
from rewarddance.vlm.backbone import Backbone, open_config
from rewarddance.vlm.encoding import ChatEncoder, Encoded, Frame
from rewarddance.vlm.layout import Ints
from rewarddance.vlm.preprocess import Preprocessor


@dataclass
class InternVLBackbone(Backbone):
    """InternVL: a picture is one square with a fixed number of tokens, or several squares with tiling."""

    prepare: Preprocessor

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Load a local folder in Hugging Face layout.

        Raises:
            ConfigError: not an InternVL folder in native transformers format, or a tokenizer that cannot be used.
        """
        folder = Path(folder)
        config = open_config(folder, ("internvl",))
        model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()
        side = config.vision_config.image_size[0]
        return cls(model, AutoTokenizer.from_pretrained(folder), Preprocessor.load(folder, side))

    def new_encoder(self) -> ChatEncoder:
        self._square_tokens = int(self.model.config.image_seq_length)
        return ChatEncoder(self.tokenizer, self._count)

    def _count(self, media: Media) -> int:
        if media.is_clip:  # its frames are not cut, as in InternVL's own processor
            return self._square_tokens
        rows, columns = self.prepare.grid(*media.size)
        squares = rows * columns + 1 if rows * columns > 1 else 1
        return squares * self._square_tokens

    def tile(self, most: int) -> None:
        self.prepare = replace(self.prepare, tiles=most)

    def image_tokens(self, frames: Sequence[Frame]) -> Tensor:
        pixels = self._pixels(frames)
        tokens: Tensor = self.model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        return tokens.flatten(0, 1)

    def mean_states(self, media: Sequence[Media]) -> Tensor:
        """States of the vision tower of pictures, or of the first frames of clips, mean over places, (N, D).
        Differentiable to pixels."""
        pixels = self.prepare(list(media)).to(self.device)
        states: Tensor = self.model.model.vision_tower(pixel_values=pixels).last_hidden_state
        return states.mean(1)

    def picture_inputs(self, encoded: Sequence[Encoded]) -> Mapping[str, Any]:
        frames = [f for e in encoded for f in e.images]
        return {"pixel_values": self._pixels(frames).to(self.model.dtype)} if frames else {}

    def _pixels(self, frames: Sequence[Frame]) -> Tensor:
        """Squares of all frames, in their order. Frames of one size are prepared together."""
        by_size: dict[tuple[tuple[int, int], bool], list[int]] = {}
        for i, (media, _) in enumerate(frames):
            by_size.setdefault((media.size, media.is_clip), []).append(i)
        squares_of: list[Tensor] = [torch.empty(0)] * len(frames)
        for (_, is_clip), rows in by_size.items():
            own = (frames[i] for i in rows)
            stacked = torch.stack([media.frames[index].to(self.device) for media, (index,) in own])
            prepare = replace(self.prepare, tiles=1) if is_clip else self.prepare
            for i, squares in zip(rows, prepare.squares(stacked, frames[rows[0]][0].origin), strict=True):
                squares_of[i] = squares
        return torch.cat(squares_of)

    def positions(self, encoded: Encoded) -> Ints:
        return np.arange(len(encoded.ids))[None]
