"""The engine against one question a forward pass and against the best padded batches, as ratios of interleaved runs.

T1: rank 16 candidates against one reference, both orders. T2: round robin of 8 pictures, both orders (56 questions).
Shape: the embedded 2M VLM in fp32. The baselines encode every picture of every question, run the whole dialog of
every question and read two words at its end; their language-model head gets two-dimensional input.
"""

import statistics
import time

import torch

from rewarddance.core.media import Media
from rewarddance.core.runs import environment
from rewarddance.core.types import Comparison
from rewarddance.reward.context import Context
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.vlm.tiny import new_tokenizer, new_vlm

ROUNDS, WORDS = 7, ("yes", "no")
PROMPT = "striped drawing of two red circles and a blue square on grey"


def pictures(num: int) -> list[Media]:
    rng = torch.Generator().manual_seed(0)
    return [Media(torch.rand(1, 3, 48, 48, generator=rng)) for _ in range(num)]


def t1() -> list:
    reference, *candidates = pictures(17)
    pairs = [Comparison(PROMPT, c, reference, "fidelity") for c in candidates]
    return [Context().render(c) for c in [*pairs, *(p.swapped() for p in pairs)]]


def t2() -> list:
    media = pictures(8)
    return [Context().render(Comparison(PROMPT, a, b, "fidelity")) for a in media for b in media if a is not b]


def plain(backbone: InternVLBackbone, dialogs: list, batch: int) -> torch.Tensor:
    """Left-padded batches of whole dialogs through the transformers model."""
    ids = torch.tensor([backbone.tokenizer.convert_tokens_to_ids(w) for w in WORDS])
    rows = []
    for i in range(0, len(dialogs), batch):
        encoded = [backbone.encoder.chat([("user", d)]) for d in dialogs[i : i + batch]]
        width = max(len(e.ids) for e in encoded)
        tokens = torch.tensor([[0] * (width - len(e.ids)) + list(e.ids) for e in encoded])
        mask = torch.tensor([[0] * (width - len(e.ids)) + [1] * len(e.ids) for e in encoded])
        pixels = backbone.prepare([m for e in encoded for m, _ in e.images])
        states = backbone.model.model(input_ids=tokens, attention_mask=mask, pixel_values=pixels, use_cache=False)[0]
        rows.append(backbone.model.lm_head(states[:, -1])[:, ids])
    return torch.cat(rows)


@torch.no_grad()
def main() -> None:
    tokenizer = new_tokenizer()
    backbone = InternVLBackbone(new_vlm("tiny-2m", tokenizer), tokenizer, Preprocessor.square(48))
    engine = Engine(backbone)
    print(environment()["hardware"], f"threads {torch.get_num_threads()}, torch {torch.__version__}")
    for name, dialogs in (("T1", t1()), ("T2", t2())):
        ways = {
            "engine": lambda d=dialogs: engine.answer_logits(d, WORDS).logits,
            "one a forward": lambda d=dialogs: plain(backbone, d, 1),
            **{f"padded batches of {b}": lambda d=dialogs, b=b: plain(backbone, d, b) for b in (8, 16, 32)},
        }
        results = {k: w() for k, w in ways.items()}
        worst = max(float((results["engine"] - r).abs().max()) for r in results.values())
        seconds: dict[str, list[float]] = {k: [] for k in ways}
        for _ in range(ROUNDS):
            for k, work in ways.items():
                began = time.perf_counter()
                work()
                seconds[k].append(time.perf_counter() - began)
        middle = {k: statistics.median(v) for k, v in seconds.items()}
        padded = min((v, k) for k, v in middle.items() if k.startswith("padded"))
        print(f"{name}: {len(dialogs)} questions, largest difference of logits {worst:.1e}")
        print(f"  engine over one a forward: {middle['one a forward'] / middle['engine']:.2f}x")
        print(f"  engine over best {padded[1]}: {padded[0] / middle['engine']:.2f}x")


if __name__ == "__main__":
    main()
