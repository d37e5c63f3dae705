"""What a judge or a VLM overlooks: right renders beside renders with one thing changed, by what was changed.

An average accuracy hides a judge that never looks at backgrounds; a table by edit does not, and a generator that is
aligned with that judge will not improve where the table says chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rewarddance.core.media import Media
from rewarddance.core.progress import tracked
from rewarddance.core.streams import stream
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.reward.checkpoint import new_judge
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.measure import CLEAR
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
class Slip:
    """A prompt, a render that fulfils it, another with one thing wrong, and how much fidelity that costs."""

    edit: Edit
    prompt: str
    right: Media
    wrong: Media
    gap: float


def slips(num: int, seed: int = 0, edits: Sequence[Edit] = EDITS) -> Iterator[Slip]:
    """`num` of every edit, on fresh scenes of the training split; what an edit leaves fulfilled is passed over."""
    for edit in edits:
        rng, found = stream(seed, "blind-spots", edit), 0
        while found < num:
            spec, scene = sample_pair(rng)
            try:
                changed = edit_scene(scene, rng, edit)
            except RuntimeError:  # a lone object cannot be swapped
                continue
            if fulfils(changed, spec):
                continue
            right, wrong = render(place(spec, rng)), render(changed)
            gap = fidelity(right, spec) - fidelity(wrong, spec)
            yield Slip(edit, phrase(spec), Media.from_numpy(right), Media.from_numpy(wrong), gap)
            found += 1


@torch.no_grad()
def judge_blind_spots(judge: RewardModel, num: int = 60, seed: int = 0) -> dict[str, dict[str, float]]:
    """By edit: share of pairs in which the right picture wins, mean margin and mean gap of fidelity.

    An edit of the style is left out: fidelity does not count it.
    """
    found: dict[str, dict[str, float]] = {}
    for edit in tracked(EDITS, "blind spots"):
        pairs = [s for s in slips(num, seed, [edit]) if s.gap > CLEAR]
        if not pairs:
            continue
        margin = judge.judge([Comparison(s.prompt, s.right, s.wrong, "fidelity") for s in pairs]).margin.float()
        found[edit] = {
            "right": float((margin > 0).float().mean()),
            "margin": float(margin.mean()),
            "gap": float(np.mean([s.gap for s in pairs])),
            "num": len(pairs),
        }
    return found


@torch.no_grad()
def untrained_answers(backbone: InternVLBackbone, num: int = 60, seed: int = 0) -> dict[str, float]:
    """What a VLM that was never trained to judge makes of a judge's question, over pairs with another shape.

    Where `answer_mass` is far from 1 it names other things than yes or no, and the first steps of every judge that
    begins from it go into the two words (docs/log.md).
    """
    pairs = list(slips(num, seed, ["shape"]))
    asked = [Comparison(s.prompt, s.right, s.wrong, "fidelity") for s in pairs]
    found = new_judge(JudgeSpec(precision="fp32"), backbone).judge(asked)
    right, mass = (found.margin > 0).float().mean(), found.answer_mass.float().mean()
    return {"right": float(right), "answer_mass": float(mass), "num": len(pairs)}


@torch.no_grad()
def vlm_blind_spots(backbone: InternVLBackbone, num: int = 60, seed: int = 0) -> dict[str, dict[str, float]]:
    """By edit: share of wrong pictures that the VLM says do not match, and of right ones that it says do."""
    engine = Engine(backbone)
    found: dict[str, dict[str, float]] = {}
    for edit in tracked(EDITS, "blind spots"):
        pairs = list(slips(num, seed, [edit]))
        asked = [(f"prompt: {s.prompt}\nimage 1: ", m, f"\n{MATCH}") for s in pairs for m in (s.wrong, s.right)]
        logits = engine.answer_logits(asked, ("no", "yes")).logits
        no = (logits[:, 0] > logits[:, 1]).float().reshape(-1, 2)
        found[edit] = {"caught": float(no[:, 0].mean()), "accepted": float(1 - no[:, 1].mean()), "num": len(pairs)}
    return found
