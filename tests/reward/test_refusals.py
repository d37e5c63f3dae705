"""The score port: an item that cannot be answered is refused alone, with a reason, and changes no neighbour."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from rewarddance.core.errors import JudgementError
from rewarddance.core.media import Media
from rewarddance.core.types import Comparison, Verdict
from rewarddance.jobs.load import load_judge
from rewarddance.reward import generative
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.judge import new_judge

PARADIGMS = ("generative_pairwise", "generative_pointwise", "bradley_terry")


def pairs(pictures):
    prompts = ("a red circle", "two stars", "a cat", "a dog", "a bus")
    return [Comparison(p, pictures[i], pictures[i + 1], "fidelity") for i, p in enumerate(prompts)]


def judge_of(backbone, paradigm="generative_pairwise", strict=False):
    judge = new_judge(JudgeSpec(paradigm=paradigm), backbone, strict=strict)
    if paradigm == "bradley_terry":
        torch.nn.init.normal_(judge.single.head.weight, std=0.5)
    return judge


def check_alone(verdict, whole, refused):
    """Item `refused` is NaN, the others have the values of the whole verdict."""
    others = [i for i in range(len(whole)) if i != refused]
    assert list(verdict.refused) == [refused]
    assert verdict.answered.tolist() == [i != refused for i in range(len(whole))]
    for name in ("logp_yes", "logp_no", "margin", "reward"):
        values = getattr(verdict, name)
        assert values[refused].isnan()
        torch.testing.assert_close(values[others], getattr(whole, name)[others], atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_unclear_answer_of_many_is_refused_alone(backbone, pictures, monkeypatch):
    """The bar stands between the least mass of all single questions and those of the other items."""
    pool = [Comparison(p, x, y, "fidelity") for p in ("a cat", "two stars") for x, y in pairwise(pictures)]
    both = [m for c in pool for m in judge_of(backbone).single.judge([c, c.swapped()]).answer_mass.split(2)]
    mass = torch.stack(both).amin(1)
    rows = mass.argsort().tolist()
    chosen = [pool[i] for i in (rows[-1], rows[-2], rows[0], rows[-3], rows[-4])]
    least, others = mass[rows[0]].item(), mass[rows[-4]].item()
    assert others - least > 1e-6
    monkeypatch.setattr(generative, "MIN_ANSWER_MASS", (least + others) / 2)
    whole, verdict = judge_of(backbone).judge(chosen), judge_of(backbone, strict=True).judge(chosen)
    check_alone(verdict, whole, 2)
    (reason,) = verdict.refused.values()
    assert f"the VLM did not answer yes or no (probability {least:.2f} on both)" in reason
    torch.testing.assert_close(verdict.answer_mass, whole.answer_mass)  # what was measured stays
    with pytest.raises(JudgementError, match="1 of 5 comparisons were refused; comparison 2"):
        judge_of(backbone, strict=True).judge(chosen, on_refused="raise")


@torch.no_grad()
@pytest.mark.parametrize("paradigm", PARADIGMS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": "  "}, "a comparison needs a prompt; it is empty"),
        ({"prompt": "<img><|user|></img>"}, "this one holds special tokens only"),
        ({"prompt": "a red circle " * 800}, "tokens, and the model takes 2,048"),
        ({"criterion": "glamour"}, "no instruction for criterion 'glamour'; known: overall, fidelity"),
        ({"candidate": Media(torch.zeros(1, 3, 1, 9))}, "9x1 pixels is too small or too narrow to judge"),
        ({"reference": Media(torch.zeros(1, 3, 900, 2))}, "2x900 pixels is too small or too narrow to judge"),
    ],
    ids=["empty", "special", "long", "criterion", "candidate", "reference"],
)
def test_what_cannot_be_asked_is_refused_alone(paradigm, change, reason, backbone, pictures):
    judge, comparisons = judge_of(backbone, paradigm), pairs(pictures)
    bad = [*comparisons[:2], replace(comparisons[2], **change), *comparisons[3:]]
    verdict = judge.judge(bad)
    check_alone(verdict, judge.judge(comparisons), 2)
    assert reason in verdict.refused[2]
    with pytest.raises(JudgementError, match="1 of 5 comparisons were refused; comparison 2"):
        judge.judge(bad, on_refused="raise")
    assert judge.judge(comparisons, on_refused="raise").refused == {}


def test_a_question_that_is_too_long_names_its_tokens_and_the_limit(backbone, pictures):
    judge = judge_of(backbone)
    long = Comparison("a red circle " * 800, pictures[0], pictures[1], "fidelity")
    num = len(backbone.encoder.chat([("user", judge.spec.context.render(long))]).ids)
    assert num > 2048
    assert judge.judge([long]).refused == {0: f"the question has {num:,} tokens, and the model takes 2,048"}


def test_the_longest_question_that_fits_is_answered(backbone, pictures):
    """One token more is refused."""
    judge = judge_of(backbone)

    def question(num):
        return Comparison("red " * num, pictures[0], pictures[1], "fidelity")

    def tokens(num):
        return judge.engine.num_tokens(judge.spec.context.render(question(num)))

    each = tokens(11) - tokens(10)
    most = 10 + (2048 - tokens(10)) // each
    assert tokens(most) <= 2048 < tokens(most + 1)
    assert judge.problem(question(most)) is None
    assert f"has {tokens(most + 1):,} tokens" in judge.problem(question(most + 1))


def test_a_picture_with_nan_is_refused_as_no_number(backbone, pictures):
    comparisons, judge = pairs(pictures), judge_of(backbone, strict=False)
    broken = pictures[5].frames.clone()
    broken[0, 0, 0, 0] = float("nan")
    with torch.no_grad():
        verdict = judge.judge([*comparisons[:4], replace(comparisons[4], reference=Media(broken))])
        check_alone(verdict, judge.judge(comparisons), 4)
    assert verdict.refused == {4: "the model's answer is not a number"}


def test_all_refused_is_a_verdict_too(backbone, pictures):
    comparisons = [replace(c, prompt="") for c in pairs(pictures)]
    verdict = judge_of(backbone).judge(comparisons)
    assert sorted(verdict.refused) == list(range(5))
    assert len(verdict) == 5
    assert verdict.margin.isnan().all()
    with pytest.raises(JudgementError, match=r"5 of 5 comparisons were refused; comparison 0 \(prompt ''\)"):
        verdict.or_raise(comparisons)


def test_refused_items_have_no_gradient_and_their_neighbours_have_theirs(backbone, pictures):
    judge = judge_of(backbone)
    gradients = []
    for prompt in ("two stars", ""):
        frames = pictures[0].frames.clone().requires_grad_()
        comparisons = [Comparison("a cat", Media(frames), pictures[1]), Comparison(prompt, pictures[2], pictures[3])]
        verdict = judge.judge(comparisons)
        verdict.margin[verdict.answered].sum().backward()
        gradients.append(frames.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-7, rtol=1e-4)


def test_ranking_leaves_refused_pairs_out_and_counts_them(backbone, pictures):
    narrow = Media(torch.zeros(1, 3, 1, 9))
    judge = judge_of(backbone)
    whole = judge.rank("a red circle", pictures[:3], "fidelity")
    some = judge.rank("a red circle", [pictures[0], narrow, *pictures[1:3]], "fidelity")
    assert [i - (i > 1) for i in some.order] == list(whole.order)
    assert sorted(some.refused) == [(0, 1), (1, 2), (1, 3)]
    kept = [0, 2, 3]
    torch.testing.assert_close(some.margin[kept], whole.margin, atol=1e-5, rtol=0)
    torch.testing.assert_close(some.wins[kept][:, kept], whole.wins, atol=1e-5, rtol=0)
    assert some.margin[1].isnan()


def test_verdicts_are_spread_over_a_longer_list():
    part = Verdict.from_margin(torch.tensor([1.0, -2.0]), torch.tensor([0.9, 0.6]), torch.tensor([0.1, 0.2]))
    part = replace(part, parts={"style": torch.tensor([3.0, 4.0])}).refuse({1: "unclear"})
    nan = float("nan")
    whole = part.scattered([1, 3], {0: "empty", 2: "long"})
    assert whole.margin.tolist() == pytest.approx([nan, 1.0, nan, nan], nan_ok=True)
    assert whole.answer_mass.tolist() == pytest.approx([nan, 0.9, nan, 0.6], nan_ok=True)
    assert whole.disagreement.tolist() == pytest.approx([nan, 0.1, nan, nan], nan_ok=True)
    assert whole.parts["style"].tolist() == pytest.approx([nan, 3.0, nan, nan], nan_ok=True)
    assert whole.refused == {0: "empty", 2: "long", 3: "unclear"}


def test_a_clip_is_refused_by_a_judge_of_pictures(pictures):
    clip = Media(torch.cat([pictures[0].frames, pictures[1].frames]), fps=8.0)
    verdict = load_judge("tiny").judge([Comparison("a red circle", clip), Comparison("a red circle", pictures[0])])
    assert verdict.refused == {0: "a clip of 2 frames; this judge was trained on pictures"}
    assert verdict.answered.tolist() == [False, True]
