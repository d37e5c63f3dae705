"""Adapter for Qwen2.5-VL and Qwen3-VL: pictures of any size, rotary places in three axes, DeepStack features."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from rewarddance.core.media import Media
from rewarddance.vlm.backbone import Backbone, open_config
from rewarddance.vlm.encoding import ChatEncoder, Encoded, Frame
from rewarddance.vlm.layout import Ints
from rewarddance.vlm.patches import PatchPreprocessor

CLASSES: dict[str, Any] = {
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}
MARKS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")


@dataclass
class QwenBackbone(Backbone):
    """Qwen-VL. Frames of a video are shown as numbered pictures, as with InternVL."""

    prepare: PatchPreprocessor
    needs_types: ClassVar[bool] = True

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Load a local folder in Hugging Face layout.

        Raises:
            ConfigError: not a Qwen2.5-VL or Qwen3-VL folder, or a tokenizer that cannot be used.
        """
        folder = Path(folder)
        config = open_config(folder, tuple(CLASSES))
        model = CLASSES[config.model_type].from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()
        vision = config.vision_config
        prepare = PatchPreprocessor.load(
            folder, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        )
        return cls(model, AutoTokenizer.from_pretrained(folder), prepare)

    def new_encoder(self) -> ChatEncoder:
        return ChatEncoder(self.tokenizer, self._count, MARKS)

    def _count(self, media: Media) -> int:
        height, width = self.prepare.grid(*media.size, media.origin)
        return height * width // self.prepare.merge**2

    def image_tokens(self, frames: Sequence[Frame]) -> Tensor:
        out = self.model.model.get_image_features(*self._patches(frames), return_dict=True)
        layers = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
        return torch.cat([torch.cat(list(layer)) for layer in layers], -1)

    def picture_inputs(self, encoded: Sequence[Encoded]) -> Mapping[str, Any]:
        frames = [f for e in encoded for f in e.images]
        if not frames:
            return {}
        patches, grids = self._patches(frames)
        return {"pixel_values": patches.to(self.model.dtype), "image_grid_thw": grids}

    def _patches(self, frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
        """Patches of all frames, one after another, and the grid of each, (N, 3)."""
        patches = [self.prepare(m.frames[i].to(self.device), m.origin) for m, i in frames]
        grids = [(1, *self.prepare.grid(*m.size, m.origin)) for m, _ in frames]
        return torch.cat(patches), torch.tensor(grids, device=self.device)

    def extra_inputs(self, is_image: Tensor, image_tokens: Tensor | None) -> Mapping[str, Any]:
        width = self.model.config.text_config.hidden_size
        if self.model.config.model_type == "qwen2_5_vl":
            return super().extra_inputs(is_image, image_tokens)
        # Qwen3-VL takes no dictionary of masks. It passes a tensor with four axes on, and our attention ignores it.
        extra: dict[str, Any] = {"attention_mask": torch.empty(1, 1, 1, 1, device=is_image.device)}
        if image_tokens is not None and image_tokens.shape[1] > width:
            extra["visual_pos_masks"] = is_image[None]
            extra["deepstack_visual_embeds"] = list(torch.split(image_tokens[:, width:], width, 1))
        return extra

    def positions(self, encoded: Encoded) -> Ints:
        """(3, S): time, row and column. Text counts up on all three axes; a picture spans its grid from its place
        on.
        """
        grids = iter([self.prepare.grid(*m.size, m.origin) for m, _ in encoded.images])
        parts, now = [], 0
        for is_image, run in itertools.groupby(encoded.ids, lambda token: token == self.image_token_id):
            num = len(list(run))
            if not is_image:
                parts.append(np.broadcast_to(np.arange(now, now + num), (3, num)))
                now += num
                continue
            height, width = (n // self.prepare.merge for n in next(grids))
            rows, columns = np.indices((height, width)).reshape(2, -1)
            parts.append(now + np.stack([np.zeros_like(rows), rows, columns]))
            now += max(height, width)
        return np.concatenate(parts, 1)
