"""The oracle's scores of sampled clips, as JSON and as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewarddance.core.clips import contact_sheet
from rewarddance.world.motion.benchmark import ActionPrompt
from rewarddance.world.motion.oracle import CRITERIA, MotionJudgement, judge
from rewarddance.world.motion.render import Clip
from rewarddance.world.motion.scene import FPS


def scores_of(clips: Clip, prompts: Sequence[ActionPrompt], from_picture: bool) -> list[MotionJudgement]:
    """The oracle's verdict on every clip (N, F, H, W, 3)."""
    return [
        judge(clip, p.spec, FPS, p.first_frame if from_picture else None)
        for clip, p in zip(clips, prompts, strict=True)
    ]


def mean_scores(verdicts: Sequence[MotionJudgement]) -> dict[str, float]:
    """Means of the criteria; `first_frame` only where a picture was given."""
    names = CRITERIA if verdicts[0].first_frame is not None else CRITERIA[:3]
    return {name: float(np.mean([v[name] for v in verdicts])) for name in names}


def by_action(verdicts: Sequence[MotionJudgement], prompts: Sequence[ActionPrompt]) -> dict[str, float]:
    """Mean fidelity of the prompts of every action."""
    groups: dict[str, list[float]] = {}
    for verdict, prompt in zip(verdicts, prompts, strict=True):
        groups.setdefault(prompt.category, []).append(verdict.fidelity)
    return {name: float(np.mean(values)) for name, values in sorted(groups.items())}


def rows(verdicts: Sequence[MotionJudgement], prompts: Sequence[ActionPrompt]) -> list[dict[str, Any]]:
    """Prompt, scores and reasons of every clip, JSON-ready."""
    return [
        {"prompt": p.text, **{c: getattr(v, c) for c in CRITERIA}, "reasons": list(v.reasons)}
        for v, p in zip(verdicts, prompts, strict=True)
    ]


def sheet(clips: Clip) -> Any:
    """One picture: a row for each clip (N, F, H, W, 3), a column for each frame."""
    return contact_sheet(clips.reshape(-1, *clips.shape[2:]), columns=clips.shape[1])
