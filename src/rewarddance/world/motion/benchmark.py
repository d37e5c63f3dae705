"""The action sets: prompts for text-to-video, and prompts with first frames for image-to-video.

Both have a test set of 48 and a development set of 48, all held out of training and without a common meaning; the `ood`
sets hold content that no training stream shows. They stand beside the 240 still prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from rewarddance.core.streams import stream
from rewarddance.world.motion.grammar import HELD_OUT_WORDINGS, WORDINGS, phrase
from rewarddance.world.motion.render import render
from rewarddance.world.motion.sampling import TRAIN_ACTIONS, place, sample_spec
from rewarddance.world.motion.scene import ACTIONS, MotionScene, MotionSpec
from rewarddance.world.motion.splits import meaning
from rewarddance.world.render import Image
from rewarddance.world.splits import Split

PER_SET = 48
SetName = Literal["t2v", "i2v", "t2v-dev", "i2v-dev"]
SET_NAMES: tuple[SetName, ...] = ("t2v", "i2v", "t2v-dev", "i2v-dev")
"""Test and development sets of text-to-video and image-to-video."""


@dataclass(frozen=True)
class ActionPrompt:
    """One prompt of an action set.

    Attributes:
        scene: a scene that fulfils the prompt; its first frame is what image-to-video begins with.
    """

    name: str
    text: str
    spec: MotionSpec
    scene: MotionScene

    @property
    def first_frame(self) -> Image:
        """uint8 (CANVAS, CANVAS, 3)."""
        frame: Image = render(self.scene)[0]
        return frame

    @property
    def category(self) -> str:
        """The action of the first object."""
        return self.spec.acts[0].action


@cache
def _all_sets(split: Split, seed: int) -> dict[str, tuple[ActionPrompt, ...]]:
    actions = ACTIONS if split == "ood" else TRAIN_ACTIONS
    wordings = (*WORDINGS, *HELD_OUT_WORDINGS) if split == "ood" else WORDINGS
    seen: set[str] = set()
    sets: dict[str, tuple[ActionPrompt, ...]] = {}
    for name in SET_NAMES:
        prompts: list[ActionPrompt] = []
        rng = stream(seed, "action-set", split, name)
        while len(prompts) < PER_SET:
            spec = sample_spec(rng, actions[len(prompts) % len(actions)], split)
            if meaning(spec, speed=False) in seen:
                continue
            try:
                scene = place(spec, rng)
            except RuntimeError:  # two objects that always collide
                continue
            seen.add(meaning(spec, speed=False))
            text = phrase(spec, wordings[len(prompts) % len(wordings)])
            prompts.append(ActionPrompt(f"{name}-{split}-{len(prompts)}", text, spec, scene))
        sets[name] = tuple(prompts)
    return sets


def action_set(name: SetName, split: Split = "held_out", seed: int = 48) -> tuple[ActionPrompt, ...]:
    """`PER_SET` prompts, every action about equally often. Deterministic; no two sets share a meaning.

    Args:
        split: `held_out` (the benchmark) or `ood`, which uses held-out wordings too.
    """
    return _all_sets(split, seed)[name]
