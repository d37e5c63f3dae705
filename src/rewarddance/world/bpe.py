"""A small byte-level BPE tokenizer for the embedded world, built in code. Any text can be encoded."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rewarddance.core.streams import stream
from rewarddance.world.questions import lesson

JUDGE_WORDS = (
    "instruction: prompt: prefer reference: candidate: question: answer: yes no tie better worse than the one "
    "image picture which is does more first second compare judge overall fidelity style composition novelty "
    "colour harmony because missing found extra wrong right matches good bad of and it has objects in order "
    "clean blurred noisy layout follows drawing dotted four to on a an same as should show shows what where "
    "how"
)
"""Words that questions use beside the world's own; written into the corpus so that each is one token."""


def corpus(seed: int = 0, num_lessons: int = 3000) -> list[str]:
    """Lines that hold every word of the world's prompts, questions and answers, with the judge's words."""
    rng = stream(seed, "bpe")
    lines = []
    for _ in range(num_lessons):
        found = lesson(rng)
        lines += [found.prompt or "", *(text for turn in found.turns for text in turn)]
    words = JUDGE_WORDS.split()
    return lines + [JUDGE_WORDS, " ".join(reversed(words)), *words] * (num_lessons // 10)


def train_bpe(vocabulary_size: int, special_tokens: list[str]) -> Tokenizer:
    """Train on `corpus()`; a word and the space before it are one token."""
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
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer
