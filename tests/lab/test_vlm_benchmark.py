from dataclasses import replace

import numpy as np
import torch

from rewarddance.core.streams import stream
from rewarddance.jobs.load import load_backbone
from rewarddance.lab.vlm_benchmark import KINDS, _exact, benchmark_vlm, kind_of
from rewarddance.world.build.packing import LessonPacker, collate
from rewarddance.world.corrupt import EDITS
from rewarddance.world.lessons import lesson, matching_lesson, relation_lesson


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


def test_figures_are_shares(vlm_folder):
    found = benchmark_vlm(vlm_folder, num_lessons=20, num_edits=2)
    assert all(0 <= share <= 1 for v in found.values() for k, share in v.items() if k != "num")
    assert sum(k.startswith("match after an edit") for k in found) == len(EDITS)
    assert all(v["num"] > 0 for v in found.values())


def test_exact_means_what_greedy_decoding_writes(vlm_folder):
    """Answers that the model itself writes greedily count as exact."""
    backbone = load_backbone(vlm_folder)
    packed = LessonPacker(backbone.encoder, 1.0)(lesson(stream(1, "greedy"), 2))
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
