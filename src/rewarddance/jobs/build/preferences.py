"""Preferences of the embedded world: pictures of one prompt, rendered or generated, and simulated choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from rewarddance.core.config import Config
from rewarddance.core.device import autocast
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord, all_pairs
from rewarddance.core.protocols import Generator
from rewarddance.core.streams import stream
from rewarddance.generator.rollout import sample_with_preview
from rewarddance.world.corrupt import EDIT_WEIGHTS, damage_randomly, edit_scene
from rewarddance.world.grammar import HELD_OUT_WORDINGS, WORDINGS, phrase
from rewarddance.world.oracle import judge
from rewarddance.world.raters import Rater, crowd, utility
from rewarddance.world.reading import shows_held_out
from rewarddance.world.render import Image, render
from rewarddance.world.sampling import place, sample_spec
from rewarddance.world.scene import Scene, Spec
from rewarddance.world.splits import Split, scene_is_trainable

Source = Literal["rendered", "generator", "mixed"]
Draw = Callable[[Sequence[str], int, int, bool], list[list[Image]]]
"""(prompts, pictures a prompt, seed, previews) -> pictures; how a generator is handed in."""


class PreferencesConfig(Config):
    """How many prompts, how many pictures of each, who judges."""

    seed: int = 0
    split: Split = "train"
    num_prompts: int = 9600
    pictures: int = 4
    generator_share: float = 0.7
    """Share of prompts whose pictures the generator draws; the rest are rendered and corrupted."""
    preview_share: float = 0.25
    """Share of the generator's training records, by batches of 64, half of whose pictures are predicted on the way to
    a finished one, as reward feedback sees them."""
    mixed_share: float = 0.0
    """Share of the generator's training records half of whose pictures are renders, so that a judge compares the two
    kinds with each other and margins against rendered references mean the same for every prompt."""
    criterion: Literal["fidelity", "style", "composition", "novelty", "overall"] = "fidelity"
    overall_share: float = 0.2
    """Share of training records that raters judge overall (the weighted sum of all criteria) instead of by `criterion`,
    so that a judge answers both questions."""
    shuffle_labels: bool = False
    """Choose at random: the control judge that knows nothing."""
    num_raters: int = 8
    votes: int = 5
    """Raters who see each pair; its label is the mean of their choices (1, 0 or 0.5 each)."""


TRAIN_EDITS = (0.11, 0.12, 0.06, 0.10, 0.10, 0.08, 0.08, 0.05, 0.30)
"""Of `EDITS` in training records. The generator hardly ever errs in the background, and of eight edits one was too few:
judges forgot that backgrounds matter, which the VLM that they began from knew (docs/log.md). Records of the other
splits are edited by `EDIT_WEIGHTS`."""

LEAST_PICTURES, SPARE = 2, 1
"""Of a record, and how many more the generator draws for training than are wanted."""


def corrupted_pictures(spec: Spec, rng: np.random.Generator, num: int, train: bool) -> list[Image]:
    """Pictures from perfect to poor: none to three edits of a fulfilling scene, a third of them damaged."""
    scene = place(spec, rng)
    pictures = []
    for _ in range(num):
        current = place(spec, rng) if rng.random() < 0.5 else scene
        for _ in range(int(rng.choice(4, p=[0.3, 0.35, 0.2, 0.15]))):
            current = _edit(current, rng, train)
        image = render(current)
        pictures.append(damage_randomly(image, rng) if rng.random() < 0.33 else image)
    return pictures


def right(spec: Spec, rng: np.random.Generator, num: int) -> list[Image]:
    """Renders that all fulfil the specification, placed anew each time. For references of one known quality."""
    return [render(place(spec, rng)) for _ in range(num)]


def ladder(spec: Spec, rng: np.random.Generator, num: int) -> list[Image]:
    """Renders of falling quality: one that fulfils the specification, then one edit more each. For references."""
    scene, pictures = place(spec, rng), []
    for _ in range(num):
        pictures.append(render(scene))
        scene = _edit(scene, rng, train=False)
    return pictures


def _edit(scene: Scene, rng: np.random.Generator, train: bool) -> Scene:
    """In evaluation splits the scene itself may be held out, so an edit of it may fall anywhere."""
    try:
        return edit_scene(scene, rng, weights=TRAIN_EDITS if train else EDIT_WEIGHTS)
    except RuntimeError:
        if train:
            raise
        return scene


def choices(
    utilities: Sequence[float], raters: Sequence[Rater], rng: np.random.Generator, votes: int = 1
) -> tuple[Choice, ...]:
    """One label for every pair: the mean choice of `votes` different raters, sides shown at random."""
    found = []
    for i, j in all_pairs(len(utilities)):
        if rng.random() < 0.5:
            i, j = j, i
        asked = (raters[int(k)] for k in rng.permutation(len(raters))[:votes])
        label = float(np.mean([r.choose(utilities[i], utilities[j], rng) for r in asked]))
        found.append(Choice(i, j, label))
    return tuple(found)


def embedded_records(
    config: PreferencesConfig, draw: Draw | None = None, first: int = 0, last: int | None = None
) -> Iterator[PreferenceRecord]:
    """Records `first` to `last` one by one, the generator's first; without `draw` all are rendered.

    Every record is a pure function of the seed, its index and what the generator draws. Of the training split's
    pictures those that show what is held out are left out; where fewer than `LEAST_PICTURES` remain, renders stand in.
    """
    from_generator = int(config.num_prompts * config.generator_share) if draw else 0
    raters, chunk = crowd(config.num_raters, config.seed), 64
    last = config.num_prompts if last is None else min(last, config.num_prompts)
    for start in range(first, last, chunk):
        indices = range(start, min(start + chunk, last))
        rngs = [stream(config.seed, "preferences", config.split, i) for i in indices]
        specs = [_spec(config, rng) for rng in rngs]
        prompts = [_phrase(config, s, rng) for s, rng in zip(specs, rngs, strict=True)]
        drawn = [i for i in indices if i < from_generator]
        pictures: dict[int, list[Image]] = {}
        if draw and drawn:
            seed = int(stream(config.seed, "draw", config.split, start).integers(1 << 31))
            previews = config.split == "train" and stream(seed, "previews").random() < config.preview_share
            num = config.pictures + (SPARE if config.split == "train" else 0)
            pictures = dict(zip(drawn, draw(prompts[: len(drawn)], num, seed, previews), strict=True))
        if config.split == "train":
            shown = {i: _trainable(found)[: config.pictures] for i, found in pictures.items()}
            pictures = {i: kept for i, kept in shown.items() if len(kept) >= LEAST_PICTURES}
        for i, spec, prompt, rng in zip(indices, specs, prompts, rngs, strict=True):
            images = pictures.get(i) or corrupted_pictures(spec, rng, config.pictures, config.split == "train")
            source: Source = "generator" if i in pictures else "rendered"
            coins = stream(config.seed, "mixed", config.split, i)
            if i in pictures and config.split == "train" and coins.random() < config.mixed_share:
                own = images[: -(-config.pictures // 2)]
                images = [*own, *corrupted_pictures(spec, coins, config.pictures - len(own), train=True)]
                source = "mixed"
            yield _record(config, i, prompt, spec, images, source, raters, rng)


def _trainable(pictures: Sequence[Image]) -> list[Image]:
    return [x for x in pictures if not shows_held_out(x)]


def _spec(config: PreferencesConfig, rng: np.random.Generator) -> Spec:
    while True:
        spec = sample_spec(rng, split=config.split)
        if config.split != "train" or scene_is_trainable(place(spec, rng)):
            return spec


def _phrase(config: PreferencesConfig, spec: Spec, rng: np.random.Generator) -> str:
    frames = (*WORDINGS, *HELD_OUT_WORDINGS) if config.split == "ood" else WORDINGS
    return phrase(spec, frames[int(rng.integers(len(frames)))])


def _record(
    config: PreferencesConfig,
    index: int,
    prompt: str,
    spec: Spec,
    images: list[Image],
    source: Source,
    raters: Sequence[Rater],
    rng: np.random.Generator,
) -> PreferenceRecord:
    name = f"{config.split}-{index}"
    asks_overall = stream(config.seed, "criterion", name).random() < config.overall_share
    criterion = "overall" if config.split == "train" and asks_overall else config.criterion
    felt = [utility(judge(x, spec), criterion) for x in images]
    shown = list(rng.random(len(felt))) if config.shuffle_labels else felt
    media = tuple(Media.from_numpy(x, origin=name) for x in images)
    made = choices(shown, raters, rng, config.votes)
    ratings = tuple(float(np.mean([r.rate(u, rng) for r in raters])) for u in shown)
    groups = {"style": spec.style, "category": spec.category}
    return PreferenceRecord(name, prompt, media, made, criterion, source, tuple(felt), ratings, groups)


def generator_draw(generator: Generator, num_steps: int = 10, batch: int = 128) -> Draw:
    """A `Draw` from a flow generator, with the number of steps varied so that judges meet good and bad pictures.

    With previews, every second picture of a prompt is what another one promised on the way (x0 predicted at a random
    step of the window in which reward feedback asks the judge), so that the judge knows such pictures.
    """

    def sampled(prompts: list[str], rng: torch.Generator, previews: bool) -> list[Media]:
        steps = max(4, int(num_steps * (0.6 + 0.8 * float(torch.rand((), generator=rng)))))
        seen = int(torch.randint(int(0.3 * steps), steps - 1, (), generator=rng)) if previews else None
        final, preview = sample_with_preview(
            generator, generator.condition(prompts), generator.noise(len(prompts), rng), steps, seen
        )
        media = generator.decode(final)
        return (
            media
            if preview is None
            else [m for pair in zip(media, generator.decode(preview), strict=True) for m in pair]
        )

    def draw(prompts: Sequence[str], pictures: int, seed: int, previews: bool) -> list[list[Image]]:
        rng = torch.Generator().manual_seed(seed)
        rows: list[Image] = []
        each = -(-pictures // 2) if previews else pictures
        flat = [p for p in prompts for _ in range(each)]
        with torch.no_grad(), autocast(generator.device):
            for i in range(0, len(flat), batch):
                rows += [m.to_numpy() for m in sampled(flat[i : i + batch], rng, previews)]
        per = len(rows) // len(prompts)
        return [rows[i * per : i * per + pictures] for i in range(len(prompts))]

    return draw
