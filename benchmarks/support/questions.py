"""The questions of the benchmarks, and the engine that answers them."""

from collections.abc import Sequence

import torch

from rewarddance.core.media import Media
from rewarddance.core.types import Comparison
from rewarddance.reward.context import Context
from rewarddance.reward.layouts import dialogs_of
from rewarddance.vlm.engine import Engine, Sequenced
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.plan import Node, Tree, shares
from support.baselines import WORDS, loss

PROMPT = "striped drawing of two red circles and a blue square on grey"


def pictures(num: int, side: int, seed: int = 0) -> list[Media]:
    rng = torch.Generator().manual_seed(seed)
    return [Media(torch.rand(1, 3, side, side, generator=rng)) for _ in range(num)]


def against_one(num: int, side: int) -> list[Comparison]:
    """`num` candidates against one reference, both orders."""
    reference, *candidates = pictures(num + 1, side)
    pairs = [Comparison(PROMPT, c, reference, "fidelity") for c in candidates]
    return [*pairs, *(p.swapped() for p in pairs)]


def round_robin(num: int, side: int, seed: int = 0, prompt: str = PROMPT) -> list[Comparison]:
    """All ordered pairs of `num` pictures."""
    media = pictures(num, side, seed)
    return [Comparison(prompt, a, b, "fidelity") for a in media for b in media if a is not b]


def step_of(prompts: int, side: int) -> list[Comparison]:
    """A training step: all ordered pairs of six pictures, for each of `prompts` prompts of different lengths."""
    texts = [f"{PROMPT}{' and a cross' * (i % 3)}{i}" for i in range(prompts)]
    return [c for i, text in enumerate(texts) for c in round_robin(6, side, i, text)]


class Unshared(Engine):
    """The engine without shared prefixes: every dialog is a root of its own."""

    def _tree(self, todo: Sequence[Sequenced]) -> Tree:
        nodes = tuple(Node(-1, 0, s.offsets[-1], i) for i, s in enumerate(todo))
        return Tree(nodes, tuple(range(len(nodes))))

    def _batches(self, todo: Sequence[Sequenced], budget: int) -> list[range]:
        return shares([s.offsets[-1] for s in todo], budget, len(todo))


class Ours:
    """The engine with one layout, on every question."""

    scale = 1.0

    def __init__(
        self,
        backbone: InternVLBackbone,
        layout: str,
        comparisons: list[Comparison],
        *,
        train: bool,
        shared: bool = True,
    ) -> None:
        self.engine, self.train = (Engine if shared else Unshared)(backbone), train
        self.dialogs = dialogs_of(Context(layout=layout), comparisons)  # type: ignore[arg-type]
        self.rows = list(range(len(comparisons))) if layout == "strict" else []

    def __call__(self) -> torch.Tensor:
        logits = self.engine.answer_logits(self.dialogs, WORDS).logits
        if self.train:
            loss(logits).backward()
        return logits.detach()
