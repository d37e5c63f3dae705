"""`rewarddance study oracle`: does another algorithm order the generator's pictures as the oracle does?

The oracle is classical image analysis. The second opinion is a neural network trained on renders, the embedded VLM:
it describes a picture without knowing the prompt, and its words are compared with what the prompt asks for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rewarddance.core.device import autocast
from rewarddance.core.media import Media
from rewarddance.core.preferences import all_pairs
from rewarddance.core.progress import progress
from rewarddance.jobs.evaluate import gold
from rewarddance.jobs.load import load_backbone, load_generator
from rewarddance.search.best_of_n import draw
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.world.benchmark import benchmark_prompts
from rewarddance.world.grammar import PromptError, parse
from rewarddance.world.scene import Spec

CLEAR = 0.2
"""Least difference of oracle fidelity for a pair to count as clear."""
MAX_WORDS = 40


@torch.no_grad()
def study_oracle(*, every: int = 2, num: int = 8, num_steps: int = 10, seed: int = 0) -> dict[str, Any]:
    """Agreement of order on pairs of one prompt's pictures that the oracle tells apart clearly.

    Rows, stacks and pairs are left out: a description does not say where things stand.

    Returns:
        agreement (share; equal second opinions count half), num_pairs, unreadable (share of descriptions that are
        no sentence of the world, whose pictures are left out), and agreement by category.
    """
    listed = [(c, p) for c, p in benchmark_prompts()[::every] if parse(p).arrangement in (None, "crowd")]
    generator, backbone = load_generator("tiny"), load_backbone("tiny")
    rng = torch.Generator().manual_seed(seed)
    rights: dict[str, list[float]] = {}
    unreadable = total = 0
    with progress("oracle") as report, autocast(generator.device):
        for i, (category, prompt) in enumerate(listed, 1):
            media = draw(generator, [prompt], num, rng, num_steps)[0]
            first = np.array([gold(prompt, m) for m in media])
            second = second_opinion(backbone, prompt, media)
            total, unreadable = total + num, unreadable + int(np.isnan(second).sum())
            rights.setdefault(category, []).extend(_agreements(first, second))
            report(i, len(listed))
    together = [r for own in rights.values() for r in own]
    return {
        "agreement": float(np.mean(together)),
        "num_pairs": len(together),
        "unreadable": unreadable / total,
        "categories": {c: {"agreement": float(np.mean(v)), "num_pairs": len(v)} for c, v in rights.items() if v},
    }


def _agreements(first: NDArray[np.float64], second: NDArray[np.float64]) -> list[float]:
    gaps = [(first[i] - first[j], second[i] - second[j]) for i, j in all_pairs(len(first))]
    return [0.5 + 0.5 * float(np.sign(a) * np.sign(b)) for a, b in gaps if abs(a) > CLEAR and not np.isnan(b)]


def second_opinion(backbone: InternVLBackbone, prompt: str, media: Sequence[Media]) -> NDArray[np.float64]:
    """How far the VLM's descriptions agree with the prompt, (N,) in [0, 1]; NaN where one cannot be read.

    Matched objects over the larger number of asked and described ones, times 0.4 for another background, times
    0.35 to 1 for how surely the VLM says yes to the asked relation: the oracle's weights, on a network's words.
    """
    wanted, words = parse(prompt), describe(backbone, media)
    holds = _relation(backbone, wanted, media)
    out = np.full(len(media), np.nan)
    for i, text in enumerate(words):
        try:
            found = parse(text)
        except PromptError:
            continue
        a, b = (Counter((t.colour, t.shape, t.large) for t in s.instances()) for s in (wanted, found))
        ground = 1.0 if found.background == wanted.background else 0.4
        out[i] = (a & b).total() / max(a.total(), b.total()) * ground * (0.35 + 0.65 * holds[i])
    return out


@torch.no_grad()
def describe(backbone: InternVLBackbone, media: Sequence[Media]) -> list[str]:
    """The VLM's greedy captions."""
    asked = [backbone.encoder.chat([("user", ["image 1: ", m, "\n", "describe image 1."])]) for m in media]
    ids = torch.tensor([e.ids for e in asked], device=backbone.device)
    written = backbone.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=backbone.prepare(list(media)).to(backbone.device),
        max_new_tokens=MAX_WORDS,
        do_sample=False,
    )
    return [
        str(t).strip() for t in backbone.tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
    ]


def _relation(backbone: InternVLBackbone, wanted: Spec, media: Sequence[Media]) -> NDArray[np.float64]:
    """P(yes) that the asked relation holds, (N,); 1 where none is asked."""
    if wanted.relation is None:
        return np.ones(len(media))
    a, b = wanted.terms
    question = f"is the {a.colour} {a.shape} {wanted.relation} the {b.colour} {b.shape} in image 1?"
    logits = Engine(backbone).answer_logits([("image 1: ", m, "\n", question) for m in media], ("yes", "no")).logits
    return logits.softmax(-1)[:, 0].double().cpu().numpy()
