"""`evaluate --vlm`: the share of exact answers of the embedded VLM, by kind of question; and the embedded CLIP."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.progress import tracked
from rewarddance.core.statistics import share
from rewarddance.core.streams import stream
from rewarddance.jobs.load import find, load_internvl
from rewarddance.lab.blind_spots import untrained_answers, vlm_blind_spots
from rewarddance.vlm.embedders import ClipEmbedder, holds_clip
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.world.build.contrastive import ContrastiveConfig, contrastive_batch, retrieval
from rewarddance.world.build.packing import LessonPacker, PackedLesson, collate
from rewarddance.world.lessons import Lesson
from rewarddance.world.lessons import lesson as draw_lesson
from rewarddance.world.motion.lessons import action_lesson, clip_lesson, prompts_lesson

KINDS: tuple[tuple[str, str], ...] = (
    ("presence", "is there"),
    ("count", "how many"),
    ("match", "does image {} match"),
    ("aspect", "is the {side} of"),
    ("missing", "what is missing"),
    ("extra", "what is extra"),
    ("more", "does image {} have more"),
    ("same", "is image {} the same"),
    ("caption", "describe"),
    ("style or background", "is image"),
    ("place", "where is"),
    ("order", "which object"),
    ("prompt", "what is"),
    ("size", "is the {size} large"),
    ("relation", "is the"),
)
"""Kinds of questions and their beginnings; the first match counts. Aspects and sizes are recognised by their ends."""
CLIP_KINDS: tuple[tuple[str, str], ...] = (
    ("match", r"does image \d match the prompt\?"),
    ("match of a prompt after the clip", r"prompt: .+\nquestion: does image \d match the prompt\?"),
    ("aspect", r"(is|are) the \w+ of image \d right\?"),
    ("better", r"question: is image \d the better one\?"),
    ("smooth", r"(question: )?are the frames of image \d smooth\?"),
    ("order of frames", r"are the frames of image \d in order\?"),
    ("background", r"what is the background of image \d\?"),
    ("caption", r"describe image \d\."),
    ("action", r"what does the .+ of image \d do\?"),
    ("speed", r"is the .+ of image \d fast or slow\?"),
    ("presence in a frame", r"is the .+ in frame \d of image \d\?"),
    ("place in a frame", r"is the .+ in frame \d of image \d (left or right|at the top or bottom)\?"),
    ("change between frames", r"is the .+ of image \d .+ in frame \d than in frame 1\?"),
    ("named action", r"is the .+ of image \d .+\?"),
)
"""Kinds of questions about clips and their patterns; the first match counts."""
CHUNK = 16


def kind_of(question: str) -> str:
    """The kind of a question."""
    if question.endswith(("right?", "that of the prompt?")):
        return "aspect"
    if question.endswith(" large?"):
        return "size"
    plain = question.replace("image 1", "image {}", 1).replace("image 2", "image {}", 1)
    return next(name for name, start in KINDS if plain.startswith(start))


def clip_kind_of(question: str) -> str:
    """The kind of a question about clips."""
    return next(name for name, pattern in CLIP_KINDS if re.fullmatch(pattern, question))


@torch.no_grad()
def benchmark_vlm(
    name: str | Path = "tiny", *, clips: bool = False, num_lessons: int = 400, num_edits: int = 60, seed: int = 0
) -> dict[str, Any]:
    """Share of answers that greedy decoding gets exactly right, by number of pictures and kind of question.

    Also blind spots, and the answers to a judge's question on pairs with a shape edit. For a CLIP: the figures of
    `benchmark_clip`.

    Lessons are new samples of the training distribution, without held-out scenes and prompts. Yes-or-no questions also
    have the shares where the right answer is yes (`exact_yes`) and where it is no (`exact_no`), because in some kinds
    most right answers are "yes".

    Args:
        clips: ask about clips instead: a third of the lessons about the actions of one clip, a third about prompts.

    Raises:
        ConfigError: `clips` with a CLIP.
    """
    if holds_clip(folder := find(name, "vlm")):
        if clips:
            raise ConfigError(f"{name}: a CLIP sees pictures; --clips needs a VLM that answers questions")
        return benchmark_clip(ClipEmbedder.load(folder), seed)
    backbone = load_internvl(folder)
    if clips:
        rng = stream(seed, "vlm-benchmark-clips")
        about_clips = [(clip_lesson, action_lesson, prompts_lesson)[i % 3](rng) for i in range(num_lessons)]
        return _shares(backbone, about_clips, "clip", clip_kind_of)
    rng = stream(seed, "vlm-benchmark")
    shares = _shares(backbone, [draw_lesson(rng, 6) for _ in range(num_lessons)], "picture", kind_of)
    spots = vlm_blind_spots(backbone, num_edits, seed)
    untrained = {"a judge's question, untrained": untrained_answers(backbone, num_edits, seed)}
    return shares | {f"match after an edit: {k}": v for k, v in spots.items()} | untrained


def _shares(
    backbone: InternVLBackbone, lessons: Sequence[Lesson], shown: str, kind: Callable[[str], str]
) -> dict[str, Any]:
    """Shares of exact answers by number of pictures or clips and kind of question."""
    packed = list(map(LessonPacker(backbone.encoder, 1.0), lessons))
    by_kind: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for i in tracked(range(0, len(lessons), CHUNK), "vlm"):
        exact = _exact(backbone, packed[i : i + CHUNK])
        for lesson, rights in zip(lessons[i : i + CHUNK], exact, strict=True):
            num = f"{len(lesson.images)} {shown}{'s' * (len(lesson.images) > 1)}"
            for (question, answer), right in zip(lesson.turns, rights, strict=True):
                by_kind[f"{num}: {kind(question)}"].append((answer, right))
    shares: dict[str, Any] = {}
    for name, answers in sorted(by_kind.items()):
        shares[name] = {"exact": float(np.mean([right for _, right in answers])), "num": len(answers)}
        for word in ("yes", "no"):
            if rights := [right for answer, right in answers if answer == word]:
                shares[name] |= {f"exact_{word}": float(np.mean(rights)), f"num_{word}": len(rights)}
    return shares


def benchmark_clip(clip: ClipEmbedder, seed: int = 0, num: int = 256) -> dict[str, Any]:
    """Shares of `num` new training prompts, with intervals.

    `found`: the right picture is the nearest of 2 `num` pictures. `told`: the right picture is nearer than the one with
    an edited scene.
    """
    prompts, pictures = contrastive_batch(ContrastiveConfig(seed=seed, batch_size=num, damaged=0), 0, "clip-benchmark")
    media = [Media.from_numpy(p) for p in pictures]
    vectors = torch.cat([clip(media[i : i + CHUNK]) for i in range(0, len(media), CHUNK)])
    shares = retrieval(vectors, clip.texts(prompts))
    return {name.removeprefix("val_"): share(round(float(s) * num), num) for name, s in shares.items()}


def _exact(backbone: InternVLBackbone, packed: Sequence[PackedLesson]) -> list[list[bool]]:
    """For every turn, whether each answer token is the most likely one, so that greedy decoding gives the answer."""
    batch = collate(packed, 0).to(backbone.device)
    image_tokens = backbone.model.model.get_image_features(pixel_values=backbone.prepare.frames(batch.pixels))
    states = backbone.model.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
        mm_encoder_outputs={"image": image_tokens},
    )[0]
    best = backbone.model.lm_head(states).argmax(-1).cpu()
    exact = []
    for row, p in enumerate(packed):
        rights = [True] * int(max(p.branch))
        for i in range(1, len(p.ids)):
            if p.weights[i] > 0 and int(best[row, i - 1]) != p.ids[i]:
                rights[p.branch[i] - 1] = False
        exact.append(rights)
    return exact
