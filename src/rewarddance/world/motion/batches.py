"""Batches of training clips as arrays, each a pure function of a seed, a name and a step."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from rewarddance.core.streams import stream
from rewarddance.world.motion.grammar import ADVERBS, WORDINGS, phrase
from rewarddance.world.motion.render import Clip, render
from rewarddance.world.motion.sampling import sample_pair
from rewarddance.world.motion.scene import ACTIONS
from rewarddance.world.scene import BACKGROUNDS, COLOURS, SHAPES, STYLES

PROMPT_TOKENS = 24
"""Tokens of the longest prompt, `</s>` included."""
PAD, END = 0, 1
"""Ids of the padding and of `</s>`."""


@cache
def word_tokenizer() -> Tokenizer:
    """One token a word, `</s>` at the end."""
    sentences = " ".join((*WORDINGS, *ACTIONS, *ADVERBS.values(), *COLOURS, *SHAPES, *STYLES, *BACKGROUNDS, "a and"))
    frame_words = sentences.replace("{style}", "").replace("{body}", "").replace("{background}", "").replace(",", " , ")
    words = ["<pad>", "</s>", "<unk>", *sorted({*frame_words.split(), "in"})]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])  # type: ignore[assignment]
    return tokenizer


def prompt_ids(prompts: list[str]) -> NDArray[np.int64]:
    """Token ids of prompts, padded with `PAD`, (N, PROMPT_TOKENS)."""
    ids = np.full((len(prompts), PROMPT_TOKENS), PAD, np.int64)
    for row, encoding in zip(ids, word_tokenizer().encode_batch(prompts), strict=True):
        row[: len(encoding.ids)] = encoding.ids
    return ids


def clip_batch(seed: int, name: str, step: int, size: int) -> tuple[list[str], Clip]:
    """`size` prompts in random training wordings, and a clip of each.

    Returns:
        Prompts, and uint8 clips (size, F, CANVAS, CANVAS, 3).
    """
    rng = stream(seed, name, step)
    pairs = [sample_pair(rng) for _ in range(size)]
    prompts = [phrase(spec, WORDINGS[int(rng.integers(len(WORDINGS)))]) for spec, _ in pairs]
    return prompts, np.stack([render(scene) for _, scene in pairs])
