"""`rewarddance evaluate RUN --metrics`: FID, KID, CMMD, precision, recall, Vendi, CLIPScore and LPIPS of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewarddance.core.config import Precision
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.media import Media, StoredMedia
from rewarddance.core.progress import say
from rewarddance.core.runs import write_json
from rewarddance.core.task import Task
from rewarddance.evaluate.metrics.distances import Distance, layer_distance
from rewarddance.evaluate.metrics.table import Extractors, metrics_table
from rewarddance.jobs.evaluate import Aligned, align_config, task_features
from rewarddance.jobs.load import find, load_internvl, load_task, weights_id
from rewarddance.vlm.embedders import ClipEmbedder, DinoEmbedder, ScriptDistance, ScriptEmbedder, layers_of

FILE = "evaluation_metrics.json"


@dataclass(frozen=True)
class ExtractorPaths:
    """Local files of further extractors; the world's own vision tower is always there.

    Attributes:
        inception, lpips: TorchScript files (`vlm.embedders.ScriptEmbedder`, `ScriptDistance`).
        clip, dino: folders of a `CLIPModel` and a `Dinov2Model`.
    """

    inception: Path | None = None
    lpips: Path | None = None
    clip: Path | None = None
    dino: Path | None = None


def evaluate_metrics(
    run: Path,
    paths: ExtractorPaths | None = None,
    *,
    num_noises: int = 4,
    num_steps: int | None = None,
    every: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    precision: Precision = "auto",
) -> dict[str, Any]:
    """Metrics of an alignment run, before and after, on the task's benchmark; writes `evaluation_metrics.json`.

    The reference set is `num_noises` right pictures of every benchmark prompt, drawn by the task itself.

    Args:
        every: take each `every`-th benchmark prompt.
        num_steps, guidance: of the sampling; the run's own when None.

    Returns:
        The setting; reference: name and size of the reference set, and the hash of the weights behind `world`; metrics
        and per_prompt (`metrics_table`), with the prompts.

    Raises:
        RunError: not an alignment run, or one with prompts of its own, which has no reference pictures.
        ConfigError: an extractor that cannot be loaded.
    """
    config = align_config(run)
    if config.get("prompts") is not None:
        raise RunError(f"{run}: trained on its own prompts, for which there are no reference pictures")
    task = load_task(config.get("task", "embedded"))
    extractors = load_extractors(task, paths or ExtractorPaths())
    prompts = [p.text for p in task.benchmark()[::every]]
    if extractors.clip is not None and (cut := extractors.clip.num_cut(prompts)):  # type: ignore[attr-defined]
        say(f"CLIP reads {cut} of {len(prompts)} prompts in part only")
    reference = StoredMedia((task.reference_pictures(prompts, num_noises, seed) * 255).round().to(torch.uint8))
    aligned = Aligned.of_run(run, config, num_steps, guidance, precision)
    if aligned.draws_clips:
        raise ConfigError(f"{run}: draws clips, and --metrics measures pictures")
    table, values = metrics_table(*aligned.pair(prompts, num_noises, seed), reference, extractors)
    figures = {
        "prompts": len(prompts),
        "noises": num_noises,
        "num_steps": aligned.num_steps,
        "guidance": aligned.generator.guidance,
        "seed": seed,
        "reference": {
            "name": f"right pictures of the benchmark of task {task.name}",
            "pictures": len(reference),
            "features": weights_id(find(_features_of(task), "vlm")),
        },
        "metrics": table,
        "per_prompt": {"prompts": prompts, **values},
    }
    write_json(run / FILE, figures)
    return figures


def load_extractors(task: Task, paths: ExtractorPaths) -> Extractors:
    """The world's extractors, and those that `paths` names.

    Raises:
        ConfigError: one of them cannot be loaded, or the task names no features.
    """
    features: dict[str, Any] = {"world": task_features(task)} if task.features else {}
    distances: dict[str, Distance] = {"world": world_distance(_features_of(task))}
    clip = None if paths.clip is None else ClipEmbedder.load(paths.clip)
    if clip is not None:
        features["clip"] = clip
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
