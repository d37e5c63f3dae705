"""`rewarddance plan`: whether a training fits in memory, and what to switch on. Nothing is downloaded.

The memory of one process is the sum of weights, gradients, optimizer state, averaged weights, parameters gathered by
FSDP, and the activations that autograd keeps. Activations are counted by running one pass on the meta device. One GiB
is 2**30 bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rewarddance.core.errors import ConfigError
from rewarddance.core.plugins import EMBEDDED_VLM, load_plugin
from rewarddance.jobs.load import SIZES
from rewarddance.vlm.backbone import open_config
from rewarddance.vlm.footprint import Kept, ParameterCounts, Pass, empty_model, kept_by, parts_of
from rewarddance.vlm.presets import HUB, preset_config
from rewarddance.vlm.registry import ADAPTERS

SPARE = 0.1
"""Share of the memory that is left for the allocator, the driver and communication buffers."""
GIB = 2**30


@dataclass(frozen=True)
class Setting:
    """One way to train: the settings that a user can choose to save memory.

    Attributes:
        shard: processes that share one copy of the weights.
        trained: `all`, `language` (the language model alone) or `adapters`.
        weights: stored type; compute: type of passes and of gathered weights.
        records: prompts in one pass.
    """

    shard: int = 1
    trained: str = "all"
    checkpointing: bool = False
    average: bool = True
    weights: str = "fp32"
    compute: str = "bf16"
    records: int = 4
    lora_rank: int = 32

    def flags(self) -> str:
        """The flags of `rewarddance train` for this setting."""
        flags = [f"--micro-batch {self.records}"]
        if self.trained == "all":
            flags.append("--no-freeze-vision")
        if self.shard > 1:
            flags.append(f"--shard {self.shard}")
        if self.checkpointing:
            flags.append("--gradient-checkpointing")
        if self.trained == "language":
            flags.append("--freeze-vision")
        if self.trained == "adapters":
            flags.append(f"--lora.rank {self.lora_rank} --lora.alpha {2 * self.lora_rank}")
        if self.weights == "bf16":
            flags.append("--weights bf16")
        if not self.average:
            flags.append("--optim.ema-decay 0")
        return " ".join(flags)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. The backward pass frees activations while it makes gradients, so the peak contains the
    larger of the two."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    gathered: float
    activations: float

    @property
    def total(self) -> float:
        lasting = self.weights + self.optimizer + self.average + self.gathered
        return lasting + max(self.gradients, self.activations)

    def gib(self) -> dict[str, float]:
        """All parts and the total in GiB."""
        return {k: round(v / GIB, 2) for k, v in (asdict(self) | {"total": self.total}).items()}


WIDTH = {"fp32": 4, "bf16": 2}


def trained_parameters(setting: Setting, parts: ParameterCounts, num_adapters: int) -> int:
    """Number of trained parameters."""
    return {"all": parts.total, "language": parts.total - parts.vision, "adapters": num_adapters}[setting.trained]


def adapters(config: Any, rank: int) -> int:
    """Parameters of LoRA adapters on the seven matrices of every decoder layer."""
    t = config.text_config
    head = getattr(t, "head_dim", None) or t.hidden_size // t.num_attention_heads
    q, kv, d, m = t.num_attention_heads * head, t.num_key_value_heads * head, t.hidden_size, t.intermediate_size
    sides = (d + q) + 2 * (d + kv) + (q + d) + 2 * (d + m) + (m + d)
    return int(t.num_hidden_layers * rank * sides)


def memory_of(setting: Setting, parts: ParameterCounts, kept: Kept, num_adapters: int = 0) -> Memory:
    """Peak bytes of one process in a step.

    AdamW keeps two values a trained parameter, in the parameter's type. Averaged weights and adapters are fp32. FSDP
    gathers the root and two layers at a time, with their gradients. Without sharding, autocast keeps a copy of every
    matrix for the backward pass. Checkpointing keeps the layers' inputs and the activations of one layer at a time,
    with its gradients if it is trained. Adapters keep the inputs of their matrices once more, because autocast copies
    them.
    """
    stored, computed = WIDTH[setting.weights], WIDTH[setting.compute]
    trained = trained_parameters(setting, parts, num_adapters)
    trained_width = 4 if setting.trained == "adapters" else stored
    share = 1 / setting.shard
    weights = (parts.total * stored + (num_adapters * 4 if setting.trained == "adapters" else 0)) * share
    gathered = 0.0
    if setting.shard > 1:
        gathered = (parts.root + 2 * parts.block) * computed
        if setting.trained != "adapters":
            gathered += (parts.root + parts.block) * computed + parts.block * 4
    towers = [kept.language, kept.vision] if setting.trained == "all" else [kept.language]
    activations: float = sum(t.total for t in towers)
    if setting.checkpointing:
        layer = max(t.total / t.layers for t in towers)
        if setting.trained == "adapters":
            layer = kept.language.recomputed + (kept.adapted * computed if computed < 4 else 0)
        activations = sum(t.inputs for t in towers) + layer * (1 if setting.trained == "adapters" else 2)
    elif setting.shard == 1 and stored != computed:
        gathered = parts.matrices * computed
    return Memory(
        weights,
        trained * trained_width * share,
        2 * trained * trained_width * share,
        4 * trained * share if setting.average else 0.0,
        gathered,
        activations + kept.logits,
    )


def config_of(backbone: str) -> Any:
    """The model configuration of a preset, a size of the embedded VLM, or a local folder. Nothing is downloaded.

    Raises:
        ConfigError: none of these.
    """
    if backbone in HUB:
        return preset_config(backbone)
    if backbone in SIZES:
        return load_plugin("config", EMBEDDED_VLM, "size")(backbone)
    if (Path(backbone) / "config.json").is_file():
        return open_config(backbone, tuple(ADAPTERS))
    shapes = ", ".join([*SIZES, *HUB])
    raise ConfigError(f"backbone {backbone!r}: not a local folder with a config.json; known by name: {shapes}")


def parse_memory(text: str) -> float:
    """Bytes of "80GB" (10**9), "80GiB" (2**30) or a plain number of GB.

    >>> parse_memory("80GB"), parse_memory("1GiB"), parse_memory("24")
    (80000000000.0, 1073741824.0, 24000000000.0)
    """
    lowered = text.strip().lower()
    for unit, size in (("gib", GIB), ("gb", 10**9), ("mib", 2**20), ("mb", 10**6), ("", 10**9)):
        if lowered.endswith(unit):
            try:
                number = float(lowered.removesuffix(unit))
            except ValueError:
                break
            return number * size
    raise ConfigError(f"memory {text!r}: give it like 80GB or 80GiB")


def choices(gpus: int, records: int) -> Iterator[Setting]:
    """Settings in the order in which they are tried: the first ones give up least (trained weights, average, speed)."""
    shards = [n for n in range(1, gpus + 1) if gpus % n == 0]
    for trained in ("all", "language", "adapters"):
        weights, averages = ("bf16", (True,)) if trained == "adapters" else ("fp32", (True, False))
        for average, checkpointing, shard in itertools.product(averages, (False, True), shards):
            for num_records in dict.fromkeys((records, max(1, records // 4), 1)):
                yield Setting(shard, trained, checkpointing, average, weights, records=num_records)


@dataclass(frozen=True)
class Plan:
    """The result.

    Attributes:
        chosen: the first setting that fits; None if none does.
        tried: every setting that was tried, with its memory, in order.
    """

    backbone: str
    parts: ParameterCounts
    limit: float
    chosen: Setting | None
    tried: tuple[tuple[Setting, Memory], ...]
    gpus: int = 1
    num_adapters: int = 0

    @property
    def loading(self) -> float:
        """Bytes of main memory that one node's processes take while they load, with the chosen setting.

        Each process holds all weights until they are sharded.
        """
        return float(self.parts.total * WIDTH[self.chosen.weights] * self.gpus) if self.chosen else 0.0

    @property
    def checkpoint(self) -> float:
        """Bytes of one checkpoint of the chosen setting: trained weights, two moments of each, and the average."""
        if self.chosen is None:
            return 0.0
        width = 4 if self.chosen.trained == "adapters" else WIDTH[self.chosen.weights]
        trained = trained_parameters(self.chosen, self.parts, self.num_adapters)
        return float(trained * (3 * width + (4 if self.chosen.average else 0)))

    @property
    def memory(self) -> Memory | None:
        return next((m for s, m in self.tried if s == self.chosen), None)


def plan(backbone: str, gpus: int, memory: float, work: Pass) -> Plan:
    """Find the first of `choices` that fits.

    Args:
        memory: bytes of one GPU.
        work: the wanted pass; smaller passes are tried if it does not fit.

    Raises:
        ConfigError: an unknown backbone, or pictures that it does not take.
    """
    config = config_of(backbone)
    model, kept = empty_model(config), dict[int, Kept]()
    parts, limit, num_adapters = parts_of(model), memory * (1 - SPARE), adapters(config, Setting.lora_rank)
    tried: list[tuple[Setting, Memory]] = []
    for setting in choices(gpus, work.records):
        if setting.records not in kept:
            kept[setting.records] = kept_by(model, replace(work, records=setting.records), torch.bfloat16)
        needed = memory_of(setting, parts, kept[setting.records], num_adapters)
        tried.append((setting, needed))
        if needed.total <= limit:
            return Plan(backbone, parts, limit, setting, tuple(tried), gpus, num_adapters)
    return Plan(backbone, parts, limit, None, tuple(tried), gpus, num_adapters)
