"""Encoders that turn pictures and texts into vectors, from local files: CLIP, DINOv2, TorchScript. Nothing is loaded
from the network.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel, Dinov2Model

from rewarddance.core.device import resolve_device
from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media, check_size
from rewarddance.vlm.preprocess import IMAGENET_MEAN, IMAGENET_STD, processor_settings, resized
from rewarddance.vlm.quiet import no_loading_bar


@dataclass(frozen=True)
class Crop:
    """Resize the shortest side (bicubic), cut out the centre, normalise, as in the training of CLIP and DINOv2."""

    shortest: int
    height: int
    width: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def load(cls, folder: Path, side: int) -> Crop:
        """From the processor's settings; `side` pixels if they name no size.

        Raises:
            ConfigError: the folder has no settings, or sizes that are not understood.
        """
        settings = processor_settings(folder)
        size, crop = settings.get("size", side), settings.get("crop_size", side)
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        if isinstance(size, dict):
            size = size.get("shortest_edge", size.get("height"))
        if not isinstance(size, int) or not {"height", "width"} <= crop.keys():
            raise ConfigError(f"{folder}: the image processor's size and crop_size are not understood")
        means = (tuple(settings.get(key, default)) for key, default in _STATISTICS)
        return cls(max(size, crop["height"], crop["width"]), crop["height"], crop["width"], *means)

    def __call__(self, media: Sequence[Media]) -> Tensor:
        """First frames, (B, 3, height, width). Gradients flow."""
        return torch.cat([self._one(m) for m in media])

    def _one(self, media: Media) -> Tensor:
        h, w = media.size
        check_size(h, w, media.origin)
        scale = self.shortest / min(h, w)
        x = resized(media.frames[:1].float(), round(h * scale), round(w * scale))
        top, left = (x.shape[2] - self.height) // 2, (x.shape[3] - self.width) // 2
        x = x[:, :, top : top + self.height, left : left + self.width]
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


_STATISTICS = (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))


class ClipEmbedder:
    """A CLIP model: pictures and texts to unit vectors of one space."""

    def __init__(self, model: Any, tokenizer: Any, prepare: Crop) -> None:
        self.model, self.tokenizer, self.prepare = model, tokenizer, prepare

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> ClipEmbedder:
        """From a local folder of a `CLIPModel` with tokenizer and image processor.

        Raises:
            ConfigError: no such folder, another architecture, or files that are missing or broken.
        """
        model = _pretrained(CLIPModel, "clip", Path(folder), device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{folder}: no tokenizer ({' '.join(str(error).split())})") from None
        return cls(model, tokenizer, Crop.load(Path(folder), model.config.vision_config.image_size))

    @property
    def most_tokens(self) -> int:
        """Number of tokens that the model reads; longer texts are cut."""
        return int(self.model.config.text_config.max_position_embeddings)

    def __call__(self, media: Sequence[Media]) -> Tensor:
        """Unit vectors of pictures, (N, D); differentiable."""
        pixels = self.prepare(media).to(self.model.device)
        return F.normalize(self.model.visual_projection(self.model.vision_model(pixel_values=pixels)[1]), dim=-1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, (N, D). Longer texts than `most_tokens` are cut."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.most_tokens, return_tensors="pt"
        ).to(self.model.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)[1]
        return F.normalize(self.model.text_projection(pooled), dim=-1)

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the model reads."""
        return sum(len(ids) > self.most_tokens for ids in self.tokenizer(list(texts)).input_ids)


class DinoEmbedder:
    """A DINOv2 model: pictures to the class token's state after the last norm."""

    def __init__(self, model: Any, prepare: Crop) -> None:
        self.model, self.prepare = model, prepare

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> DinoEmbedder:
        """From a local folder of a `Dinov2Model` with its image processor.

        Raises:
            ConfigError: no such folder, another architecture, or files that are missing or broken.
        """
        model = _pretrained(Dinov2Model, "dinov2", Path(folder), device)
        return cls(model, Crop.load(Path(folder), model.config.image_size))

    def __call__(self, media: Sequence[Media]) -> Tensor:
        """(N, D); differentiable."""
        out: Tensor = self.model(pixel_values=self.prepare(media).to(self.model.device)).pooler_output
        return out


def holds_clip(folder: str | Path) -> bool:
    """Whether a local folder holds a CLIP model."""
    config = Path(folder) / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "clip"


def _pretrained(kind: Any, model_type: str, folder: Path, device: str) -> Any:
    try:
        stored_type = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: not a local {model_type} folder (config.json: {error})") from None
    if stored_type != model_type:
        raise ConfigError(f"{folder}: holds a model of type {stored_type!r}, not {model_type!r}")
    try:
        with no_loading_bar():
            model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: cannot be loaded ({' '.join(str(error).split())})") from None
    return model.eval().requires_grad_(False).to(resolve_device(device))


def _script(path: str | Path, device: torch.device) -> Any:
    """A TorchScript file. It is a program, so open only files of people you trust."""
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such TorchScript file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # published metrics come as TorchScript
            return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ConfigError(f"{path}: not a TorchScript file ({str(error).splitlines()[0]})") from None


class ScriptEmbedder:
    """A TorchScript file that turns bytes (N, 3, H, W) into features (N, D), such as StyleGAN's `inception-2015-12-05`.

    The file resizes and normalises by itself. It is called with `return_features=True` if it has this argument.
    """

    def __init__(self, path: str | Path, device: str = "auto") -> None:
        self.path, self.device = path, resolve_device(device)
        self.module = _script(path, self.device)
        names = {a.name for a in self.module.forward.schema.arguments}
        self.options = {"return_features": True} if "return_features" in names else {}

    @torch.no_grad()
    def __call__(self, media: Sequence[Media]) -> Tensor:
        """(N, D), without a gradient.

        Raises:
            InputError: the file gives another shape.
        """
        out: Tensor = self.module(_same_size(media, to_bytes=True).to(self.device), **self.options)
        if out.ndim != 2 or len(out) != len(media):
            raise InputError(f"{self.path}: gives {tuple(out.shape)} for {len(media)} pictures, not (N, D)")
        return out


class ScriptDistance:
    """A TorchScript file that takes two batches of pictures in [-1, 1], (N, 3, H, W), and gives N distances: LPIPS."""

    def __init__(self, path: str | Path, device: str = "auto") -> None:
        self.path, self.device = path, resolve_device(device)
        self.module = _script(path, self.device)

    @torch.no_grad()
    def __call__(self, a: Sequence[Media], b: Sequence[Media]) -> Tensor:
        """(N,).

        Raises:
            InputError: the file gives another number of values.
        """
        x, y = (_same_size(media).to(self.device) * 2 - 1 for media in (a, b))
        out: Tensor = self.module(x, y)
        if out.numel() != len(a):
            raise InputError(f"{self.path}: gives {tuple(out.shape)} for {len(a)} pairs, not one distance a pair")
        return out.reshape(-1)


def _same_size(media: Sequence[Media], to_bytes: bool = False) -> Tensor:
    if len({m.size for m in media}) != 1:
        raise InputError(f"pictures of one batch must have one size, got {sorted({m.size for m in media})}")
    return torch.cat([m.to_bytes()[:1] if to_bytes else m.frames[:1].float() for m in media])


def layers_of(module: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
    """States of a transformers vision tower after every layer, (N, places, channels) each."""
    states: tuple[Tensor, ...] = module(pixel_values=pixels, output_hidden_states=True).hidden_states
    return states[1:]
