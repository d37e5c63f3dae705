"""Measure trained video models on held-out prompts: scores as JSON, and clips as one picture."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline

from rewarddance.core.config import Precision
from rewarddance.core.device import num_parameters, resolve_device, resolve_precision
from rewarddance.core.errors import RunError
from rewarddance.core.runs import write_json
from rewarddance.generator.base import load_pipeline
from rewarddance.world.build.video_autoencoder import reconstruct, sharpness
from rewarddance.world.build.video_sampling import generator_of, sample_clips
from rewarddance.world.build.video_scores import by_action, mean_scores, rows, scores_of, sheet
from rewarddance.world.motion.benchmark import action_set
from rewarddance.world.motion.render import render

MAX_BYTES = 16 << 20
SHEET_ROWS = 24


@torch.no_grad()
def validate_autoencoder(run: Path, device_name: str) -> dict[str, Any]:
    """Sharpness of reconstructed held-out clips, and the oracle's scores of them, which bound those of any generator.

    Writes `validation.json` and `clips.png` (each clip above its reconstruction) into the run folder.
    """
    vae: Any = AutoencoderKLWan.from_pretrained(run / "model", torch_dtype=torch.float32)
    vae.eval().to(resolve_device(device_name))
    prompts = action_set("t2v")
    clips = torch.from_numpy(np.stack([render(p.scene) for p in prompts]))
    decoded = reconstruct(vae, clips.to(vae.device)).cpu()
    pairs = torch.stack([clips, decoded], 1).flatten(0, 1).numpy()
    sheet(pairs[:SHEET_ROWS]).save(run / "clips.png")
    result = {
        "parameters": num_parameters(vae),
        **sharpness(decoded, clips),
        "rendered": mean_scores(scores_of(clips.numpy(), prompts, False)),
        "reconstructed": mean_scores(scores_of(decoded.numpy(), prompts, False)),
    }
    write_json(run / "validation.json", result)
    return result


def validate_generator(
    run: Path, device_name: str, precision: Precision, num_clips: int, num_steps: int, guidances: Sequence[float]
) -> dict[str, Any]:
    """The oracle's mean scores of sampled clips at each guidance scale.

    Writes `validation.json` with every clip's prompt, scores and reasons, and `clips.png` with the first clips at the
    last guidance scale, into the run folder.
    """
    from_picture = _class_name(run / "model") == "WanImageToVideoPipeline"
    kind = WanImageToVideoPipeline if from_picture else WanPipeline
    pipeline = load_pipeline(kind, run / "model", torch.float32)
    pipeline.to(resolve_device(device_name))
    held_out = action_set("i2v" if from_picture else "t2v")
    prompts = [held_out[i % len(held_out)] for i in range(num_clips)]
    computed = resolve_precision(precision, pipeline.device, 0)
    result: dict[str, Any] = {"parameters": num_parameters(pipeline.transformer, pipeline.text_encoder, pipeline.vae)}
    result |= {"num_clips": num_clips, "num_steps": num_steps, "guidance": {}, "clips": {}}
    for guidance in guidances:
        clips = sample_clips(generator_of(pipeline, guidance, computed), prompts, num_steps, seed=1)
        verdicts = scores_of(clips, prompts, from_picture)
        result["guidance"][str(guidance)] = {
            **mean_scores(verdicts),
            "fidelity_by_action": by_action(verdicts, prompts),
        }
        result["clips"][str(guidance)] = rows(verdicts, prompts)
        sheet(clips[:SHEET_ROWS]).save(run / "clips.png")
    write_json(run / "validation.json", result)
    return {k: v for k, v in result.items() if k != "clips"}


def _class_name(folder: Path) -> str:
    return str(json.loads((folder / "model_index.json").read_text())["_class_name"])


def pack(run: Path, target: Path) -> Path:
    """Write a run's model, configuration, metrics, scores and contact sheet to one tar, without its checkpoints.

    Raises:
        RunError: the tar has more than 16 MiB.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:gz") as tar:
        for name in ("model", "run.json", "metrics.jsonl", "validation.json", "clips.png"):
            if (run / name).exists():
                tar.add(run / name, f"{run.name}/{name}")
    if target.stat().st_size > MAX_BYTES:
        raise RunError(f"{target}: has {target.stat().st_size} bytes, above {MAX_BYTES}; the models are too large")
    return target
