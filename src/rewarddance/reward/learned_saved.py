"""Learned rewards as folders: `judge.json` of kind `learned`, `head.safetensors` (the transformer), and `embedder/`
(the frozen model in Hugging Face layout).
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rewarddance.core.device import resolve_device
from rewarddance.core.errors import RunError
from rewarddance.reward.learned import LearnedJudge, new_transformer
from rewarddance.reward.learned_config import KIND, LearnedSpec
from rewarddance.vlm.token_embedders import load_token_embedder

SPEC, HEAD, EMBEDDER = "judge.json", "head.safetensors", "embedder"


def is_learned(folder: Path) -> bool:
    """Whether a judge's folder holds a learned reward."""
    try:
        content = json.loads((folder / SPEC).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def save_learned(judge: LearnedJudge, folder: Path) -> Path:
    """Write the folder that `load_learned` reads. `judge.json` comes last, so a folder that has it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    judge.embedder.save(folder / EMBEDDER)
    save_file({k: v.contiguous() for k, v in judge.module.state_dict().items()}, folder / HEAD)
    (folder / SPEC).write_text(judge.spec.model_dump_json(indent=2) + "\n")
    return folder


def load_learned(folder: Path, device: str = "auto") -> LearnedJudge:
    """Load a learned reward, frozen and in evaluation mode.

    Raises:
        RunError: `judge.json` or `head.safetensors` cannot be read, or were written by a later version.
        ConfigError: the embedder cannot be loaded.
    """
    try:
        spec = LearnedSpec.model_validate_json((folder / SPEC).read_text())
    except (OSError, ValidationError) as error:
        raise RunError(f"{folder / SPEC}: not a learned reward's description ({error})") from None
    if spec.format > LearnedSpec().format:
        raise RunError(f"{folder / SPEC}: format {spec.format}; install a newer rewarddance")
    embedder = load_token_embedder(folder / EMBEDDER, resolve_device(device))
    module = new_transformer(embedder, spec)
    try:
        module.load_state_dict(load_file(folder / HEAD))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{folder / HEAD}: not this judge's head ({' '.join(str(error).split())})") from None
    module.eval().requires_grad_(False)
    return LearnedJudge(spec, embedder, module)
