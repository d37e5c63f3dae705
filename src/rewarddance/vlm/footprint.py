"""Memory of a model and of a training pass, counted by running the pass on the meta device (shapes without numbers)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from rewarddance.core.errors import ConfigError
from rewarddance.vlm.attention import attach
from rewarddance.vlm.backbone import PROJECTORS
from rewarddance.vlm.engine import HEAD_ROWS
from rewarddance.vlm.layout import lay_out
from rewarddance.vlm.memory import LiveBytes
from rewarddance.vlm.plan import Key, build_tree


def empty_model(config: PreTrainedConfig) -> Any:
    """The model of a configuration on the meta device, in training mode. It takes no memory."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config).train()


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters.

    Attributes:
        vision: the vision tower without the projector.
        block: the largest layer of either tower.
        root: everything outside layers.
        matrices: matrices in the language model's layers; autocast copies them.
    """

    total: int
    vision: int
    block: int
    root: int
    matrices: int


def parts_of(model: Any) -> ParameterCounts:
    """Count a model's parameters, tied ones once."""

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    vision: Any = model.model.vision_tower if hasattr(model.model, "vision_tower") else model.model.visual
    layers = vision.blocks if hasattr(vision, "blocks") else vision.encoder.layer
    blocks = [size(b) for b in [*layers, *model.model.language_model.layers]]
    matrices = sum(p.numel() for b in model.model.language_model.layers for p in b.parameters() if p.ndim == 2)
    tower = sum(p.numel() for name, p in vision.named_parameters() if not name.startswith(PROJECTORS))
    return ParameterCounts(size(model), tower, max(blocks), size(model) - sum(blocks), matrices)


@dataclass(frozen=True)
class Pass:
    """One training pass over the records of some prompts.

    Attributes:
        records: number of prompts.
        pictures: pictures of each prompt; all are compared with each other in both orders.
        text: tokens of instruction, prompt and question.
        tiles: parts of a picture that InternVL sees beside the whole.
        side: side of a square picture in pixels, for models that take pictures of any size.
    """

    records: int
    pictures: int = 4
    text: int = 96
    tiles: int = 1
    side: int = 448

    def keys(self, image_tokens: int) -> list[Key]:
        """Sequences as the engine plans them. Image tokens are negative numbers."""
        keys = []
        for r in range(self.records):
            head = (*range(self.text // 2), 10_000 + r, *range(20_000, 20_000 + self.text // 3))
            tail = tuple(range(30_000, 30_000 + self.text - len(head)))
            images = [tuple(range(-(i + 1) * 4096, -(i + 1) * 4096 + image_tokens)) for i in range(self.pictures)]
            keys += [(*head, *a, 40_000, *b, *tail) for a in images for b in images if a is not b]
        return sorted(keys)

    @property
    def questions(self) -> int:
        return self.records * self.pictures * (self.pictures - 1)

    def squares(self, config: PreTrainedConfig) -> tuple[int, int]:
        """Number of squares that a picture is cut into, and image tokens of all of them.

        Raises:
            ConfigError: `tiles` above 1 for a model that sees pictures whole.
        """
        if config.model_type == "internvl":
            num = self.tiles + 1 if self.tiles > 1 else 1
            return num, num * int(config.image_seq_length)
        if self.tiles > 1:
            raise ConfigError(f"tiles: {config.model_type} sees pictures whole; give --side, their side in pixels")
        c = config.vision_config
        return 1, max(1, round(self.side / (c.patch_size * c.spatial_merge_size))) ** 2


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps of one tower for the backward pass.

    Attributes:
        total: of all layers.
        inputs: of the layers' inputs alone, which gradient checkpointing keeps.
        layers: number of layers.
        recomputed: at the worst moment of one layer's recomputation and backward pass, without gradients of weights;
            0 if it is not known.
    """

    total: int
    inputs: int
    layers: int
    recomputed: int = 0


@dataclass(frozen=True)
class Kept:
    """Memory that a pass keeps for the backward pass.

    Attributes:
        logits: bytes at the answer positions.
        tokens: number of tokens in the packed pass.
        adapted: values that the matrices of one decoder layer read. Adapters in fp32 keep them once more, in the type
            of the pass.
    """

    language: Activations
    vision: Activations
    logits: int
    tokens: int
    adapted: int = 0


def kept_by(model: Any, work: Pass, dtype: torch.dtype, *, cuda: bool = True) -> Kept:
    """Run one pass on the meta device and count what autograd keeps.

    For InternVL the vision tower is counted too. The pass of a Qwen tower depends on values, which the meta device does
    not have. So it is estimated from the number of patches, with as many bytes a token and channel as the language
    model keeps.

    Args:
        cuda: with the attention of CUDA (`flex.py`), else with that of a CPU.
    """
    config = model.config
    _, image_tokens = work.squares(config)
    attach(model.model.language_model)
    model.to(dtype)
    tree = build_tree(work.keys(image_tokens))
    packed = lay_out(tree, torch.device("cpu" if cuda else "meta"), "flex" if cuda else "buckets")
    num, width = tree.num_tokens, config.text_config.hidden_size
    places = torch.arange(num, device="meta")[None]
    axes = places if config.model_type == "internvl" else places.expand(3, 1, -1)
    x = torch.empty(1, num, width, dtype=dtype, device="meta", requires_grad=True)
    masks: Any = dict.fromkeys(("full_attention", "sliding_attention"))
    if config.model_type == "qwen3_vl" or not getattr(config.text_config, "layer_types", None):  # Llama has no kinds
        masks = torch.empty(1, 1, 1, 1, device="meta")
    total = _saved_bytes(
        model,
        lambda: model.model.language_model(
            inputs_embeds=x,
            position_ids=axes,
            use_cache=False,
            tree=packed.visible,
            answers=torch.arange(work.questions),
            attention_mask=masks,
        ),
    )
    num_layers = config.text_config.num_hidden_layers
    units = num_layers * num * width
    layer = model.model.language_model.layers[0]
    recomputed = _peak_of_layer(model, layer, x.detach(), axes, packed.visible)
    adapted = num * sum(m.in_features for m in layer.modules() if isinstance(m, nn.Linear))
    logits = min(HEAD_ROWS, work.questions) * config.text_config.vocab_size * (dtype.itemsize + 4 + 4)
    vision = _vision(model, work, dtype, total / units)
    language = Activations(total, units * dtype.itemsize, num_layers, recomputed)
    return Kept(language, vision, logits, num, adapted)


def _peak_of_layer(model: Any, layer: nn.Module, x: Tensor, axes: Tensor, visible: Any) -> int:
    """Bytes at the worst moment of a decoder layer's forward and backward pass, without gradients of its weights."""
    requires_grad = [p.requires_grad for p in layer.parameters()]
    layer.requires_grad_(False)
    rotary = model.model.language_model.rotary_emb(x, axes)
    x.requires_grad_()
    live = LiveBytes()
    with live:
        out = layer(x, attention_mask=None, position_embeddings=rotary, tree=visible)
        (out[0] if isinstance(out, tuple) else out).sum().backward()
    for p, w in zip(layer.parameters(), requires_grad, strict=True):
        p.requires_grad_(w)
    return live.peak


def _vision(model: Any, work: Pass, dtype: torch.dtype, bytes_a_unit: float) -> Activations:
    c, num_squares = model.config.vision_config, work.squares(model.config)[0] * work.records * work.pictures
    if model.config.model_type != "internvl":
        patches = work.squares(model.config)[1] * c.spatial_merge_size**2
        inputs = c.depth * num_squares * patches * c.hidden_size * dtype.itemsize
        return Activations(int(bytes_a_unit / dtype.itemsize * inputs), inputs, c.depth)
    pixels = torch.empty(num_squares, 3, *c.image_size, dtype=dtype, device="meta")
    total = _saved_bytes(model, lambda: model.model.get_image_features(pixel_values=pixels, return_dict=True))
    patches = (c.image_size[0] // c.patch_size[0]) * (c.image_size[1] // c.patch_size[1]) + 1
    inputs = c.num_hidden_layers * num_squares * patches * c.hidden_size * dtype.itemsize
    return Activations(total, inputs, c.num_hidden_layers)


def _saved_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd saves in `run`. Each counts once, the model's weights do not."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, Any] = {}  # holds the storages, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return sum(storage.nbytes() for storage in saved.values())
