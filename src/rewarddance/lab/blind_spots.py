"""Blind spots of a judge or a VLM: correct renders against renders with one edit, by kind of edit.

A mean accuracy hides that a judge ignores backgrounds; a table by edit shows it. A generator that is aligned with a
judge does not improve where the judge is at chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rewarddance.core.media import Media
from rewarddance.core.progress import tracked
from rewarddance.core.streams import stream
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.evaluate.judge import CLEAR
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.judge import new_judge
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.world.corrupt import EDITS, Edit, edit_scene
from rewarddance.world.describe import fulfils
from rewarddance.world.grammar import phrase
from rewarddance.world.oracle import fidelity
from rewarddance.world.render import render
from rewarddance.world.sampling import place, sample_pair

MATCH = "does image 1 match the prompt?"


@dataclass(frozen=True)
class EditedPair:
    """A prompt, a render that fulfils it, a render with one edit, and the fidelity that the edit costs."""

    edit: Edit
    prompt: str
    right: Media
    wrong: Media
    gap: float


def edited_pairs(edit: Edit, num: int, seed: int = 0) -> list[EditedPair]:
    """`num` pairs of an edit on new scenes of the training split, without edits that keep the prompt fulfilled."""
    rng, pairs = stream(seed, "blind-spots", edit), list[EditedPair]()
    while len(pairs) < num:
        spec, scene = sample_pair(rng)
        try:
            changed = edit_scene(scene, rng, edit)
        except RuntimeError:  # a lone object cannot be swapped
            continue
        if not fulfils(changed, spec):
            right, wrong = render(place(spec, rng)), render(changed)
            gap = fidelity(right, spec) - fidelity(wrong, spec)
            pairs.append(EditedPair(edit, phrase(spec), Media.from_numpy(right), Media.from_numpy(wrong), gap))
    return pairs


@torch.no_grad()
def judge_blind_spots(judge: RewardModel, num: int = 60, seed: int = 0) -> dict[str, dict[str, float]]:
    """By edit: share of pairs in which the correct picture wins, mean margin and mean gap of fidelity.

    Style edits are left out, because fidelity does not depend on the style. Refused pairs are left out too.
    """
    table: dict[str, dict[str, float]] = {}
    for edit in tracked(EDITS, "blind spots"):
        pairs = [s for s in edited_pairs(edit, num, seed) if s.gap > CLEAR]
        if not pairs:
            continue
        verdict = judge.judge([Comparison(s.prompt, s.right, s.wrong, "fidelity") for s in pairs])
        margin = verdict.margin[verdict.answered].float()
        table[edit] = {
            "right": float((margin > 0).float().mean()),
            "margin": float(margin.mean()),
            "gap": float(np.mean([s.gap for s in pairs])),
            "num": len(margin),
        }
    return table


@torch.no_grad()
def untrained_answers(backbone: InternVLBackbone, num: int = 60, seed: int = 0) -> dict[str, float]:
    """A judge's question to a VLM that was not trained as a judge, on pairs with a shape edit.

    An `answer_mass` far below 1 means that it answers with other words than yes and no. A judge that starts from it
    learns these two words in its first steps (docs/log.md).
    """
    pairs = edited_pairs("shape", num, seed)
    comparisons = [Comparison(s.prompt, s.right, s.wrong, "fidelity") for s in pairs]
    verdict = new_judge(JudgeSpec(precision="fp32"), backbone).judge(comparisons)
    right, mass = (verdict.margin > 0).float().mean(), verdict.answer_mass.float().mean()
    return {"right": float(right), "answer_mass": float(mass), "num": len(pairs)}


@torch.no_grad()
def vlm_blind_spots(backbone: InternVLBackbone, num: int = 60, seed: int = 0) -> dict[str, dict[str, float]]:
    """By edit: share of edited pictures that the VLM calls no match, and of correct pictures that it calls a match."""
    engine = Engine(backbone)
    table: dict[str, dict[str, float]] = {}
    for edit in tracked(EDITS, "blind spots"):
        pairs = edited_pairs(edit, num, seed)
        dialogs = [(f"prompt: {s.prompt}\nimage 1: ", m, f"\n{MATCH}") for s in pairs for m in (s.wrong, s.right)]
        logits = engine.answer_logits(dialogs, ("no", "yes")).logits
        no = (logits[:, 0] > logits[:, 1]).float().reshape(-1, 2)
        table[edit] = {"caught": float(no[:, 0].mean()), "accepted": float(1 - no[:, 1].mean()), "num": len(pairs)}
    return table
