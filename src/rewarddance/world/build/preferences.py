"""Preferences of the embedded world: pictures of one prompt, rendered or generated, and simulated choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from rewarddance.core.config import Config
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord, all_pairs
from rewarddance.core.protocols import Generator
from rewarddance.core.streams import stream
from rewarddance.core.task import Request
from rewarddance.generator.trace import draw
from rewarddance.world.corrupt import EDIT_WEIGHTS, damage_randomly, edit_scene
from rewarddance.world.grammar import HELD_OUT_WORDINGS, WORDINGS, random_phrase
from rewarddance.world.oracle import Judgement, judge
from rewarddance.world.raters import OVERALL_WEIGHTS, Rater, crowd, utility
from rewarddance.world.reading import shows_held_out
from rewarddance.world.render import Image, render
from rewarddance.world.sampling import place, sample_spec
from rewarddance.world.scene import Scene, Spec
from rewarddance.world.splits import Split, scene_is_trainable

Source = Literal["rendered", "generator", "mixed"]
BATCH = 128
"""Pictures that the generator draws at once."""
DrawImages = Callable[[Sequence[Request], int, int, bool], list[list[Image]]]
"""(prompts, pictures a prompt, seed, previews) -> pictures (or clips) of every prompt."""


class PreferencesConfig(Config):
    """Numbers of prompts, pictures and raters, and where the pictures come from."""

    seed: int = 0
    split: Split = "train"
    num_prompts: int = 9600
    pictures: int = 4
    generator_share: float = 0.7
    """Share of prompts whose pictures the generator draws; the others are rendered and corrupted."""
    preview_share: float = 0.25
    """Share of the generator's training records (in batches of 64) in which half of the pictures are clean pictures
    predicted in the middle of a rollout, as reward feedback shows them to the judge."""
    mixed_share: float = 0.0
    """Share of the generator's training records in which half of the pictures are renders, so that a judge learns to
    compare the two kinds."""
    criterion: Literal["fidelity", "style", "composition", "novelty", "overall", "each"] = "fidelity"
    """`each` gives one record for every criterion, with the same pictures; the raters rate them by all five."""
    overall_share: float = 0.2
    """Share of training records that raters judge overall (by the weighted sum of all criteria) instead of by
    `criterion`, so that a judge learns both questions. Not used with `each`."""
    shuffle_labels: bool = False
    """Random choices, for the control judge."""
    num_raters: int = 8
    votes: int = 5
    """Raters who judge each pair; its label is the mean of their choices (1, 0 or 0.5 each)."""


TRAIN_EDITS = (0.11, 0.12, 0.06, 0.10, 0.10, 0.08, 0.08, 0.05, 0.30)
"""Weights of `EDITS` in training records; other splits use `EDIT_WEIGHTS`. The generator rarely draws a wrong
background. With one background edit in eight, judges unlearned to look at backgrounds (docs/log.md)."""

MIN_PICTURES, SPARE = 2, 1
"""Least number of pictures of a training record, and how many more than `pictures` the generator draws for it."""


def corrupted_pictures(spec: Spec, rng: np.random.Generator, num: int, train: bool) -> list[Image]:
    """Renders of different quality: a scene that fulfils `spec` with 0 to 3 edits; a third have damaged pixels too."""
    scene = place(spec, rng)
    pictures = []
    for _ in range(num):
        current = place(spec, rng) if rng.random() < 0.5 else scene
        for _ in range(int(rng.choice(4, p=[0.3, 0.35, 0.2, 0.15]))):
            current = _edit(current, rng, train)
        image = render(current)
        pictures.append(damage_randomly(image, rng) if rng.random() < 0.33 else image)
    return pictures


def right_pictures(spec: Spec, rng: np.random.Generator, num: int) -> list[Image]:
    """Renders that fulfil the specification, each with new positions: references of one known quality."""
    return [render(place(spec, rng)) for _ in range(num)]


def falling_quality(spec: Spec, rng: np.random.Generator, num: int) -> list[Image]:
    """Renders of falling quality: the first fulfils the specification, each further one has one edit more."""
    scene, pictures = place(spec, rng), []
    for _ in range(num):
        pictures.append(render(scene))
        scene = _edit(scene, rng, train=False)
    return pictures


def _edit(scene: Scene, rng: np.random.Generator, train: bool) -> Scene:
    """One edit. Scenes of evaluation splits may have no trainable edit; they are returned unchanged."""
    try:
        return edit_scene(scene, rng, weights=TRAIN_EDITS if train else EDIT_WEIGHTS)
    except RuntimeError:
        if train:
            raise
        return scene


def choices(
    utilities: Sequence[float], raters: Sequence[Rater], rng: np.random.Generator, votes: int
) -> tuple[Choice, ...]:
    """One label for every pair: the mean choice of `votes` different raters. Which picture is shown first is random."""
    labelled = []
    for i, j in all_pairs(len(utilities)):
        if rng.random() < 0.5:
            i, j = j, i
        voters = (raters[int(k)] for k in rng.permutation(len(raters))[:votes])
        label = float(np.mean([r.choose(utilities[i], utilities[j], rng) for r in voters]))
        labelled.append(Choice(i, j, label))
    return tuple(labelled)


def opinions(
    truth: Sequence[float], raters: Sequence[Rater], rng: np.random.Generator, votes: int, shuffled: bool
) -> tuple[tuple[Choice, ...], tuple[float, ...]]:
    """Choices between the pictures of a prompt, and the mean rating of each one.

    Args:
        truth: utilities of the pictures in [0, 1]. With `shuffled` the raters see random ones in their place.
    """
    utilities = list(rng.random(len(truth))) if shuffled else truth
    labelled = choices(utilities, raters, rng, votes)
    return labelled, tuple(float(np.mean([r.rate(u, rng) for r in raters])) for u in utilities)


def drawn_pictures(
    draw: DrawImages,
    asked: Mapping[int, Request],
    num: int,
    seed: int,
    preview_share: float,
    held_out: Callable[[Image], bool] | None,
) -> dict[int, list[Image]]:
    """A generator's pictures (or clips) that records may show, by the number of the record.

    Args:
        asked: prompts by the number of their record.
        num: pictures of a record.
        preview_share: share of calls in which half of the pictures are clean pictures that were predicted in the middle
            of a rollout; for training records only.
        held_out: whether a picture shows held-out content; None except for training records. Such pictures are left
            out, and so are records with fewer than `MIN_PICTURES`.
    """
    previews = held_out is not None and stream(seed, "previews").random() < preview_share
    rows = draw(list(asked.values()), num + (0 if held_out is None else SPARE), seed, previews)
    allowed = {
        i: [x for x in row if held_out is None or not held_out(x)][:num] for i, row in zip(asked, rows, strict=True)
    }
    return {i: row for i, row in allowed.items() if len(row) >= min(MIN_PICTURES, num)}


def embedded_records(
    config: PreferencesConfig, draw_pictures: DrawImages | None = None, first: int = 0, last: int | None = None
) -> Iterator[PreferenceRecord]:
    """Records of the prompts `first` to `last`. Prompts with a generator's pictures come first. Without `draw_pictures`
    there are none. A prompt has one record, or five with the criterion `each`.

    Every record is a pure function of the seed, its index and the generator's pictures. In the training split, the
    generator's pictures that show held-out content are left out; if fewer than `MIN_PICTURES` remain, the record is
    rendered instead.
    """
    from_generator = int(config.num_prompts * config.generator_share) if draw_pictures else 0
    raters, chunk = crowd(config.num_raters, config.seed), 64
    wordings = (*WORDINGS, *HELD_OUT_WORDINGS) if config.split == "ood" else WORDINGS
    last = config.num_prompts if last is None else min(last, config.num_prompts)
    for start in range(first, last, chunk):
        indices = range(start, min(start + chunk, last))
        rngs = [stream(config.seed, "preferences", config.split, i) for i in indices]
        specs = [_spec(config, rng) for rng in rngs]
        prompts = [random_phrase(s, rng, wordings) for s, rng in zip(specs, rngs, strict=True)]
        asked = {i: p for i, p in zip(indices, prompts, strict=True) if i < from_generator}
        pictures: dict[int, list[Image]] = {}
        if draw_pictures and asked:
            seed = int(stream(config.seed, "draw", config.split, start).integers(1 << 31))
            held_out = shows_held_out if config.split == "train" else None
            pictures = drawn_pictures(draw_pictures, asked, config.pictures, seed, config.preview_share, held_out)
        for i, spec, prompt, rng in zip(indices, specs, prompts, rngs, strict=True):
            images = pictures.get(i) or corrupted_pictures(spec, rng, config.pictures, config.split == "train")
            source: Source = "generator" if i in pictures else "rendered"
            mixed_rng = stream(config.seed, "mixed", config.split, i)
            if i in pictures and config.split == "train" and mixed_rng.random() < config.mixed_share:
                half = images[: -(-config.pictures // 2)]
                images = [*half, *corrupted_pictures(spec, mixed_rng, config.pictures - len(half), train=True)]
                source = "mixed"
            judged = [judge(x, spec) for x in images]
            for criterion in _criteria(config, i):
                yield _record(config, i, prompt, spec, images, judged, source, raters, rng, criterion)


def _spec(config: PreferencesConfig, rng: np.random.Generator) -> Spec:
    while True:
        spec = sample_spec(rng, split=config.split)
        if config.split != "train" or scene_is_trainable(place(spec, rng)):
            return spec


def num_criteria(config: PreferencesConfig) -> int:
    """Number of records of a prompt."""
    return len(OVERALL_WEIGHTS) + 1 if config.criterion == "each" else 1


def _criteria(config: PreferencesConfig, index: int) -> tuple[str, ...]:
    """The criteria by which the pictures of a prompt are judged."""
    if config.criterion == "each":
        return (*OVERALL_WEIGHTS, "overall")
    asks_overall = stream(config.seed, "criterion", f"{config.split}-{index}").random() < config.overall_share
    return ("overall" if config.split == "train" and asks_overall else config.criterion,)


def _record(
    config: PreferencesConfig,
    index: int,
    prompt: str,
    spec: Spec,
    images: list[Image],
    judged: list[Judgement],
    source: Source,
    raters: Sequence[Rater],
    rng: np.random.Generator,
    criterion: str,
) -> PreferenceRecord:
    name = f"{config.split}-{index}" + (f"-{criterion}" if config.criterion == "each" else "")
    truth = [utility(j, criterion) for j in judged]
    media = tuple(Media.from_numpy(x, origin=name) for x in images)
    labelled, ratings = opinions(truth, raters, rng, config.votes, config.shuffle_labels)
    groups = {"style": spec.style, "category": spec.category}
    return PreferenceRecord(name, prompt, media, labelled, criterion, source, tuple(truth), ratings, groups)


def draw_images(generator: Generator, num_steps: int = 10, batch: int = BATCH) -> DrawImages:
    """A `DrawImages` of a flow generator. The number of steps varies, so that judges see good and bad pictures.

    A generator of clips gives clips, uint8 (F, H, W, 3).

    With previews, every second picture of a prompt is the clean picture that another rollout predicts at a random step
    in its middle. Reward feedback shows such pictures to the judge.
    """

    def draw_batch(prompts: list[Request], rng: torch.Generator, previews: bool) -> list[Media]:
        steps = max(4, int(num_steps * (0.6 + 0.8 * float(torch.rand((), generator=rng)))))
        preview = int(torch.randint(int(0.3 * steps), steps - 1, (), generator=rng)) if previews else None
        return list(draw(generator, prompts, generator.noise(len(prompts), rng), steps, preview=preview))

    def draw_all(prompts: Sequence[Request], pictures: int, seed: int, previews: bool) -> list[list[Image]]:
        rng = torch.Generator().manual_seed(seed)
        images: list[Image] = []
        each = -(-pictures // 2) if previews else pictures
        flat = [p for p in prompts for _ in range(each)]
        for i in range(0, len(flat), batch):
            images += [m.to_numpy() for m in draw_batch(flat[i : i + batch], rng, previews)]
        num_drawn = len(images) // len(prompts)
        return [images[i * num_drawn : i * num_drawn + pictures] for i in range(len(prompts))]

    return draw_all
