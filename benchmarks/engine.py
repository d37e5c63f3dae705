"""The engine against one question a forward pass and against the best padded batches, as ratios of interleaved runs.

T1: rank 16 candidates against one reference, both orders. T2: round robin of 8 pictures, both orders (56 questions).
T3: a training step, forward and backward, on 8 prompts of 6 pictures, all 30 ordered pairs of each, vision frozen.
scaling: T1 with 64 candidates over T1 with 8.

Shapes: `2m` is the embedded VLM in fp32. `1b` has the widths of InternVL3-1B (vision 1024, language model 896 with 14
heads over 2, vocabulary cut to 32,000) with 3 + 3 layers and 256 tokens a picture, in bf16 where the processor has it
and in fp32 where it has not.

The baselines (`support/baselines.py`) encode every picture of every question and run every dialog whole. At `1b`
without bf16 they take a quarter of an hour a round: `--sample` times some of their batches and multiplies, and
`--prompts` cuts T3 for everybody; both are printed. Share of the floor: time that the linear layers' products on the
tree's tokens and the distinct pictures take at the speed of a large product (1024 x 1024 twice), over the time taken;
in brackets with these products timed as they are, all rows at once, since narrow ones are slower.

Usage: python benchmarks/engine.py [--shape 2m|1b] [--rounds N] [--tasks T1,T2,T3,scaling] [--sample N] [--prompts N]
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Protocol

import torch
from support.baselines import WORDS, Decision, Padded, loss
from torch import nn
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig
from transformers.models.qwen2 import Qwen2Config

from rewarddance.core.device import native_bf16
from rewarddance.core.media import Media
from rewarddance.core.memory import keep_freed_memory
from rewarddance.core.runs import environment
from rewarddance.core.types import Comparison
from rewarddance.reward.context import Context
from rewarddance.reward.layouts import dialogs_of
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.vlm.tiny import new_tokenizer, new_vlm

PROMPT = "striped drawing of two red circles and a blue square on grey"
LAYOUTS = {"T1": ("strict", "two_questions"), "T2": ("strict", "two_questions", "listwise")}
LAYOUTS["T3"] = LAYOUTS["T2"]
BATCHES = {"2m": (8, 16, 32), "1b": (1, 2, 4)}


class Way(Protocol):
    """One way to answer all questions. `rows`: which its logits are of (none: it asks otherwise than `strict`)."""

    scale: float
    rows: Sequence[int]

    def __call__(self) -> torch.Tensor: ...


def build(shape: str) -> InternVLBackbone:
    tokenizer = new_tokenizer()
    if shape == "2m":
        return InternVLBackbone(new_vlm("tiny-2m", tokenizer), tokenizer, Preprocessor.square(48))
    vision = InternVLVisionConfig(
        hidden_size=1024, num_hidden_layers=3, num_attention_heads=16, intermediate_size=4096, image_size=(448, 448)
    )
    text = Qwen2Config(
        vocab_size=32_000, hidden_size=896, num_hidden_layers=3, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=4864, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    ids = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(vision_config=vision, text_config=text, image_token_id=ids, image_seq_length=256)
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    if native_bf16("cpu"):
        model = model.to(torch.bfloat16)
    return InternVLBackbone(model, tokenizer, Preprocessor.square(448))


def pictures(num: int, side: int, seed: int = 0) -> list[Media]:
    rng = torch.Generator().manual_seed(seed)
    return [Media(torch.rand(1, 3, side, side, generator=rng)) for _ in range(num)]


def ordered(media: list[Media], prompt: str = PROMPT) -> list[Comparison]:
    return [Comparison(prompt, a, b, "fidelity") for a in media for b in media if a is not b]


def against_one(num: int, side: int) -> list[Comparison]:
    """`num` candidates against one reference, both orders."""
    reference, *candidates = pictures(num + 1, side)
    pairs = [Comparison(PROMPT, c, reference, "fidelity") for c in candidates]
    return [*pairs, *(p.swapped() for p in pairs)]


def questions(task: str, side: int, num_prompts: int) -> list[Comparison]:
    if task == "T1":
        return against_one(16, side)
    if task == "T2":
        return ordered(pictures(8, side))
    prompts = [PROMPT + " and a cross" * (i % 3) for i in range(num_prompts)]
    return [c for i, p in enumerate(prompts) for c in ordered(pictures(6, side, seed=i), f"{p}{i}")]


class Ours:
    """The engine with one layout, on every question of the task."""

    scale = 1.0

    def __init__(self, backbone: InternVLBackbone, layout: str, asked: list[Comparison], *, train: bool) -> None:
        self.engine, self.train = Engine(backbone, budget=1 << 20), train
        self.dialogs = dialogs_of(Context(layout=layout), asked)  # type: ignore[arg-type]
        self.rows = list(range(len(asked))) if layout == "strict" else []

    def __call__(self) -> torch.Tensor:
        logits = self.engine.answer_logits(self.dialogs, WORDS).logits
        if self.train:
            loss(logits).backward()
        return logits.detach()


def ways(task: str, backbone: InternVLBackbone, side: int, args: argparse.Namespace) -> dict[str, Way]:
    """Everything that is timed."""
    asked, train = questions(task, side, args.prompts), task == "T3"
    found: dict[str, Way] = {k: Ours(backbone, k, asked, train=train) for k in LAYOUTS[task]}
    dialogs = dialogs_of(Context(), asked)
    for batch in (1, *BATCHES[args.shape]):
        name = "one a forward" if batch == 1 else f"padded batches of {batch}"
        found[name] = Padded(backbone, dialogs, batch, sample=args.sample, train=train)
    if not train:
        found["DecisionPipeline"] = Decision(backbone, asked, sample=args.sample)
    return found


def products(module: nn.Module, rows: int, *, train: bool) -> float:
    """Seconds that the module's linear layers alone take on so many rows at once: nothing else, least of three."""
    found = 0.0
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        weight = linear.weight.detach().requires_grad_(train)
        x = torch.rand(rows, linear.in_features, dtype=weight.dtype, requires_grad=train)
        slope = torch.rand(rows, linear.out_features, dtype=weight.dtype)
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            y = nn.functional.linear(x, weight)
            if train:
                torch.autograd.grad(y, (x, weight), slope)
            best = min(best, time.perf_counter() - began)
        found += best
    return found


def operations(module: nn.Module, rows: int) -> float:
    """Multiply-adds times two of the linear layers on so many rows."""
    return 2.0 * rows * sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def peak(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    a, b = torch.rand(1024, 1024, dtype=dtype), torch.rand(1024, 1024, dtype=dtype)
    best = 1e9
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best


def floors(backbone: InternVLBackbone, tokens: int, images: int, *, train: bool) -> tuple[float, float]:
    """Least seconds of the products: at the speed of a large product, and at that of this model's own products."""
    model = backbone.model.model
    side, patch = model.config.vision_config.image_size[0], model.config.vision_config.patch_size[0]
    patches = ((side // patch) ** 2 + 1) * images
    work = operations(model.language_model, tokens) * (3 if train else 1) + operations(model.vision_tower, patches)
    own = products(model.language_model, tokens, train=train) + products(model.vision_tower, patches, train=False)
    return work / peak(backbone.model.dtype), own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("2m", "1b"), default="2m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", default="T1,T2,T3,scaling")
    parser.add_argument("--sample", type=int, default=0, help="time so many batches of each baseline, and multiply")
    parser.add_argument("--prompts", type=int, default=8, help="prompts of T3")
    args = parser.parse_args()
    keep_freed_memory()  # helps every way of working
    backbone = build(args.shape)
    backbone.vision.requires_grad_(False)
    side = backbone.prepare.height
    dtype = str(backbone.model.dtype).removeprefix("torch.")
    print(
        environment()["hardware"],
        f"shape {args.shape} {dtype}, threads {torch.get_num_threads()}, torch {torch.__version__},",
        f"rounds {args.rounds}, batches timed of each baseline {args.sample or 'all'}, prompts of T3 {args.prompts}",
    )
    for task in args.tasks.split(","):
        with torch.set_grad_enabled(task == "T3"):
            scaling(backbone, side, args) if task == "scaling" else report(task, backbone, side, args)


def scaling(backbone: InternVLBackbone, side: int, args: argparse.Namespace) -> None:
    """Eight times the candidates should take eight times as long, not more."""
    for layout in LAYOUTS["T1"]:
        timed = {n: Ours(backbone, layout, against_one(n, side), train=False) for n in (8, 64)}
        ratios = []
        for i in range(args.rounds + 1):
            seconds = {}
            for n, way in timed.items():
                began = time.perf_counter()
                way()
                seconds[n] = time.perf_counter() - began
            if i > 0:
                ratios.append(seconds[64] / seconds[8])
        print(f"scaling, {layout}: 64 candidates take {statistics.median(ratios):.2f}x the time of 8", flush=True)


def report(task: str, backbone: InternVLBackbone, side: int, args: argparse.Namespace) -> None:
    timed = ways(task, backbone, side, args)
    seconds: dict[str, list[float]] = {k: [] for k in timed}
    results: dict[str, torch.Tensor] = {}
    for i in range(args.rounds + 1):
        for name, way in timed.items():
            backbone.module.zero_grad(set_to_none=True)
            began = time.perf_counter()
            results[name] = way()
            if i > 0:  # the first round warms up
                seconds[name].append((time.perf_counter() - began) * way.scale)
    middle = {k: statistics.median(v) for k, v in seconds.items()}
    padded, best = min((v, k) for k, v in middle.items() if k.startswith("padded"))
    same = [k for k in timed if k == "one a forward" or k.startswith("padded")]
    worst = max(float((results["strict"][list(timed[k].rows)] - results[k]).abs().max()) for k in same)
    asked = f"{len(results['strict'])} questions, largest difference of logits {worst:.1e}"
    print(f"{task}: {asked}, best of the padded is {best}, {padded:.2f} s", flush=True)
    for layout in LAYOUTS[task]:
        work = timed[layout].engine.work  # type: ignore[attr-defined]
        floor, own = floors(backbone, work.tokens, work.images, train=task == "T3")
        others = "".join(
            f", over {k} {middle[k] / middle[layout]:.2f}x"
            for k in ("one a forward", "DecisionPipeline")
            if k in middle
        )
        print(
            f"  {layout}: over best padded batches {padded / middle[layout]:.2f}x{others}; {work.tokens} tokens, "
            f"{work.images} pictures, {middle[layout] * 1e3:.0f} ms, share of floor {floor / middle[layout]:.0%} "
            f"(own products {own / middle[layout]:.0%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
