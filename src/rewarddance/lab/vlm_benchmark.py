"""`evaluate --vlm`: the embedded VLM before it is trained to judge, as share of exact answers by kind of question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rewarddance.core.progress import tracked
from rewarddance.core.streams import stream
from rewarddance.jobs.load import load_internvl
from rewarddance.lab.blind_spots import untrained_answers, vlm_blind_spots
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.world.build.packing import LessonPacker, PackedLesson, collate
from rewarddance.world.lessons import lesson as draw_lesson

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
CHUNK = 16


def kind_of(question: str) -> str:
    """The kind of a question."""
    if question.endswith(("right?", "that of the prompt?")):
        return "aspect"
    if question.endswith(" large?"):
        return "size"
    plain = question.replace("image 1", "image {}", 1).replace("image 2", "image {}", 1)
    return next(name for name, start in KINDS if plain.startswith(start))


@torch.no_grad()
def benchmark_vlm(
    name: str | Path = "tiny", *, num_lessons: int = 400, num_edits: int = 60, seed: int = 0
) -> dict[str, Any]:
    """Share of answers that greedy decoding gets exactly right, by number of pictures and kind of question. Also blind
    spots, and the answers to a judge's question on pairs with a shape edit.

    Lessons are new samples of the training distribution, without held-out scenes and prompts.
    """
    backbone = load_internvl(name)
    rng = stream(seed, "vlm-benchmark")
    lessons = [draw_lesson(rng, 6) for _ in range(num_lessons)]
    packed = list(map(LessonPacker(backbone.encoder, 1.0), lessons))
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for i in tracked(range(0, num_lessons, CHUNK), "vlm"):
        exact = _exact(backbone, packed[i : i + CHUNK])
        for lesson, rights in zip(lessons[i : i + CHUNK], exact, strict=True):
            num = f"{len(lesson.images)} picture{'s' * (len(lesson.images) > 1)}"
            for (question, _), right in zip(lesson.turns, rights, strict=True):
                by_kind[f"{num}: {kind_of(question)}"].append(right)
    shares: dict[str, Any] = {k: {"exact": sum(v) / len(v), "num": len(v)} for k, v in sorted(by_kind.items())}
    spots = vlm_blind_spots(backbone, num_edits, seed)
    untrained = {"a judge's question, untrained": untrained_answers(backbone, num_edits, seed)}
    return shares | {f"match after an edit: {k}": v for k, v in spots.items()} | untrained


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
