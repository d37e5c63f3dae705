from dataclasses import replace

import numpy as np
import pytest
import torch

from rewarddance.core.streams import stream
from rewarddance.jobs.load import load_backbone
from rewarddance.lab.vlm_benchmark import CLIP_KINDS, KINDS, _exact, benchmark_vlm, clip_kind_of, kind_of
from rewarddance.world.build.packing import LessonPacker, collate
from rewarddance.world.corrupt import EDITS
from rewarddance.world.lessons import lesson, matching_lesson, relation_lesson
from rewarddance.world.motion.lessons import action_lesson, clip_lesson, prompts_lesson


def test_every_question_has_a_kind():
    rng = stream(0, "kinds")
    drawn = [lesson(rng, 6) for _ in range(60)] + [
        draw(rng) for draw in (matching_lesson, relation_lesson) for _ in range(60)
    ]
    seen = {kind_of(q) for found in drawn for q, _ in found.turns}
    assert seen == {name for name, _ in KINDS}
    assert kind_of("is image 2 the same as image 1?") == "same"
    assert kind_of("is the layout of image 1 right?") == "aspect"
    assert kind_of("is the style of image 1 that of the prompt?") == "aspect"
    assert kind_of("is image 1 striped?") == "style or background"
    assert kind_of("is the red circle in image 1 large?") == "size"
    assert kind_of("is the red circle left of the blue square in image 1?") == "relation"


def test_every_question_about_clips_has_a_kind():
    rng = stream(0, "clip kinds")
    drawn = [draw(rng) for draw in (clip_lesson, action_lesson, prompts_lesson) for _ in range(80)]
    assert {clip_kind_of(q) for found in drawn for q, _ in found.turns} == {name for name, _ in CLIP_KINDS}
    for kind, question in (
        ("named action", "is the red circle of image 1 moving right?"),
        ("aspect", "is the motion of image 2 right?"),
        ("change between frames", "is the red circle of image 2 further right in frame 5 than in frame 1?"),
        ("place in a frame", "is the red circle in frame 5 of image 1 at the top or bottom?"),
        ("order of frames", "are the frames of image 2 in order?"),
    ):
        assert clip_kind_of(question) == kind


def test_figures_about_clips_are_those_of_all_answers(vlm_folder, monkeypatch):
    """With a model that answers yes to every question."""
    monkeypatch.setattr("rewarddance.lab.vlm_benchmark._exact", lambda backbone, packed: [next(rights) for _ in packed])
    rng = stream(0, "vlm-benchmark-clips")
    lessons = [(clip_lesson, action_lesson, prompts_lesson)[i % 3](rng) for i in range(40)]
    rights = iter([[answer == "yes" for _, answer in one.turns] for one in lessons])
    figures = benchmark_vlm(vlm_folder, clips=True, num_lessons=40)
    assert sum(row["num"] for row in figures.values()) == sum(len(one.turns) for one in lessons)
    two = [(q, a) for one in lessons if len(one.images) == 2 for q, a in one.turns if clip_kind_of(q) == "smooth"]
    assert figures["2 clips: smooth"] == {
        "exact": sum(a == "yes" for _, a in two) / len(two), "num": len(two),
        "exact_yes": 1.0, "num_yes": sum(a == "yes" for _, a in two),
        "exact_no": 0.0, "num_no": sum(a == "no" for _, a in two),
    }  # fmt: skip
    assert figures["1 clip: action"] == {"exact": 0.0, "num": figures["1 clip: action"]["num"]}


def test_figures_are_shares(vlm_folder):
    found = benchmark_vlm(vlm_folder, num_lessons=20, num_edits=2)
    assert all(0 <= share <= 1 for v in found.values() for k, share in v.items() if not k.startswith("num"))
    assert {"exact_yes", "num_yes", "exact_no", "num_no"} <= found["1 picture: presence"].keys()
    assert sum(k.startswith("match after an edit") for k in found) == len(EDITS)
    assert all(v["num"] > 0 for v in found.values())


@pytest.mark.parametrize("drawn", [lesson(stream(1, "greedy"), 2), clip_lesson(stream(1, "greedy"), 1)])
def test_exact_means_what_greedy_decoding_writes(drawn, vlm_folder):
    """Answers that the model itself writes greedily count as exact."""
    backbone = load_backbone(vlm_folder)
    packed = LessonPacker(backbone.encoder, 1.0)(drawn)
    ids = list(packed.ids)
    for _ in range(len(ids)):  # write the model's own answers until they stand still
        before = list(ids)
        changed = replace(packed, ids=np.array(ids, np.int32))
        best = _best(backbone, changed)
        ids = [int(best[i - 1]) if packed.weights[i] > 0 else t for i, t in enumerate(ids)]
        if ids == before:
            break
    final = replace(packed, ids=np.array(ids, np.int32))
    assert all(_exact(backbone, [final])[0])


@torch.no_grad()
def _best(backbone, packed):
    batch = collate([packed], 0).to(torch.device("cpu"))
    seen = backbone.model.model.get_image_features(pixel_values=backbone.prepare.frames(batch.pixels))
    more = {"attention_mask": batch.mask, "position_ids": batch.positions, "mm_encoder_outputs": {"image": seen}}
    states = backbone.model.model(input_ids=batch.ids, use_cache=False, **more)[0]
    return backbone.model.lm_head(states)[0].argmax(-1)
