"""Preferences of the moving world: clips of one prompt from right to wrong, and simulated choices between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

from rewarddance.core.config import Config
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.streams import stream
from rewarddance.world.build.preferences import choices
from rewarddance.world.motion.corrupt import Damage, Edit, damage, damage_randomly, edit_scene
from rewarddance.world.motion.grammar import HELD_OUT_WORDINGS, WORDINGS, phrase
from rewarddance.world.motion.oracle import judge
from rewarddance.world.motion.raters import utility
from rewarddance.world.motion.render import Clip, render
from rewarddance.world.motion.sampling import place, sample_spec
from rewarddance.world.motion.scene import FPS, MotionScene, MotionSpec
from rewarddance.world.motion.splits import scene_is_trainable
from rewarddance.world.raters import crowd
from rewarddance.world.splits import Split

MotionTask = Literal["t2v", "i2v"]
Change = Literal["direction", "action", "speed", "still", "object", "colour", "flicker", "frozen", "reversed", "rate"]
"""What one clip of a pair has wrong. `still`: an object does not move; `frozen`: the second half of the clip stands
still; `rate`: the right frames at twice or half the speed."""
CHANGES: tuple[Change, ...] = get_args(Change)
_EDIT_OF: dict[Change, Edit] = {
    "direction": "direction", "action": "action", "speed": "speed", "still": "freeze", "object": "object",
    "colour": "colour",
}  # fmt: skip
_DAMAGE_OF: dict[Change, tuple[Damage, float]] = {
    "flicker": ("flicker", 0.7), "frozen": ("freeze", 0.6), "reversed": ("reverse", 1.0),
}  # fmt: skip
EDITS_PER_CLIP = (0.3, 0.4, 0.2, 0.1)
"""Shares of clips with 0, 1, 2 and 3 edits."""
LEAST_DIFFERENCE = 0.1
"""Difference of utilities between a right clip and one with a single change."""
OTHER_FIRST_SHARE = 0.15
"""Share of image-to-video clips that begin with another picture than the given one."""


class ClipPreferencesConfig(Config):
    """Numbers of prompts and clips, and the raters."""

    seed: int = 0
    task: MotionTask = "t2v"
    split: Split = "train"
    num_prompts: int = 4800
    clips: int = 4
    criterion: Literal["fidelity", "motion", "consistency", "first_frame", "overall"] = "overall"
    damage_share: float = 0.33
    """Share of clips whose frames are damaged, in addition to edits."""
    rate_share: float = 0.1
    """Share of clips that are played at half or twice their speed. Their frames are those of another clip, and only
    their rate tells what is wrong."""
    shuffle_labels: bool = False
    """Random choices, for the control judge."""
    num_raters: int = 8
    votes: int = 5
    """Raters who judge each pair; its label is the mean of their choices (1, 0 or 0.5 each)."""


def _edit(scene: MotionScene, rng: np.random.Generator, train: bool, keep_first: bool) -> MotionScene:
    """One edit, or none where no acceptable one exists. Outside the training split the result may be held out."""
    try:
        return edit_scene(scene, rng, keep_first=keep_first, accept=scene_is_trainable if train else _anything)
    except RuntimeError:
        return scene


def _anything(scene: MotionScene) -> bool:
    return True


def corrupted_clips(
    spec: MotionSpec, scene: MotionScene, rng: np.random.Generator, config: ClipPreferencesConfig
) -> list[Clip]:
    """Clips from right to wrong: the scene, or another one of the specification, with 0 to 3 edits and damage.

    In image-to-video, most of them begin as `scene` does.
    """
    clips, train = [], config.split == "train"
    for _ in range(config.clips):
        keep_first = config.task == "i2v" and rng.random() >= OTHER_FIRST_SHARE
        current = scene if keep_first or rng.random() < 0.5 else _placed_again(spec, scene, rng, train)
        for _ in range(int(rng.choice(4, p=EDITS_PER_CLIP))):
            current = _edit(current, rng, train, keep_first)
        clip = render(current)
        clips.append(damage_randomly(clip, rng, 1.0, keep_first) if rng.random() < config.damage_share else clip)
    return clips


def _placed_again(spec: MotionSpec, scene: MotionScene, rng: np.random.Generator, train: bool) -> MotionScene:
    try:
        other = place(spec, rng)
    except RuntimeError:  # little room for two objects
        return scene
    return other if not train or scene_is_trainable(other) else scene


def _pair(config: ClipPreferencesConfig, rng: np.random.Generator) -> tuple[MotionSpec, MotionScene]:
    while True:
        spec = sample_spec(rng, split=config.split)
        try:
            scene = place(spec, rng)
        except RuntimeError:  # two objects that always collide
            continue
        if config.split != "train" or scene_is_trainable(scene):
            return spec, scene


def clip_records(config: ClipPreferencesConfig, first: int = 0, last: int | None = None) -> Iterator[PreferenceRecord]:
    """Records `first` to `last`, one by one; each is a pure function of the configuration and its index.

    Image-to-video records hold the given picture as `condition`.

    Raises:
        ValueError: the criterion `first_frame` without image-to-video.
    """
    if config.criterion == "first_frame" and config.task != "i2v":
        raise ValueError("the criterion first_frame needs task i2v")
    raters = crowd(config.num_raters, config.seed)
    wordings = (*WORDINGS, *HELD_OUT_WORDINGS) if config.split == "ood" else WORDINGS
    for i in range(first, config.num_prompts if last is None else min(last, config.num_prompts)):
        rng = stream(config.seed, "clip-preferences", config.task, config.split, i)
        spec, scene = _pair(config, rng)
        prompt = phrase(spec, wordings[int(rng.integers(len(wordings)))])
        given = render(scene)[0] if config.task == "i2v" else None
        clips = corrupted_clips(spec, scene, rng, config)
        rates = [FPS * float(rng.choice((0.5, 2))) if rng.random() < config.rate_share else FPS for _ in clips]
        truth = [utility(judge(c, spec, r, given), config.criterion) for c, r in zip(clips, rates, strict=True)]
        utilities = list(rng.random(len(truth))) if config.shuffle_labels else truth
        name = f"{config.task}-{config.split}-{i}"
        yield PreferenceRecord(
            record_id=name,
            prompt=prompt,
            media=tuple(Media.from_numpy(c, fps=r, origin=name) for c, r in zip(clips, rates, strict=True)),
            choices=choices(utilities, raters, rng, config.votes),
            criterion=config.criterion,
            source="rendered",
            truth=tuple(truth),
            ratings=tuple(float(np.mean([r.rate(u, rng) for r in raters])) for u in utilities),
            groups={"style": spec.style, "category": spec.acts[0].action},
            condition=None if given is None else Media.from_numpy(given, origin=name),
        )


def changed_clip(
    change: Change, spec: MotionSpec, scene: MotionScene, rng: np.random.Generator, keep_first: bool = False
) -> tuple[Clip, float] | None:
    """The clip of a scene with one thing wrong, and its frames per second; None where that cannot be done to it."""
    if change == "rate":
        speed = spec.acts[0].speed
        return None if speed is None else (render(scene), FPS * (2 if speed == "slow" else 0.5))
    if change in _DAMAGE_OF:
        kind, strength = _DAMAGE_OF[change]
        clip = damage(render(scene), kind, strength, rng)
        return (np.concatenate([render(scene)[:1], clip[1:]]) if keep_first else clip), FPS
    try:
        return render(edit_scene(scene, rng, _EDIT_OF[change], keep_first=keep_first, accept=_anything)), FPS
    except RuntimeError:
        return None


def change_records(config: ClipPreferencesConfig, each: int) -> Iterator[PreferenceRecord]:
    """Pairs of a right clip and one with a single change, `each` of every change; the change is the record's source.

    A pair is kept if the oracle sees the difference. Image-to-video leaves out what changes the first frame.
    """
    keep_first = config.task == "i2v"
    for change in (c for c in CHANGES if not keep_first or c not in ("object", "colour", "reversed")):
        done, tries = 0, 0
        while done < each:
            rng = stream(config.seed, "clip-changes", config.task, config.split, change, tries)
            tries += 1
            if tries > 200 * each:
                raise RuntimeError(f"no clips with the change {change!r} in {tries} draws")
            spec, scene = _pair(config, rng)
            changed = changed_clip(change, spec, scene, rng, keep_first)
            if changed is None:
                continue
            given = render(scene)[0] if keep_first else None
            pair = [(render(scene), FPS), changed]
            truth = [utility(judge(c, spec, r, given), config.criterion) for c, r in pair]
            if truth[0] - truth[1] < LEAST_DIFFERENCE:
                continue
            name = f"{config.task}-{config.split}-{change}-{done}"
            done += 1
            yield PreferenceRecord(
                record_id=name,
                prompt=phrase(spec, WORDINGS[int(rng.integers(len(WORDINGS)))]),
                media=tuple(Media.from_numpy(c, fps=r, origin=name) for c, r in pair),
                choices=(Choice(0, 1, 1.0),),
                criterion=config.criterion,
                source=change,
                truth=tuple(truth),
                groups={"style": spec.style, "category": spec.acts[0].action},
                condition=None if given is None else Media.from_numpy(given, origin=name),
            )
