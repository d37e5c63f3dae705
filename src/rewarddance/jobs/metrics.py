"""`rewarddance evaluate RUN --metrics`: FID, KID, CMMD, precision, recall, Vendi, CLIPScore and LPIPS of a run, and for
clips motion and flicker in place of CLIPScore and LPIPS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewarddance.core.config import Precision
from rewarddance.core.errors import ConfigError, InputError, RunError
from rewarddance.core.media import Media, StoredMedia
from rewarddance.core.progress import say
from rewarddance.core.runs import write_json
from rewarddance.core.streams import stream
from rewarddance.core.task import Drawn, Prompt, Task, texts_of
from rewarddance.data.sources import SourcePicture, pictures_of
from rewarddance.evaluate.clips import CLIP_MEASURES
from rewarddance.evaluate.generator import right_media
from rewarddance.evaluate.metrics.distances import Distance, layer_distance
from rewarddance.evaluate.metrics.table import Extractors, metrics_table
from rewarddance.jobs.evaluate import Aligned, align_config, features_id, task_features
from rewarddance.jobs.load import find, is_embedded, load_internvl, load_task
from rewarddance.jobs.sample_files import square_of
from rewarddance.vlm.embedders import ClipEmbedder, DinoEmbedder, ScriptDistance, ScriptEmbedder, layers_of

FILE = "evaluation_metrics.json"
NOT_OF_CLIPS = {
    "CLIPScore": "the embedded CLIP knows prompts of pictures and no words for motion",
    "LPIPS": "it compares pictures place by place, and an object that is one frame late is in another place",
}
"""Metrics that clips do not have, and why."""


@dataclass(frozen=True)
class ExtractorPaths:
    """Local files of further extractors. The vision tower of the embedded VLM is always used.

    Attributes:
        inception, lpips: TorchScript files (`vlm.embedders.ScriptEmbedder`, `ScriptDistance`).
        clip, dino: folders of a `CLIPModel` and a `Dinov2Model`. Without `clip`, tasks of the embedded world use the
            embedded CLIP, `clip-tiny`.
    """

    inception: Path | None = None
    lpips: Path | None = None
    clip: Path | None = None
    dino: Path | None = None


@dataclass(frozen=True)
class ReferenceSet:
    """A named set of pictures (`data/sources.py`) that samples are compared with; only those of `style` if it is given.

    The middle square of each picture is scaled to the size of the samples. If there are more
    than `most` pictures, `most` of them are drawn at random, the same ones every time.
    """

    source: Path
    style: str | None = None
    most: int = 10_000

    @property
    def name(self) -> str:
        return self.source.name + ("" if self.style is None else f", style {self.style}")

    def pictures(self, side: int) -> StoredMedia:
        """The pictures as squares of `side` pixels.

        Raises:
            InputError: no pictures.
        """
        taken, num = _drawn(pictures_of(self.source, self.style), self.most)
        if num > self.most:
            say(f"{self.name}: {self.most:,} of {num:,} pictures, drawn at random")
        squares = [square_of(p.media(), side).to_bytes()[0] for p in taken]
        if not squares:
            raise InputError(
                f"{self.source}: no pictures" + ("" if self.style is None else f" of style {self.style!r}")
            )
        return StoredMedia(torch.stack(squares))


def _drawn(pictures: Iterable[SourcePicture], most: int) -> tuple[list[SourcePicture], int]:
    """At most `most` pictures of a set, drawn at random in one pass (reservoir sampling), and the size of the set."""
    rng, taken, num = stream(0, "reference-set"), list[SourcePicture](), 0
    for num, picture in enumerate(pictures, 1):
        if num <= most:
            taken.append(picture)
        elif (place := int(rng.integers(num))) < most:
            taken[place] = picture
    return taken, num


def evaluate_metrics(
    run: Path,
    paths: ExtractorPaths | None = None,
    against: ReferenceSet | None = None,
    *,
    num_noises: int = 4,
    num_steps: int | None = None,
    every: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    precision: Precision = "auto",
) -> dict[str, Any]:
    """Metrics of an alignment run, before and after, on the task's benchmark; writes `evaluation_metrics.json`.

    Clips have the metrics of `clip_extractors`, and those of `NOT_OF_CLIPS` are named in messages.

    Args:
        paths: further extractors, for pictures only.
        against: a reference set of pictures; when None `num_noises` right pictures or clips of every benchmark prompt,
            drawn by the task itself. Equal clips count once: a first frame may leave a single right clip.
        every: take each `every`-th benchmark prompt.
        num_steps, guidance: of the sampling; the run's own when None.

    Returns:
        The setting; reference: name and size of the reference set, and the hash of the weights behind `world`; metrics
        and per_prompt (`metrics_table`), with the prompts.

    Raises:
        RunError: not an alignment run, or one with prompts of its own, which has no reference pictures.
        ConfigError: an extractor that cannot be loaded, or one for pictures with a run of clips.
    """
    config = align_config(run)
    if config.get("prompts") is not None:
        raise RunError(f"{run}: trained on its own prompts, for which there are no reference pictures")
    task = load_task(config.get("task", "embedded"))
    aligned, paths = Aligned.of_run(run, config, num_steps, guidance, precision), paths or ExtractorPaths()
    if aligned.draws_clips:
        _refuse_pictures(run, paths, against)
    prompts = task.benchmark()[::every]
    extractors = clip_extractors(task) if aligned.draws_clips else load_extractors(task, paths, texts_of(prompts))
    if against is None:
        name, reference = _right_set(task, prompts, num_noises, seed, aligned.generator.drawn)
    else:
        name, reference = against.name, against.pictures(aligned.generator.side)
    table, values = metrics_table(*aligned.pair(prompts, num_noises, seed), reference, extractors)
    aligned.forget_clips()
    figures = {
        "prompts": len(prompts),
        "noises": num_noises,
        "num_steps": aligned.num_steps,
        "guidance": aligned.generator.guidance,
        "seed": seed,
        "reference": {"name": name, "pictures": len(reference), "features": features_id(task)},
        "metrics": table,
        "per_prompt": {"prompts": texts_of(prompts), **values},
    }
    write_json(run / FILE, figures)
    return figures


def _right_set(task: Task, prompts: Sequence[Prompt], num: int, seed: int, drawn: Drawn) -> tuple[str, StoredMedia]:
    """The name and the media of the default reference set. Of equal clips one is kept, because they would be each
    other's nearest neighbours."""
    media = right_media(task, prompts, num, seed, drawn.fps)
    if drawn.num_frames == 1:
        return f"right pictures of the benchmark of task {task.name}", media
    kept = list({clip.key: place for place, clip in enumerate(media)}.values())
    return f"right clips of the benchmark of task {task.name}", StoredMedia(media.frames[kept], drawn.fps)


def _refuse_pictures(run: Path, paths: ExtractorPaths, against: ReferenceSet | None) -> None:
    """Print which metrics clips do not have.

    Raises:
        ConfigError: an extractor or a reference set of pictures is named.
    """
    given = [f"--{f.name}" for f in fields(paths) if getattr(paths, f.name) is not None]
    given += [] if against is None else ["--reference"]
    if given:
        raise ConfigError(f"{run}: draws clips; {', '.join(given)}: for pictures only")
    for metric, why in NOT_OF_CLIPS.items():
        say(f"{metric}: not measured for clips, because {why}")


def clip_extractors(task: Task) -> Extractors:
    """Features of the frames of clips (`evaluate.clips.clip_features`) by the VLM that the task names, and
    `CLIP_MEASURES`.

    Raises:
        ConfigError: the task names no features.
    """
    _features_of(task)
    return Extractors({"world": task_features(task)}, measures=CLIP_MEASURES)


def load_extractors(task: Task, paths: ExtractorPaths, prompts: Sequence[str] = ()) -> Extractors:
    """The world's extractors for pictures, and those that `paths` names. Prints how many prompts are too long for CLIP.

    Raises:
        ConfigError: one of them cannot be loaded, or the task names no features.
    """
    features: dict[str, Any] = {"world": task_features(task)} if task.features else {}
    distances: dict[str, Distance] = {"world": world_distance(_features_of(task))}
    default = "clip-tiny" if task.features is not None and is_embedded(task.features, "vlm") else None
    name = paths.clip or default
    clip = None if name is None else ClipEmbedder.load(find(name, "vlm"))
    if clip is not None:
        features["clip"] = clip
        if prompts and (cut := clip.num_cut(prompts)):
            say(f"{cut} of {len(prompts)} prompts are longer than CLIP reads, and are cut")
    if paths.dino is not None:
        features["dino"] = DinoEmbedder.load(paths.dino)
    if paths.inception is not None:
        features["inception"] = ScriptEmbedder(paths.inception)
    if paths.lpips is not None:
        distances["lpips"] = ScriptDistance(paths.lpips)
    return Extractors(features, distances, clip)


def _features_of(task: Task) -> str:
    if task.features is None:
        raise ConfigError(f"task {task.name}: names no features to measure with")
    return task.features


def world_distance(name: str) -> Distance:
    """LPIPS with unit weights over the layers of a VLM's vision tower."""
    backbone = load_internvl(name)

    @torch.no_grad()
    def layers(media: Sequence[Media]) -> tuple[Tensor, ...]:
        return layers_of(backbone.model.model.vision_tower, backbone.prepare(list(media)).to(backbone.device))

    return lambda a, b: layer_distance(layers(a), layers(b))
