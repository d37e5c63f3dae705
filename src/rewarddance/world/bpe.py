"""A small byte-level BPE tokenizer for the embedded world, built in code. Any text can be encoded."""

from __future__ import annotations

import re
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rewarddance.core.streams import stream
from rewarddance.world.lessons import lesson

JUDGE_WORDS = (
    "instruction prompt prefer reference candidate question answer yes or no tie better worse than the one image "
    "picture pictures which is does more most first second third compare judge overall fidelity style composition "
    "novelty colour harmony because missing found extra wrong right matches match good bad best worst of and it has "
    "objects in order clean blurred noisy layout follows asks that for novel drawing dotted four to on a an same as "
    "should show shows what where how both neither but with without not holds hold background margins overlap balance "
    "spacing reason reasons verdict"
)
"""Words of a judge's questions and reasons that lessons do not have."""


@cache
def words() -> tuple[str, ...]:
    """All words of the world's prompts, questions and answers and of the judge, in alphabetical order.

    The tokenizer depends only on this set. So it stays the same if questions change but their words do not.
    """
    rng = stream(0, "bpe")
    vocabulary = set(JUDGE_WORDS.split())
    for _ in range(3000):
        sample = lesson(rng)
        for text in (sample.prompt or "", *(text for turn in sample.turns for text in turn)):
            vocabulary.update(re.findall("[a-z]+", text))
    return tuple(sorted(vocabulary))


def train_bpe(vocabulary_size: int, special_tokens: list[str]) -> Tokenizer:
    """Train on `words()`: each of them is one token, with and without a space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=5,
    )
    tokenizer.train_from_iterator([text for w in words() for text in (w, f" {w}")] * 5, trainer)
    return tokenizer
