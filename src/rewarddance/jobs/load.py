"""Loads models and tasks from names and folders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from rewarddance.core.clip_frames import ClipFrames
from rewarddance.core.config import Precision
from rewarddance.core.device import resolve_device, resolve_precision
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.plugins import EMBEDDED_VLM, TASKS, load_plugin
from rewarddance.core.progress import say
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import RunFolder
from rewarddance.core.task import Task
from rewarddance.core.types import Comparison
from rewarddance.reward.composite import AnyJudge, Composite
from rewarddance.reward.composite_config import fitted_folder, is_composite
from rewarddance.reward.judge import Judge
from rewarddance.reward.learned import LearnedJudge
from rewarddance.reward.learned_saved import is_learned, load_learned
from rewarddance.reward.remote import RemoteJudge, is_address, named_by
from rewarddance.reward.saved import load_judge_folder
from rewarddance.reward.train_config import RewardConfig
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.presets import HUB, fetched, is_hub_name
from rewarddance.vlm.registry import load_backbone_folder

if TYPE_CHECKING:
    from rewarddance.align.config import AlignConfig

ASSETS = Path(__file__).parents[1] / "assets"
SIZES = ("tiny-2m", "tiny-20m", "tiny-200m")
"""Sizes of the embedded VLM. The first one is shipped, the others are grown from it."""
ModelKind = Literal["judge", "generator", "vlm"]
EMBEDDED: dict[ModelKind, dict[str, str]] = {
    "judge": {"tiny": "judge-tiny", "tiny-clips": "judge-tiny-clips"},
    "generator": {
        "tiny": "generator-tiny",
        "tiny-video": "generator-tiny-video",
        "tiny-image-to-video": "generator-tiny-image-to-video",
    },
    "vlm": {
        **dict.fromkeys(("tiny", *SIZES), "vlm-tiny"),
        "judge-tiny": "judge-tiny",
        "judge-tiny-clips": "judge-tiny-clips",
        "clip-tiny": "clip-tiny",
    },
}
"""Folders of the package's own models below `ASSETS`, by kind and name."""
_ALL = "`make assets` builds it"
_BUILDS = {
    **dict.fromkeys(
        ("generator-tiny-video", "generator-tiny-image-to-video"),
        "`rewarddance build video` trains it, and `rewarddance build ship` puts it here",
    ),
    "judge-tiny-clips": "`rewarddance train recipes/tiny/reward-clips.yaml` trains it, and `rewarddance build ship` "
    "puts it here",
}


def is_embedded(name: str | Path, kind: ModelKind) -> bool:
    """Whether a name stands for a model of the package."""
    return str(name) in EMBEDDED[kind]


def _embedded(name: str, kind: ModelKind) -> Path:
    folder = ASSETS / EMBEDDED[kind][name]
    if not folder.is_dir():
        raise ConfigError(f"the embedded {kind} {name!r} is not in this installation; {_BUILDS.get(folder.name, _ALL)}")
    return folder


def find(name: str | Path, kind: ModelKind) -> Path:
    """The folder of a model: an embedded one (`EMBEDDED`), a run folder (its `model/`), or a checkpoint in Hugging Face
    layout.

    The larger sizes of the embedded VLM have the folder of the size that they are grown from. These are also names of a
    VLM: `judge-tiny` (the embedded judge, to train another judge from), `clip-tiny` (the embedded CLIP), a short name
    of a public model (`presets.HUB`), and a name on the hub. A public model is downloaded once. A judge may be a short
    name too; it is then the VLM without training. For a composite's YAML file the result is the file itself.

    Raises:
        ConfigError: no such folder, a download that failed, or the address of a server.
        RunError: a run folder without a model of this kind.
    """
    if is_embedded(name, kind):
        return _embedded(str(name), kind)
    if str(name) in HUB if kind == "judge" else kind == "vlm" and is_hub_name(str(name)):
        return fetched(str(name))
    if kind == "judge" and is_address(name):
        raise ConfigError(f"judge {name}: is on a server; this needs the model itself, so name its folder")
    folder = Path(name)
    if kind == "judge" and is_composite(name):
        return folder
    if (folder / "run.json").is_file():
        made = RunFolder(folder).read()["kind"]
        if made == "align":
            raise RunError(f"{folder}: an alignment run, which holds an adapter of a generator, not a {kind}")
        if not (folder / "model").is_dir():
            raise RunError(f"{folder}: this {made} run has no model yet; resume it")
        return folder / "model"
    if not folder.is_dir():
        known = " or ".join(f"'{known_name}'" for known_name in EMBEDDED[kind] if kind != "vlm" or known_name == "tiny")
        raise ConfigError(f"{kind} {str(name)!r}: not {known}, not a run folder, not a local checkpoint")
    return folder


def weights_id(folder: Path) -> str:
    """SHA-256 over a model's weights, because a name like `tiny` may later mean other weights."""
    digest = hashlib.sha256()
    if is_composite(folder) and folder.is_file():  # its own words and its fit, which holds hashes of its parts' files
        digest.update(folder.read_bytes())
        folder = fitted_folder(folder)
        if (folder / "standards.json").is_file():
            digest.update((folder / "standards.json").read_bytes())
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def load_task(name: str) -> Task:
    """A task by its name (`core/plugins.py`), or `package.module:attribute`.

    Raises:
        ConfigError: no such task.
    """
    task: Task = load_plugin(name, TASKS, "task")()
    return task


def load_backbone(name: str | Path = "tiny", device: str = "auto", dtype: Literal["fp32", "bf16"] = "fp32") -> Backbone:
    """A VLM that has not been trained to judge.

    `tiny-20m` and `tiny-200m` are not shipped: they are the embedded VLM made wider and deeper without a change of what
    it computes (`world/build/grow.py`).
    """
    weights = torch.bfloat16 if dtype == "bf16" else torch.float32
    backbone = load_backbone_folder(find(name, "vlm"), weights)
    if str(name) in SIZES[1:]:
        backbone = load_plugin("grown", EMBEDDED_VLM, "size")(backbone, str(name))
        backbone.module.to(weights)
    backbone.module.to(resolve_device(device))
    return backbone


def load_to_train(config: RewardConfig) -> Backbone:
    """The backbone of a training. One that will be sharded stays in main memory."""
    return load_backbone(config.backbone, "auto" if config.shard == 1 else "cpu", config.weights)


def load_internvl(name: str | Path = "tiny", device: str = "auto") -> InternVLBackbone:
    """A VLM of the embedded one's class, whose vision tower takes squares.

    Raises:
        ConfigError: another architecture.
    """
    backbone = load_backbone_folder(find(name, "vlm"))
    if not isinstance(backbone, InternVLBackbone):
        raise ConfigError(f"{name}: not of the embedded VLM's class (InternVL)")
    backbone.module.to(resolve_device(device))
    return backbone


def load_judge(
    name: str | Path = "tiny",
    *,
    precision: Precision | None = None,
    device: str = "auto",
    tiles: int | None = None,
    clips: ClipFrames | float | None = None,
    template: str | None = None,
    examples: Sequence[Comparison] = (),
    compile: bool = False,
) -> AnyJudge:
    """A frozen judge: `tiny`, `tiny-clips`, a run folder of `rewarddance train`, or an InternVL or Qwen-VL checkpoint
    (a local folder or a short name such as `internvl3.5-8b`), which is then asked without training. Or the YAML file of
    a composite (docs/guides/composite.md), whose judges take `precision`, `device` and `compile`. Or a
    run of `rewarddance train learned`, which takes `device` and always computes in fp32. Or the address of a server,
    which has settings of its own: `rewarddance serve`, or a reward server of UniRL or Flow-Factory
    (`reward/remote.py`).

    Args:
        precision: `auto` is bf16 where the hardware has it, and fp32 for models of at most 100M parameters on a CPU.
            None: `fp32` for a judge that was trained in fp32, else `auto`. `Judge.precision` says which one was used.
        tiles: largest number of parts that a large picture is cut into, beside a small view of the whole, as InternVL's
            own processor does (it takes 12). 1 uses the small view alone. None: as in training.
        clips: which frames of a clip the judge sees, or only the frames a second, which leaves its `max_frames`. None:
            as in training, or two frames a second for a checkpoint that was not trained to judge.
        template: words for a checkpoint that was not trained to judge: a named set or a file (docs/guides/wording.md).
        examples: labelled comparisons that such a checkpoint is shown before every question.
        compile: compile the layers of a large model on a GPU. It takes half a minute, so it is for long work.
    """
    given = {"tiles": tiles, "clips": clips, "template": template, "examples": examples or None}
    own_settings = " and ".join(k for k, v in given.items() if v is not None)
    if is_address(name):
        if own_settings:
            raise ConfigError(f"{name}: {own_settings} cannot be set from here; the server has its own")
        return RemoteJudge.connect(str(name))
    if is_composite(name):
        from rewarddance.jobs.composite import load_composite  # it imports this module

        if own_settings:
            raise ConfigError(f"{name}: a composite takes no {own_settings}; its judges have their own")
        return load_composite(Path(name), precision=precision, device=device, compile=compile)
    folder = find(name, "judge")
    if is_learned(folder):
        if own_settings:
            raise ConfigError(f"{name}: a learned reward takes no {own_settings}; it is asked no question")
        return load_learned(folder, device)
    return load_judge_folder(
        folder,
        precision=precision,
        tiles=tiles,
        clips=clips,
        device=device,
        template=template,
        examples=examples,
        compile=compile,
    )


def load_one_judge(name: str | Path = "tiny", **settings: Any) -> Judge | LearnedJudge:
    """`load_judge` for callers that take one judge, a VLM or a learned reward.

    Raises:
        ConfigError: a composite, or a judge on a server.
    """
    judge = load_judge(name, **settings)
    if isinstance(judge, RemoteJudge):
        raise ConfigError(f"{name}: is on a server; this needs the model itself, so name its folder")
    if isinstance(judge, Composite):
        raise ConfigError(f"{name}: a composite; this takes the judges that it is made of, one at a time")
    return judge


def same_judge(a: str, b: str) -> bool:
    """Whether two names stand for one judge. Addresses do if they name the same server, reward and value; the other
    settings of an address do not matter."""
    if is_address(a) or is_address(b):
        return is_address(a) and is_address(b) and named_by(a) == named_by(b)
    return find(a, "judge").resolve() == find(b, "judge").resolve()


def load_single_judge(name: str | Path = "tiny", **settings: Any) -> Judge:
    """`load_judge` for callers that need the VLM of one judge.

    Raises:
        ConfigError: a composite, a learned reward, or a judge on a server.
    """
    judge = load_one_judge(name, **settings)
    if isinstance(judge, LearnedJudge):
        raise ConfigError(f"{name}: a learned reward; this takes judges that are a VLM")
    return judge


def load_generator_of(config: AlignConfig, adapter: str | Path | None = None) -> Tunable:
    """The generator of a configuration."""
    return load_generator(
        config.generator,
        adapter=adapter,
        guidance=config.guidance,
        dtype=config.generator_dtype,
        resolution=config.resolution,
        max_sequence_length=config.max_sequence_length,
        precision=config.precision,
    )


def load_generator(
    name: str | Path = "tiny",
    *,
    adapter: str | Path | None = None,
    guidance: float = 1.0,
    device: str = "auto",
    dtype: Literal["fp32", "bf16"] = "fp32",
    resolution: int | None = None,
    max_sequence_length: int = 256,
    precision: Precision = "auto",
) -> Tunable:
    """A frozen generator: `tiny`, `tiny-video`, `tiny-image-to-video`, or a local pipeline of a known family
    (`generator/families.py`).

    Args:
        adapter: a run folder of `rewarddance align`, or its `adapter/`; the generator draws with it.
        guidance: classifier-free guidance scale; 1 is off.
        dtype: type of the frozen weights.
        resolution: side of its pictures in pixels; the checkpoint's own when None.
        max_sequence_length: tokens of a prompt that T5, or a language model in its place, reads.
        precision: precision in which text encoders and transformer compute, see `load_judge`.
    """
    # imported here because diffusers takes seconds, and a program that loads a judge should not wait for it
    from rewarddance.generator.families import load_generator_folder

    weights = torch.bfloat16 if dtype == "bf16" else torch.float32
    generator = load_generator_folder(find(name, "generator"), guidance, weights, resolution, max_sequence_length)
    if adapter is not None:
        generator.load_adapter(adapter_folder(adapter))
    where = resolve_device(device)
    generator.to(where)
    generator.precision = resolve_precision(precision, where, generator.num_parameters())
    return generator


def warn_of_cut_prompts(generator: Tunable, prompts: Sequence[str], max_sequence_length: int) -> None:
    """Print how many prompts the text encoders cut.

    Args:
        max_sequence_length: tokens that a T5 encoder was told to read.
    """
    if cut := generator.num_cut(prompts):
        say(
            f"{cut} of {len(prompts)} prompts are longer than the text encoders read, and are cut (a T5 reads "
            f"max_sequence_length tokens, here {max_sequence_length})"
        )


def adapter_folder(name: str | Path) -> Path:
    """The adapter's folder of an align run (or the folder itself).

    Raises:
        RunError: there is none.
    """
    folder = Path(name) / "adapter" if (Path(name) / "adapter").is_dir() else Path(name)
    if not (folder / "adapter.json").is_file():
        raise RunError(f"{name}: no adapter there; name a finished run of `rewarddance align`")
    return folder
