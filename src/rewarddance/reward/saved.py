"""Judges as folders: the VLM's ordinary Hugging Face layout plus `judge.json`, and if needed `head.safetensors` and
`examples.parquet`.

`judge.json` holds the whole wording of the questions, so a saved judge does not change when the code changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewarddance.core.clip_frames import ClipFrames
from rewarddance.core.config import Precision
from rewarddance.core.device import resolve_device, resolve_precision
from rewarddance.core.errors import RunError
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.types import Comparison
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.reward.config import FORMAT, JudgeSpec
from rewarddance.reward.context import Context
from rewarddance.reward.judge import Judge, new_judge
from rewarddance.reward.scalar import ScalarJudge
from rewarddance.vlm.compiled import compile_layers
from rewarddance.vlm.registry import load_backbone_folder, num_stored_parameters

SPEC, HEAD, EXAMPLES = "judge.json", "head.safetensors", "examples.parquet"


def save_judge(judge: Judge, folder: Path, weights: Mapping[str, Mapping[str, Tensor]] | None = None) -> Path:
    """Write the folder that `load_judge_folder` reads.

    Args:
        weights: by name of the trained module (`vlm`, `head`), the weights to write in place of sharded ones.
    """
    weights = weights or {}
    judge.engine.backbone.save(folder, weights.get("vlm"))
    if isinstance(judge.single, ScalarJudge):
        head = weights.get("head") or judge.single.head.state_dict()
        save_file({k: v.contiguous() for k, v in head.items()}, folder / HEAD)
    elif judge.single.examples:
        write_rows((row_of(_as_record(c, i)) for i, c in enumerate(judge.single.examples)), folder / EXAMPLES)
    write_spec(judge, folder)
    return folder


def write_spec(judge: Judge, folder: Path) -> None:
    """Write `judge.json`, with the whole wording."""
    columns = judge.single.columns if isinstance(judge.single, ScalarJudge) else ()
    spec = judge.spec.model_copy(update={"context": judge.spec.context.resolved(), "columns": columns})
    (folder / SPEC).write_text(spec.model_dump_json(indent=2) + "\n")


def _as_record(example: Comparison, index: int) -> PreferenceRecord:
    media = (example.candidate,) if example.reference is None else (example.candidate, example.reference)
    choice = Choice(0, len(media) - 1, 0.5 if example.label is None else example.label, example.rationale)
    criterion = example.criterion or "overall"
    return PreferenceRecord(
        f"example-{index}", example.prompt, media, (choice,), criterion, condition=example.condition
    )


def _as_example(record: PreferenceRecord) -> Comparison:
    choice = record.choices[0]
    reference = record.media[1] if len(record.media) > 1 else None
    return Comparison(
        record.prompt,
        record.media[0],
        reference,
        record.criterion,
        choice.label,
        choice.rationale,
        condition=record.condition,
    )


def read_spec(folder: Path) -> JudgeSpec:
    """The description of a folder's judge. Without `judge.json` it is a plain VLM, asked in the words for public VLMs.

    Raises:
        RunError: `judge.json` cannot be read, or was written by a later version.
    """
    path = folder / SPEC
    if not path.is_file():
        return JudgeSpec(context=Context(template="rewarddance"))
    try:
        spec = JudgeSpec.model_validate_json(path.read_text())
    except (ValidationError, json.JSONDecodeError) as error:
        raise RunError(f"{path}: not the description of a judge that is a VLM ({error})") from None
    if spec.format > FORMAT:
        raise RunError(f"{path}: format {spec.format}; this version reads up to {FORMAT}, install a newer rewarddance")
    return spec


def load_judge_folder(
    folder: Path,
    *,
    precision: Precision | None = None,
    tiles: int | None = None,
    clips: ClipFrames | float | None = None,
    device: str = "auto",
    template: str | None = None,
    examples: Sequence[Comparison] = (),
    compile: bool = False,
) -> Judge:
    """Load a judge, frozen and in evaluation mode, on its device.

    A judge that computes in bf16 holds its weights in bf16, since they are not trained.

    Args:
        precision: None: `fp32` for a judge that was trained in fp32, otherwise `auto`.
        tiles: largest number of parts that a large picture is cut into (InternVL only). None: as in training.
        clips: which frames of a clip are shown, or only their number a second. None: as in training.
        template: words for a VLM that was not trained to judge (`context.template`).
        examples: labelled comparisons to show before every question, for such a VLM.
        compile: compile the layers of a large model on a GPU (`vlm/compiled.py`), for long work.

    Raises:
        RunError: `judge.json` or the head cannot be read, or words or examples for a judge that has its own.
    """
    spec, where = read_spec(folder), resolve_device(device)
    if spec.trained and (template or examples):
        raise RunError(f"{folder}: this judge was trained with its own words and examples; give none")
    if template:
        spec = spec.model_copy(update={"context": Context(template=template)})
    spec = spec.model_copy(update={"precision": precision or ("fp32" if spec.precision == "fp32" else "auto")})
    computed = resolve_precision(spec.precision, where, num_stored_parameters(folder))
    backbone = load_backbone_folder(folder, torch.bfloat16 if computed == "bf16" else torch.float32)
    backbone.module.requires_grad_(False)
    backbone.module.to(where)
    if clips is not None:
        spec = spec.model_copy(update={"clips": clips if isinstance(clips, ClipFrames) else spec.clips.at(clips)})
    backbone.tile(spec.tiles if tiles is None else tiles)
    backbone.sample_clips(spec.clips)
    if (folder / EXAMPLES).is_file():
        examples = [_as_example(r) for r in RecordTable.open(folder / EXAMPLES)]
    judge = new_judge(spec, backbone, strict=True, examples=examples)
    if isinstance(judge.single, ScalarJudge):
        _load_head(judge.single, folder / HEAD)
    compile_layers(backbone, compile)
    return judge


def _load_head(single: ScalarJudge, path: Path) -> None:
    try:
        missing, unknown = single.head.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{path}: not this judge's head ({' '.join(str(error).split())})") from None
    if unknown or set(missing) - {"tie_strength"}:  # format 0 had a fixed strength of ties, which is the default
        raise RunError(f"{path}: not this judge's head ({', '.join([*missing, *unknown])})")
    single.head.requires_grad_(False)


def labelled_examples(records: Sequence[PreferenceRecord], num: int, paired: bool) -> list[Comparison]:
    """Clear examples from records, yes and no in turn. Fewer if fewer records have a clear choice.

    Args:
        paired: comparisons of two pictures; False for single pictures.
    """
    examples: list[Comparison] = []
    for record in records:
        if len(examples) == num:
            break
        clear = [c for c in record.comparisons() if c.label is not None and abs(c.label - 0.5) >= 0.3]
        if not clear:
            continue
        yes_is_next = len(examples) % 2 == 0  # the first example is a yes
        example = clear[0] if (clear[0].label or 0.0) > 0.5 else clear[0].swapped()
        example = example if yes_is_next else example.swapped()
        examples.append(example if paired else replace(example, reference=None, rationale=None))
    return examples
