"""Adapter for `WanPipeline` and `WanImageToVideoPipeline`: the embedded ones, and Wan 2.1 and 2.2.

Latents are (B, C, f, h, w), with f = 1 + (F - 1) / temporal factor for clips of F frames.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from torch import Tensor

from rewarddance.core.device import autocast
from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media
from rewarddance.core.task import Drawn, Request, picture_of, text_of, texts_of
from rewarddance.generator import flow
from rewarddance.generator.base import PipelineGenerator, checked_side, load_pipeline, num_longer
from rewarddance.generator.whole_clip import WanAutoencoder

ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
             "attn2.to_out.0")  # fmt: skip
"""The layers that get a LoRA adapter: self-attention and attention to the text."""
CLIP_FILE = "clip.json"
"""Beside `model_index.json`: the `ClipShape` that a model was trained for."""
CLIP_TOKENS = 512
"""Tokens of the text if the transformer also reads image embeddings; diffusers' attention needs this number."""


@dataclass(frozen=True)
class ClipShape:
    """What a model draws. The defaults are those of the public Wan 2.1 at 480 pixels.

    Attributes:
        num_frames: 1 + a multiple of the autoencoder's temporal factor.
        fps: frames per second.
        side: height and width in pixels.
        max_sequence_length: tokens of a prompt; padding is read too, as zeros.
    """

    num_frames: int = 81
    fps: float = 16.0
    side: int = 480
    max_sequence_length: int = 512

    @classmethod
    def of(cls, folder: Path) -> ClipShape:
        """The shape in a folder's `clip.json`; the defaults if it has none.

        Raises:
            ConfigError: the file has an unknown key.
        """
        file = folder / CLIP_FILE
        try:
            return cls(**json.loads(file.read_text())) if file.is_file() else cls()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{file}: not the shape of a clip ({error})") from None


@dataclass(frozen=True)
class WanCondition:
    """Text embeddings (B, S, D), those of the empty prompt (1, S, D) if guidance is on, and what image-to-video reads
    of the given pictures.

    Attributes:
        picture: mask and latents beside the noisy ones, (B, factor + C, f, h, w); with `expand_timesteps` the latents
            of the first frame alone, (B, C, 1, h, w).
        image: image embeddings (B, L, E) of Wan 2.1.
    """

    embeds: Tensor
    empty: Tensor | None = None
    picture: Tensor | None = None
    image: Tensor | None = None


class WanGenerator(PipelineGenerator):
    """Wan text-to-video. Guidance is classifier-free with the empty prompt and costs a second forward pass.

    Args:
        pipeline: with one transformer, or with two experts and a `boundary_ratio` (Wan 2.2).
        guidance: classifier-free guidance scale, the same for both experts; 1 is off.
        shape: of its clips.

    Raises:
        ConfigError: the side is no whole number of patches, or the number of frames does not fit.
    """

    kind = WanPipeline
    from_picture: ClassVar[bool] = False

    def __init__(self, pipeline: Any, guidance: float = 1.0, shape: ClipShape | None = None) -> None:
        self.shape = shape or ClipShape()
        patch = int(pipeline.vae_scale_factor_spatial) * int(pipeline.transformer.config.patch_size[1])
        side = checked_side(self.shape.side, patch)
        super().__init__(pipeline, guidance, side, WanAutoencoder, ATTENTION)
        self.temporal = int(pipeline.vae_scale_factor_temporal)
        if (self.shape.num_frames - 1) % self.temporal:
            raise ConfigError(f"{self.shape.num_frames} frames: this generator draws 1 + a multiple of {self.temporal}")
        if self._reads_images and self.shape.max_sequence_length != CLIP_TOKENS:
            raise ConfigError(
                f"max_sequence_length {self.shape.max_sequence_length}: a transformer that reads image embeddings "
                f"needs {CLIP_TOKENS}"
            )
        self._empty: Tensor | None = None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        guidance: float = 1.0,
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        max_sequence_length: int = 256,
    ) -> Self:
        """Load a local folder, see `load_pipeline`.

        Args:
            resolution: side of its clips in pixels; that of `clip.json` when None.
            max_sequence_length: tokens of a prompt. A `clip.json` takes its place, and a transformer that reads image
                embeddings needs 512.
        """
        folder = Path(folder)
        pipeline = load_pipeline(cls.kind, folder, dtype)
        shape = ClipShape.of(folder)
        if not (folder / CLIP_FILE).is_file() and pipeline.transformer.config.image_dim is None:
            shape = replace(shape, max_sequence_length=max_sequence_length)
        if resolution is not None:
            shape = replace(shape, side=resolution)
        return cls(pipeline, guidance, shape)

    @property
    def _reads_images(self) -> bool:
        return self.pipeline.transformer.config.image_dim is not None

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    @property
    def latent_side(self) -> int:
        """Height and width of the latents."""
        return self.side // int(self.pipeline.vae_scale_factor_spatial)

    @property
    def latent_frames(self) -> int:
        """Number of latent frames."""
        return 1 + (self.shape.num_frames - 1) // self.temporal

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        shape = (n, self.latent_channels, self.latent_frames, self.latent_side, self.latent_side)
        return torch.randn(shape, generator=rng, device=rng.device).to(self.device)

    def times(self, num_steps: int) -> Tensor:
        """The times of the pipeline's scheduler. The steps between them are Euler's, whatever its solver.

        So samples equal those of the pipeline if its scheduler is `FlowMatchEulerDiscreteScheduler`.
        """
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(num_steps)
        return torch.as_tensor(scheduler.sigmas).float()

    def encode(self, pixels: Tensor) -> Tensor:
        """Clips (B, F, 3, H, W) in [0, 1] to normalised latents."""
        return torch.as_tensor(self.autoencoder.encode(pixels.transpose(1, 2) * 2 - 1))

    def decode_tensor(self, z: Tensor) -> Tensor:
        """Normalised latents to pixels (B, F, 3, H, W) in [0, 1]. Pixels that are clamped have no gradient."""
        return super().decode_tensor(z).transpose(1, 2)

    def decode(self, z: Tensor) -> list[Media]:
        fps = self.shape.fps if self.shape.num_frames > 1 else None
        return [Media(x, fps, origin="generator") for x in self.decode_tensor(z)]

    def decode_in_chunks(self, num: int) -> None:
        """See `whole_clip.decode_chunks`."""
        self.autoencoder.chunk = num

    def num_cut(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the text encoder reads."""
        return num_longer(self.pipeline.tokenizer, [cleaned(p) for p in prompts], self.shape.max_sequence_length)

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """As the pipelines do it. Image-to-video's own method needs ftfy, which is optional here."""
        tokens = self.pipeline.tokenizer(
            [cleaned(p) for p in prompts], padding="max_length", max_length=self.shape.max_sequence_length,
            truncation=True, add_special_tokens=True, return_attention_mask=True, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        with autocast(self.device, self.precision):
            states = self.pipeline.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return torch.as_tensor(states * tokens.attention_mask[..., None].to(states.dtype))

    @property
    def drawn(self) -> Drawn:
        shape = self.shape
        return Drawn(self.side, shape.num_frames, shape.fps if shape.num_frames > 1 else None, self.from_picture)

    def embed(self, prompts: Sequence[str]) -> WanCondition:
        """Embed prompts; gradients flow to a text encoder that requires them."""
        embeds = self._embed(prompts)
        if self.guidance == 1.0:
            return WanCondition(embeds)
        if self._empty is None:
            with torch.no_grad():
                self._empty = self._embed([""])
        return WanCondition(embeds, self._empty)

    def velocity(self, z: Tensor, t: float | Tensor, condition: WanCondition) -> Tensor:
        n, time = len(z), torch.as_tensor(t, dtype=torch.float32, device=z.device)
        x, time = self._input(z, condition), time.expand(n)
        if condition.empty is None:
            return self._toward_picture(self._forward(x, time, condition.embeds, condition.image), z, time, condition)
        embeds = torch.cat([condition.empty.expand(n, -1, -1), condition.embeds])
        image = None if condition.image is None else condition.image.repeat(2, 1, 1)
        empty, full = self._forward(torch.cat([x, x]), time.repeat(2), embeds, image).chunk(2)
        return self._toward_picture(empty + self.guidance * (full - empty), z, time, condition)

    def _input(self, z: Tensor, condition: WanCondition) -> Tensor:
        """What the transformer reads of the latents."""
        return z

    def _toward_picture(self, v: Tensor, z: Tensor, time: Tensor, condition: WanCondition) -> Tensor:
        return v

    def _timesteps(self, x: Tensor, time: Tensor) -> Tensor:
        """Times as the transformer reads them: (B,), or one for every token with `expand_timesteps`."""
        if not self.pipeline.config.expand_timesteps:
            return time * 1000
        _, down, across = self.transformer.config.patch_size
        tokens = x.shape[2] * (x.shape[3] // down) * (x.shape[4] // across)
        return (time * 1000)[:, None].expand(-1, tokens)

    def _forward(self, x: Tensor, time: Tensor, embeds: Tensor, image: Tensor | None) -> Tensor:
        """Velocities. Of two experts, each takes the rows of its times."""
        boundary = self.pipeline.config.boundary_ratio
        if boundary is None:
            return self._run(self.transformer, x, time, embeds, image)
        late = time < boundary
        v = x.new_zeros(len(x), self.latent_channels, *x.shape[2:], dtype=torch.float32)
        for transformer, rows in ((self.transformer, ~late), (self.pipeline.transformer_2, late)):
            if bool(rows.any()):
                of_rows = None if image is None else image[rows]
                v = v.index_put((rows,), self._run(transformer, x[rows], time[rows], embeds[rows], of_rows))
        return v

    def _run(self, transformer: Any, x: Tensor, time: Tensor, embeds: Tensor, image: Tensor | None) -> Tensor:
        dtype = transformer.dtype
        with autocast(self.device, self.precision):
            out = transformer(
                hidden_states=x.to(dtype), timestep=self._timesteps(x, time), encoder_hidden_states=embeds.to(dtype),
                encoder_hidden_states_image=None if image is None else image.to(dtype), return_dict=False,
            )  # fmt: skip
        return flow.at_least_fp32(torch.as_tensor(out[0]))


class WanImageToVideoGenerator(WanGenerator):
    """Wan image-to-video. `condition` takes prompts with the picture that each clip begins with."""

    kind = WanImageToVideoPipeline
    from_picture = True

    def condition(self, prompts: Sequence[Request]) -> WanCondition:
        """Embed prompts and their pictures of `side` pixels.

        Raises:
            InputError: a prompt without a picture, or a picture of another size.
        """
        pictures: list[Media] = []
        for prompt in prompts:
            if (picture := picture_of(prompt)) is None:
                raise InputError(f"prompt {text_of(prompt)[:60]!r}: image-to-video needs the picture to begin with")
            pictures.append(picture)
        for picture in pictures:
            if picture.size != (self.side, self.side):
                raise InputError(
                    f"{picture.origin or 'picture'}: has {picture.size[1]}x{picture.size[0]} pixels; this generator "
                    f"needs {self.side}x{self.side}"
                )
        first = torch.stack([p.frames[0] for p in pictures]).to(self.device).float() * 2 - 1
        image = self._image_embeds(pictures) if self._reads_images else None
        return replace(self.embed(texts_of(prompts)), picture=self.picture_latents(first), image=image)

    @torch.no_grad()
    def picture_latents(self, first: Tensor) -> Tensor:
        """See `WanCondition.picture`. The frames after the picture are mid-grey when they are encoded.

        Args:
            first: pictures in [-1, 1], (B, 3, H, W).
        """
        if self.pipeline.config.expand_timesteps:
            return torch.as_tensor(self.autoencoder.encode(first[:, :, None]))
        grey = first.new_zeros(*first.shape[:2], self.shape.num_frames - 1, *first.shape[2:])
        z = torch.as_tensor(self.autoencoder.encode(torch.cat([first[:, :, None], grey], 2)))
        mask = z.new_zeros(len(z), self.temporal, *z.shape[2:])
        mask[:, :, 0] = 1
        return torch.cat([mask, z], 1)

    @torch.no_grad()
    def _image_embeds(self, pictures: Sequence[Media]) -> Tensor:
        return torch.as_tensor(self.pipeline.encode_image([p.to_pil() for p in pictures], self.device))

    def _input(self, z: Tensor, condition: WanCondition) -> Tensor:
        assert condition.picture is not None
        if self.pipeline.config.expand_timesteps:
            return torch.cat([condition.picture, z[:, :, 1:]], 2)
        return torch.cat([z, condition.picture], 1)

    def _timesteps(self, x: Tensor, time: Tensor) -> Tensor:
        """With `expand_timesteps` the tokens of the picture are at time 0."""
        times = super()._timesteps(x, time)
        if not self.pipeline.config.expand_timesteps:
            return times
        later = torch.ones_like(times)
        later[:, : times.shape[1] // x.shape[2]] = 0
        return times * later

    def _toward_picture(self, v: Tensor, z: Tensor, time: Tensor, condition: WanCondition) -> Tensor:
        """With `expand_timesteps` the first latent frame goes straight to the picture: v = (z - x0) / t."""
        if not self.pipeline.config.expand_timesteps or condition.picture is None:
            return v
        first = (z[:, :, :1] - condition.picture) / time.clamp(min=1e-6)[:, None, None, None, None]
        return torch.cat([first.to(v), v[:, :, 1:]], 2)


def cleaned(prompt: str) -> str:
    """A prompt as the pipelines clean it: by ftfy if it is installed, without HTML entities and double spaces."""
    if find_spec("ftfy") is not None:
        prompt = import_module("ftfy").fix_text(prompt)
    return " ".join(html.unescape(html.unescape(prompt)).split())
