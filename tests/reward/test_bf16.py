"""The paths that GPUs take, on a processor that only emulates them: autocast in bf16, frozen weights in bf16."""

import pytest
import torch

from rewarddance.core import device
from rewarddance.core.types import Comparison
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.judge import new_judge
from rewarddance.reward.saved import load_judge_folder, save_judge


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda kind: True)


def pairs(pictures):
    return [Comparison("a red circle", a, b, "fidelity") for a in pictures for b in pictures if a is not b]


@pytest.mark.parametrize("paradigm", ["generative_pairwise", "bradley_terry", "uncertainty"])
def test_a_frozen_judge_is_held_in_bf16_and_says_what_the_fp32_judge_says(
    backbone, pictures, paradigm, tmp_path, as_on_a_gpu
):
    plain = new_judge(JudgeSpec(paradigm=paradigm, precision="fp32"), backbone)
    if paradigm != "generative_pairwise":
        torch.nn.init.normal_(plain.single.head.weight, generator=torch.Generator().manual_seed(0))
    save_judge(plain, tmp_path)
    half = load_judge_folder(tmp_path, precision="bf16")
    half.single.strict = False
    weights = {p.dtype for p in half.engine.backbone.module.parameters()}
    assert weights == {torch.bfloat16}
    wanted, margin_in_bf16 = (j.judge(pairs(pictures)).margin.detach() for j in (plain, half))
    assert margin_in_bf16.dtype == torch.float32
    assert torch.allclose(margin_in_bf16, wanted, atol=0.1 * float(wanted.abs().max()) + 1e-3)
    assert half.judge(pairs(pictures)).margin.isfinite().all()


def test_answer_words_never_have_more_than_all_probability(backbone, pictures, as_on_a_gpu):
    """Exact logits of the answer words over a rounded sum would pass 1 where these words have nearly all of it."""
    with torch.no_grad():
        for i, word in enumerate(("yes", "no")):
            row = backbone.tokenizer(word, add_special_tokens=False)["input_ids"][0]
            backbone.module.get_input_embeddings().weight[row] *= 40 + i
    judge = new_judge(JudgeSpec(precision="bf16"), backbone)
    judge.single.strict = False
    verdict = judge.judge(pairs(pictures))
    assert float(verdict.answer_mass.detach().max()) <= 1 + 1e-6
    plain = new_judge(JudgeSpec(precision="fp32"), backbone)
    plain.single.strict = False
    assert torch.allclose(verdict.answer_mass, plain.judge(pairs(pictures)).answer_mass, atol=0.05)


def test_margins_are_not_rounded_to_bf16(backbone, pictures, as_on_a_gpu):
    judge = new_judge(JudgeSpec(precision="bf16"), backbone)
    with torch.no_grad():
        margin = judge.judge(pairs(pictures)).margin
    assert (margin != margin.bfloat16().float()).any()


def test_gradients_reach_weights_and_pixels_through_bf16(backbone, pictures, as_on_a_gpu):
    judge = new_judge(JudgeSpec(precision="bf16"), backbone)
    frames = pictures[0].frames.clone().requires_grad_()
    first = type(pictures[0])(frames)
    judge.judge([Comparison("a red circle", first, pictures[1], "fidelity")]).margin.sum().backward()
    assert frames.grad is not None
    assert float(frames.grad.abs().sum()) > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in backbone.module.parameters())
    backbone.module.zero_grad()
