"""Preferences of the moving world: clips of one prompt from right to wrong, and simulated choices between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rewarddance.core.config import Config
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.streams import stream
from rewarddance.core.task import Prompt
from rewarddance.world.build.preferences import DrawImages, drawn_pictures, opinions
from rewarddance.world.motion.corrupt import Damage, Edit, damage, damage_randomly, edit_scene
from rewarddance.world.motion.grammar import HELD_OUT_WORDINGS, WORDINGS, phrase
from rewarddance.world.motion.oracle import judge
from rewarddance.world.motion.raters import utility
from rewarddance.world.motion.reading import shows_held_out
from rewarddance.world.motion.render import Clip, render
from rewarddance.world.motion.sampling import place, sample_spec
from rewarddance.world.motion.scene import FPS, MotionScene, MotionSpec
from rewarddance.world.motion.splits import scene_is_trainable
from rewarddance.world.raters import Rater, crowd
from rewarddance.world.render import Image
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
CHANGE_WEIGHTS: dict[Change, float] = {
    "direction": 0.2, "action": 0.12, "speed": 0.14, "still": 0.12, "object": 0.06, "colour": 0.04, "flicker": 0.1,
    "frozen": 0.1, "reversed": 0.08, "rate": 0.04,
}  # fmt: skip
"""How often each change is drawn for training. Changes that judges often overlook are drawn more often."""
OF_THE_FIRST_FRAME: tuple[Change, ...] = ("object", "colour", "reversed")
"""Changes that image-to-video leaves out, because they change the first frame."""
EDITS_PER_CLIP = (0.3, 0.4, 0.2, 0.1)
"""Shares of clips with 0, 1, 2 and 3 edits."""
MIN_DIFFERENCE = 0.1
"""Difference of utilities between a right clip and one with a single change."""
OTHER_FIRST_SHARE = 0.15
"""Share of image-to-video clips that begin with another picture than the given one."""
CHUNK = 32
"""Prompts whose clips a generator draws together."""
DRAWS = 8
"""Largest number of draws of damage and speed for a training clip. If all show held-out content, the clip stays as it
is."""


class ClipPreferencesConfig(Config):
    """Numbers of prompts and clips, and the raters."""

    seed: int = 0
    task: MotionTask = "t2v"
    split: Split = "train"
    num_prompts: int = 4800
    clips: int = 4
    generator_share: float = 0.7
    """Share of prompts whose clips the generator draws, if there is one; the others are rendered and corrupted."""
    preview_share: float = 0.25
    """Share of the generator's training records (in batches of 32) in which half of the clips are clean clips predicted
    in the middle of a rollout, as reward feedback shows them to the judge."""
    mixed_share: float = 0.0
    """Share of the generator's training records in which half of the clips are renders."""
    criterion: Literal["fidelity", "motion", "consistency", "first_frame", "overall"] = "overall"
    damage_share: float = 0.33
    """Share of clips whose frames are damaged, in addition to edits."""
    single_share: float = 0.0
    """Share of the rendered training records that have one right clip, and others with a single change each (`Change`).
    Judges learn to see motion from these: in the other records, objects and backgrounds decide most pairs."""
    rate_share: float = 0.1
    """Share of clips that are played at half or twice their speed. Their frames are those of another clip, and only
    their rate tells what is wrong."""
    shuffle_labels: bool = False
    """Random choices, for the control judge."""
    num_raters: int = 8
    votes: int = 5
    """Raters who judge each pair; its label is the mean of their choices (1, 0 or 0.5 each)."""


def _edit(scene: MotionScene, rng: np.random.Generator, train: bool, keep_first: bool) -> MotionScene:
    """One edit, or none if no acceptable one exists. Outside the training split the result may be held out."""
    try:
        return edit_scene(scene, rng, keep_first=keep_first, accept=scene_is_trainable if train else _anything)
    except RuntimeError:
        return scene


def _anything(scene: MotionScene) -> bool:
    return True


def corrupted_clips(
    spec: MotionSpec, scene: MotionScene, rng: np.random.Generator, config: ClipPreferencesConfig
) -> list[tuple[Clip, float]]:
    """Clips from right to wrong, with their frames per second: the scene, or another one of the specification, with 0
    to 3 edits, damage, and some of them at the wrong speed.

    In image-to-video, most of them begin as `scene` does.
    """
    clips, train = [], config.split == "train"
    for _ in range(config.clips):
        keep_first = config.task == "i2v" and rng.random() >= OTHER_FIRST_SHARE
        current = scene if keep_first or rng.random() < 0.5 else _placed_again(spec, scene, rng, train)
        for _ in range(int(rng.choice(4, p=EDITS_PER_CLIP))):
            current = _edit(current, rng, train, keep_first)
        clips.append(_played(render(current), rng, config, keep_first))
    return clips


def single_changes(
    spec: MotionSpec, scene: MotionScene, rng: np.random.Generator, config: ClipPreferencesConfig
) -> list[tuple[Clip, float]]:
    """A right clip and clips with a single change of different kinds, in random order, with their frames per second.

    In text-to-video each clip may have new positions. A training clip never shows held-out content.
    """
    train, keep_first = config.split == "train", config.task == "i2v"

    def base() -> MotionScene:
        return scene if keep_first or rng.random() < 0.5 else _placed_again(spec, scene, rng, train)

    clips = [(render(base()), FPS)]
    kinds = [c for c in CHANGES if not keep_first or c not in OF_THE_FIRST_FRAME]
    weights = np.array([CHANGE_WEIGHTS[c] for c in kinds])
    for k in rng.choice(len(kinds), len(kinds), replace=False, p=weights / weights.sum()).tolist():
        if len(clips) == config.clips:
            break
        changed = changed_clip(kinds[k], spec, base(), rng, keep_first, scene_is_trainable if train else _anything)
        if changed is not None and not (train and shows_held_out(*changed)):
            clips.append(changed)
    return [clips[k] for k in rng.permutation(len(clips)).tolist()]


def _played(
    clip: Clip, rng: np.random.Generator, config: ClipPreferencesConfig, keep_first: bool
) -> tuple[Clip, float]:
    """The clip and its frames per second, perhaps damaged, or at half or twice its speed.

    In training, damage and speed are drawn again if the clip then shows held-out content. A clip that runs backward or
    faster may show an action or a speed that training must not see.
    """
    for _ in range(DRAWS):
        shown = damage_randomly(clip, rng, 1.0, keep_first) if rng.random() < config.damage_share else clip
        fps = FPS * float(rng.choice((0.5, 2))) if rng.random() < config.rate_share else FPS
        as_rendered = shown is clip and fps == FPS
        if config.split != "train" or as_rendered or not shows_held_out(shown, fps):
            return shown, fps
    return clip, FPS


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


@dataclass(frozen=True)
class _Draft:
    """What a record asks for. `given` is the first frame of image-to-video."""

    index: int
    rng: np.random.Generator
    spec: MotionSpec
    scene: MotionScene
    prompt: str
    given: Image | None

    @property
    def request(self) -> Prompt:
        return Prompt(self.prompt, condition=None if self.given is None else Media.from_numpy(self.given))


def _draft(config: ClipPreferencesConfig, index: int) -> _Draft:
    wordings = (*WORDINGS, *HELD_OUT_WORDINGS) if config.split == "ood" else WORDINGS
    rng = stream(config.seed, "clip-preferences", config.task, config.split, index)
    spec, scene = _pair(config, rng)
    prompt = phrase(spec, wordings[int(rng.integers(len(wordings)))])
    return _Draft(index, rng, spec, scene, prompt, render(scene)[0] if config.task == "i2v" else None)


def clip_records(
    config: ClipPreferencesConfig, first: int = 0, last: int | None = None, draw_clips: DrawImages | None = None
) -> Iterator[PreferenceRecord]:
    """Records `first` to `last`, one by one. Prompts with a generator's clips come first; without `draw_clips` there
    are none.

    Each record is a pure function of the configuration, its index and the generator's clips. In the training split, the
    generator's clips that show held-out content are left out; if fewer than `MIN_PICTURES` remain, the record is
    rendered instead. Image-to-video records hold the given picture as `condition`.

    Raises:
        ValueError: the criterion `first_frame` without image-to-video.
    """
    if config.criterion == "first_frame" and config.task != "i2v":
        raise ValueError("the criterion first_frame needs task i2v")
    raters = crowd(config.num_raters, config.seed)
    from_generator = int(config.num_prompts * config.generator_share) if draw_clips else 0
    last = config.num_prompts if last is None else min(last, config.num_prompts)
    for start in range(first, last, CHUNK):
        drafts = [_draft(config, i) for i in range(start, min(start + CHUNK, last))]
        asked = {d.index: d.request for d in drafts if d.index < from_generator}
        drawn: dict[int, list[Clip]] = {}
        if draw_clips is not None and asked:
            seed = int(stream(config.seed, "draw-clips", config.task, config.split, start).integers(1 << 31))
            held_out = _shows_held_out if config.split == "train" else None
            drawn = drawn_pictures(draw_clips, asked, config.clips, seed, config.preview_share, held_out)
        for draft in drafts:
            yield _record(config, draft, drawn.get(draft.index), raters)


def _shows_held_out(clip: Clip) -> bool:
    return shows_held_out(clip, FPS)


def _record(
    config: ClipPreferencesConfig, draft: _Draft, drawn: list[Clip] | None, raters: Sequence[Rater]
) -> PreferenceRecord:
    name, source = f"{config.task}-{config.split}-{draft.index}", "rendered" if drawn is None else "generator"
    clips = [(x, FPS) for x in drawn or ()]
    if drawn is None:
        single_rng = stream(config.seed, "single-changes", config.task, config.split, draft.index)
        if config.split == "train" and single_rng.random() < config.single_share:
            source, clips = "single", single_changes(draft.spec, draft.scene, single_rng, config)
        else:
            clips = corrupted_clips(draft.spec, draft.scene, draft.rng, config)
    mixed_rng = stream(config.seed, "mixed-clips", config.task, config.split, draft.index)
    if drawn is not None and config.split == "train" and mixed_rng.random() < config.mixed_share:
        kept = -(-config.clips // 2)
        part = config.model_copy(update={"clips": config.clips - kept})
        clips, source = [*clips[:kept], *corrupted_clips(draft.spec, draft.scene, mixed_rng, part)], "mixed"
    truth = [utility(judge(c, draft.spec, r, draft.given), config.criterion) for c, r in clips]
    labelled, ratings = opinions(truth, raters, draft.rng, config.votes, config.shuffle_labels)
    return PreferenceRecord(
        record_id=name,
        prompt=draft.prompt,
        media=tuple(Media.from_numpy(c, fps=r, origin=name) for c, r in clips),
        choices=labelled,
        criterion=config.criterion,
        source=source,
        truth=tuple(truth),
        ratings=ratings,
        groups={"style": draft.spec.style, "category": draft.spec.acts[0].action},
        condition=None if draft.given is None else Media.from_numpy(draft.given, origin=name),
    )


def changed_clip(
    change: Change,
    spec: MotionSpec,
    scene: MotionScene,
    rng: np.random.Generator,
    keep_first: bool = False,
    accept: Callable[[MotionScene], bool] = _anything,
) -> tuple[Clip, float] | None:
    """The clip of a scene with one thing wrong, and its frames per second; None if the scene cannot have this change.

    Args:
        accept: whether an edited scene may be shown.
    """
    if change == "rate":
        speed = spec.acts[0].speed
        return None if speed is None else (render(scene), FPS * (2 if speed == "slow" else 0.5))
    if change in _DAMAGE_OF:
        kind, strength = _DAMAGE_OF[change]
        clip = damage(render(scene), kind, strength, rng)
        return (np.concatenate([render(scene)[:1], clip[1:]]) if keep_first else clip), FPS
    try:
        return render(edit_scene(scene, rng, _EDIT_OF[change], keep_first=keep_first, accept=accept)), FPS
    except RuntimeError:
        return None


def change_records(config: ClipPreferencesConfig, each: int) -> Iterator[PreferenceRecord]:
    """Pairs of a right clip and one with a single change, `each` of every change; the change is the record's source.

    A pair is kept if the oracle sees the difference. Image-to-video leaves out what changes the first frame.
    """
    keep_first = config.task == "i2v"
    for change in (c for c in CHANGES if not keep_first or c not in OF_THE_FIRST_FRAME):
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
            if truth[0] - truth[1] < MIN_DIFFERENCE:
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
