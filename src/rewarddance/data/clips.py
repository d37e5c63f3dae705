"""Readers of public sets of clips, one function a format. Records keep references to the clips' files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.data.drafts import Draft, first_of, groups_of, medium, number, optional, text
from rewarddance.data.votes import MediaRef, Vote, VotedRecord, choice, iso_time

VIDEOFEEDBACK = (
    "visual quality",
    "temporal consistency",
    "dynamic degree",
    "text-to-video alignment",
    "factual consistency",
)


def spelled(name: str) -> tuple[str, str, str]:
    """Both spellings of a key: with spaces and with underscores, and all underscores."""
    return name, name.replace(" ", "_"), name.replace(" ", "_").replace("-", "_")


def videofeedback(row: Mapping[str, Any], place: int) -> Draft:
    """VideoFeedback: one clip with five ratings from 1 to 4, its frames under `images`, its file under `video link`.

    Keys may have spaces or underscores. Criteria are named with spaces.
    """
    frames = row.get("images") or []
    link = optional(row, *spelled("video link"))
    if not link and not frames:
        raise InputError("neither 'video link' nor 'images'")
    if not isinstance(frames, list) or not all(isinstance(f, str) for f in frames):
        raise InputError("'images' must be paths of frames")
    votes = []
    for criterion in VIDEOFEEDBACK:
        value = first_of(row, *spelled(criterion))
        if value is not None:
            votes.append(Vote("rating", (0,), (number(value, criterion),), criterion, scale=(1, 4)))
    if not votes:
        raise InputError(f"none of {', '.join(VIDEOFEEDBACK)}")
    clip = MediaRef("video", link, frames=tuple(frames))
    name = str(row.get("id") or f"row-{place}")
    return Draft(VotedRecord(name, text(row, *spelled("text prompt")), (clip,), tuple(votes)))


VIDEOGEN = {"visual quality": "VQ", "motion quality": "MQ", "text alignment": "TA", "overall": "Overall"}
"""Criteria of VideoGen-RewardBench by column."""
_SIDES = {"a": 1.0, "b": 0.0, "same": 0.5}


def videogen(row: Mapping[str, Any], place: int) -> Draft:
    """VideoGen-RewardBench CSV: `path_A, path_B, A_model, B_model, prompt` and VQ, MQ, TA, Overall, each A, B or same.

    Filled cells of `fps_A`, `num_frames_A` and so on are kept.
    """
    media = []
    for side in ("A", "B"):
        fps, frames = (
            optional(row, f"fps_{side}", f"{side}_fps"),
            optional(row, f"num_frames_{side}", f"{side}_num_frames"),
        )
        facts = {
            "model": optional(row, f"{side}_model", f"model_{side}"),
            "fps": None if fps is None else number(fps, f"fps_{side}"),
            "num_frames": None if frames is None else int(number(frames, f"num_frames_{side}")),
        }
        media.append(medium(row.get(f"path_{side}"), f"path_{side}", "video", **facts))
    votes = []
    for criterion, column in VIDEOGEN.items():
        word = (optional(row, column) or "").lower()
        if word and word not in _SIDES:
            raise InputError(f"{column} {word!r}: needs A, B or same")
        if word:
            votes.append(choice(_SIDES[word], criterion=criterion))
    if not votes:
        raise InputError(f"none of {', '.join(VIDEOGEN.values())}")
    return Draft(VotedRecord(optional(row, "id") or f"row-{place}", text(row, "prompt"), tuple(media), tuple(votes)))


def side_vote(word: str) -> dict[str, Any]:
    """`leftvote`, `rightvote`, `tievote` or `bothbad_vote`, with or without the ending, as a label and a flag.

    Raises:
        InputError: another word.
    """
    key = word.lower().replace("_", "").replace(" ", "").replace("-", "").removesuffix("vote")
    if key in ("bothbad", "both"):
        return {"label": 0.5, "both_bad": True}
    labels = {"left": 1.0, "right": 0.0, "tie": 0.5}
    if key not in labels:
        raise InputError(f"vote {word[:40]!r}: needs left, right, tie or bothbad")
    return {"label": labels[key]}


def genai_bench(row: Mapping[str, Any], place: int) -> Draft:
    """GenAI-Bench: `left_image` and `right_image` (or `_video`, or `_output_image` of edits) and `vote_type`.

    The left one was shown left, so side bias can be measured. The source picture of an edit is a condition.
    """
    kinds = ("image", "output_image", "video")
    kind = next((k for k in kinds if row.get(f"left_{k}") is not None), None)
    if kind is None:
        raise InputError("empty or missing 'left_image' or 'left_video'")
    media = [
        medium(row.get(f"{side}_{kind}"), f"{side}_{kind}", "video" if kind == "video" else "image", model=model)
        for side in ("left", "right")
        for model in [optional(row, f"{side}_model")]
    ]
    if row.get("source_image") is not None:
        media.append(medium(row["source_image"], "source_image", "image", role="condition"))
    vote = choice(
        **side_vote(text(row, "vote_type")),
        annotator=optional(row, "judge"),
        created=iso_time(row.get("timestamp")),
        shown=(0, 1),
    )
    name = optional(row, "id", "conv_id") or f"row-{place}"
    prompt = text(row, "prompt", "instruct_prompt", "target_prompt")
    return Draft(VotedRecord(name, prompt, tuple(media), (vote,), groups=groups_of(row, "category")))
