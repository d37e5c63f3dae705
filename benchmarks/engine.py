"""The engine against one question a forward pass and against the best padded batches, as ratios of interleaved runs.

T1: rank 16 candidates against one reference, both orders. T2: round robin of 8 pictures, both orders (56 questions).
T3: a training step, forward and backward, on 8 prompts of 6 pictures, all 30 ordered pairs of each, vision frozen.

Shapes: `2m` is the embedded VLM in fp32. `1b` has the widths of InternVL3-1B (vision 1024, language model 896 with 14
heads over 2, vocabulary cut to 32,000) with 3 + 3 layers and 256 tokens a picture, in bf16 where the processor has it
and in fp32 where it has not.

The baselines encode every picture of every question, run the whole dialog of every question and read two words at its
end; their language-model head gets two-dimensional input. In T3 every baseline pass has its own backward pass. Share of
the floor: time that the matrix products of the tree's tokens and of the distinct pictures take at the speed of a large
product, over the time taken.

Usage: python benchmarks/engine.py [--shape 2m|1b] [--rounds N] [--tasks T1,T2,T3]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
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

WORDS = ("yes", "no")
PROMPT = "striped drawing of two red circles and a blue square on grey"
LAYOUTS = {"T1": ("strict", "two_questions"), "T2": ("strict", "two_questions", "listwise")}
LAYOUTS["T3"] = LAYOUTS["T2"]
BATCHES = {"2m": (8, 16, 32), "1b": (1, 2, 4)}


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


def questions(task: str, side: int) -> list[Comparison]:
    if task == "T1":
        reference, *candidates = pictures(17, side)
        pairs = [Comparison(PROMPT, c, reference, "fidelity") for c in candidates]
        return [*pairs, *(p.swapped() for p in pairs)]
    if task == "T2":
        return ordered(pictures(8, side))
    prompts = [PROMPT + " and a cross" * (i % 3) for i in range(8)]
    return [c for i, p in enumerate(prompts) for c in ordered(pictures(6, side, seed=i), f"{p}{i}")]


class Padded:
    """Left-padded batches of whole dialogs through the transformers model."""

    def __init__(self, backbone: InternVLBackbone, dialogs: list, batch: int) -> None:
        self.backbone, self.dialogs, self.batch = backbone, dialogs, batch
        self.ids = torch.tensor([backbone.tokenizer.convert_tokens_to_ids(w) for w in WORDS])

    def logits(self, each: Callable[[torch.Tensor], None] | None = None) -> torch.Tensor:
        rows, backbone = [], self.backbone
        for i in range(0, len(self.dialogs), self.batch):
            encoded = [backbone.encoder.chat([("user", d)]) for d in self.dialogs[i : i + self.batch]]
            width = max(len(e.ids) for e in encoded)
            tokens = torch.tensor([[0] * (width - len(e.ids)) + list(e.ids) for e in encoded])
            mask = torch.tensor([[0] * (width - len(e.ids)) + [1] * len(e.ids) for e in encoded])
            pixels = backbone.prepare([m for e in encoded for m, _ in e.images]).to(backbone.model.dtype)
            states = backbone.model.model(input_ids=tokens, attention_mask=mask, pixel_values=pixels, use_cache=False)[
                0
            ]
            found = backbone.model.lm_head(states[:, -1])[:, self.ids].float()
            if each is not None:
                each(found)
            rows.append(found.detach())
        return torch.cat(rows)


def loss(logits: torch.Tensor) -> torch.Tensor:
    return F.softplus(logits[:, 1] - logits[:, 0]).sum()


def ways(task: str, backbone: InternVLBackbone, side: int, batches: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Everything that is timed; those on the same layout give the same logits."""
    asked = questions(task, side)
    found: dict[str, Callable[[], object]] = {}
    for layout in LAYOUTS[task]:
        dialogs = dialogs_of(Context(layout=layout), asked)
        engine = Engine(backbone, budget=1 << 20)

        def mine(engine: Engine = engine, dialogs: list = dialogs) -> torch.Tensor:
            logits = engine.answer_logits(dialogs, WORDS).logits
            if task == "T3":
                loss(logits).backward()
            return logits.detach()

        found[layout] = mine
        mine.engine = engine  # type: ignore[attr-defined]
    dialogs = dialogs_of(Context(), asked)
    for batch in (1, *batches):
        padded = Padded(backbone, dialogs, batch)
        each = (lambda x: loss(x).backward()) if task == "T3" else None
        name = "one a forward" if batch == 1 else f"padded batches of {batch}"
        found[name] = lambda padded=padded, each=each: padded.logits(each)
    return found


def flops(backbone: InternVLBackbone, tokens: int, images: int) -> tuple[float, float]:
    """Multiply-adds times two of the linear layers: (language model, vision)."""

    def linear(module: nn.Module) -> int:
        return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))

    model = backbone.model.model
    side, patch = model.config.vision_config.image_size[0], model.config.vision_config.patch_size[0]
    per_image = (side // patch) ** 2 + 1
    text, vision = 2 * linear(model.language_model) * tokens, 2 * linear(model.vision_tower) * per_image * images
    return float(text), float(vision)


def peak(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    a, b = torch.rand(1024, 1024, dtype=dtype), torch.rand(1024, 1024, dtype=dtype)
    best = 1e9
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("2m", "1b"), default="2m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", default="T1,T2,T3")
    args = parser.parse_args()
    keep_freed_memory()  # helps every way of working
    backbone = build(args.shape)
    backbone.vision.requires_grad_(False)
    side = backbone.prepare.height
    dtype = str(backbone.model.dtype).removeprefix("torch.")
    print(
        environment()["hardware"],
        f"shape {args.shape} {dtype}, threads {torch.get_num_threads()}, torch {torch.__version__}",
    )
    for task in args.tasks.split(","):
        with torch.set_grad_enabled(task == "T3"):
            report(task, backbone, side, args)


def report(task: str, backbone: InternVLBackbone, side: int, args: argparse.Namespace) -> None:
    timed = ways(task, backbone, side, BATCHES[args.shape])
    if args.shape == "1b" and task == "T3":
        timed.pop("one a forward")  # minutes a round
    seconds: dict[str, list[float]] = {k: [] for k in timed}
    results: dict[str, torch.Tensor] = {}
    for i in range(args.rounds + 1):
        for name, work in timed.items():
            backbone.module.zero_grad(set_to_none=True)
            began = time.perf_counter()
            results[name] = work()  # type: ignore[assignment]
            if i > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    speed = peak(backbone.model.dtype)
    middle = {k: statistics.median(v) for k, v in seconds.items()}
    others = {k: v for k, v in middle.items() if k not in LAYOUTS[task]}
    padded = min((v, k) for k, v in others.items() if k.startswith("padded"))
    worst = max(float((results["strict"] - results[k]).abs().max()) for k in others)
    print(f"{task}: {len(results['strict'])} questions, largest difference of logits {worst:.1e}, best is {padded[1]}")
    for layout in LAYOUTS[task]:
        work = timed[layout].engine.work  # type: ignore[attr-defined]
        text, vision = flops(backbone, work.tokens, work.images)
        floor = (text * (3 if task == "T3" else 1) + vision) / speed
        single = (
            f", over one a forward {middle['one a forward'] / middle[layout]:.2f}x" if "one a forward" in middle else ""
        )
        print(
            f"  {layout}: over best padded batches {padded[0] / middle[layout]:.2f}x{single}; {work.tokens} tokens, "
            f"{work.images} pictures, {middle[layout] * 1e3:.0f} ms, share of floor {floor / middle[layout]:.0%}"
        )


if __name__ == "__main__":
    main()
