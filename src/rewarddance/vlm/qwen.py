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
from rewarddance.vlm.clip_forms import ClipForm, SecondsInPositions, SecondsInText
from rewarddance.vlm.encoding import ChatEncoder, Encoded, Frame
from rewarddance.vlm.layout import Ints
from rewarddance.vlm.patches import PatchPreprocessor

CLASSES: dict[str, Any] = {
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}
MARKS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
CLIP_CONTEXT = "<|video_pad|>"


@dataclass
class QwenBackbone(Backbone):
    """Qwen-VL. A clip is shown in temporal patches of two frames, with its time (`clip_forms`)."""

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
            folder,
            vision.patch_size,
            vision.spatial_merge_size,
            vision.temporal_patch_size,
            whole_clips=config.model_type == "qwen3_vl",
        )
        return cls(model, AutoTokenizer.from_pretrained(folder), prepare)

    def new_encoder(self) -> ChatEncoder:
        vision = self.model.config.vision_config
        form: ClipForm = SecondsInText(self.prepare.temporal, CLIP_CONTEXT)
        if self.model.config.model_type == "qwen2_5_vl":
            form = SecondsInPositions(self.prepare.temporal, CLIP_CONTEXT, vision.tokens_per_second)
        return ChatEncoder(self.tokenizer, self._count, MARKS, form)

    def _count(self, media: Media) -> int:
        height, width = self._grid(media)
        return height * width // self.prepare.merge**2

    def _grid(self, media: Media) -> tuple[int, int]:
        """Rows and columns of patches of a picture, or of every frame of a clip."""
        if not media.is_clip:
            return self.prepare.grid(*media.size, media.origin)
        return self.prepare.grid(*media.size, media.origin, len(self.encoder.sampled(media).indices))

    def image_tokens(self, frames: Sequence[Frame]) -> Tensor:
        out = self.model.model.get_image_features(*self._patches(frames), return_dict=True)
        layers = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
        return torch.cat([torch.cat(list(layer)) for layer in layers], -1)

    def picture_inputs(self, encoded: Sequence[Encoded]) -> Mapping[str, Any]:
        pictures, clips = self._split([f for e in encoded for f in e.images])
        inputs: dict[str, Any] = {}
        if pictures:
            patches, inputs["image_grid_thw"] = self._patches(pictures)
            inputs["pixel_values"] = patches.to(self.model.dtype)
        if clips:
            patches, grids = self._patches([f for own in clips for f in own])
            inputs["pixel_values_videos"] = patches.to(self.model.dtype)
            sizes = [(len(own), *self._grid(own[0][0])) for own in clips]
            inputs["video_grid_thw"] = torch.tensor(sizes, device=grids.device)
            if self.model.config.model_type == "qwen2_5_vl":
                seconds = [self.prepare.temporal / self.encoder.sampled(own[0][0]).rate for own in clips]
                inputs["second_per_grid_ts"] = torch.tensor(seconds, device=grids.device)
        return inputs

    def _split(self, frames: Sequence[Frame]) -> tuple[list[Frame], list[Sequence[Frame]]]:
        """The pictures, and the images of each clip."""
        pictures: list[Frame] = []
        clips: list[Sequence[Frame]] = []
        start = 0
        while start < len(frames):
            media = frames[start][0]
            stop = start + len(self.encoder.images_of(media))
            if media.is_clip:
                clips.append(frames[start:stop])
            else:
                pictures.append(frames[start])
            start = stop
        return pictures, clips

    def _patches(self, frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
        """Patches of all images, one after another, and the grid of each, (N, 3).

        The vision towers look at every temporal patch of a clip by itself, so each may be an image of its own.
        """
        patches, grids = [], []
        for media, indices in frames:
            pixels = media.frames[list(indices)].to(self.device)
            grid = self._grid(media)
            patches.append(self.prepare(pixels, grid))
            grids.append((1, *grid))
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
        """(3, S): time, row and column. Text counts up on all three axes; an image spans its grid from its place on.

        All images of one run (Qwen2.5-VL's clips) begin at its place, and at their own time.
        """
        images = zip(encoded.images, encoded.counts, encoded.shifts, strict=True)
        parts, now = [], 0
        for is_image, run in itertools.groupby(encoded.ids, lambda token: token in self.encoder.context_ids):
            num = len(list(run))
            if not is_image:
                parts.append(np.broadcast_to(np.arange(now, now + num), (3, num)))
                now += num
                continue
            while num > 0:
                (media, _), count, shift = next(images)
                height, width = (n // self.prepare.merge for n in self._grid(media))
                rows, columns = np.indices((height, width)).reshape(2, -1)
                parts.append(now + np.stack([np.full_like(rows, shift), rows, columns]))
                num -= count
            now += max(height, width)
        return np.concatenate(parts, 1)
