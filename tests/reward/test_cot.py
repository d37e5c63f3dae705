"""Chain of thought: what is asked and answered, what is learnt from it, and what is made of it at inference."""

import pytest
import torch
from pydantic import ValidationError

from rewarddance.core.types import Comparison, swap_roles
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.context import VERDICT, Context
from rewarddance.reward.generative import GenerativeJudge
from rewarddance.reward.judge import new_judge
from rewarddance.reward.objective import reward_step
from rewarddance.reward.paradigms import Question
from rewarddance.vlm.engine import Engine

REASON = "the candidate is missing a red circle and the reference matches"


def comparisons(pictures, reasons=(REASON, None, "the candidate matches")):
    a, b, c = pictures[:3]
    sides = [(a, b, 0.0), (b, c, 1.0), (c, a, 0.8)]
    return [
        Comparison("a red circle", x, y, "fidelity", label, r) for (x, y, label), r in zip(sides, reasons, strict=True)
    ]


def plain_logp(backbone, dialog, tail):
    """Log-probabilities of the tail's tokens by one plain forward."""
    e = backbone.encoder.chat([("user", dialog)])
    pixels = torch.cat([backbone.prepare.frames(m.frames) for m, _ in e.images])
    out = backbone.model(input_ids=torch.tensor([[*e.ids, *tail]]), pixel_values=pixels).logits[0].log_softmax(-1)
    return out[len(e.ids) - 1 : -1]


def test_without_any_reason_verdicts_are_learnt_where_they_are_read(backbone, pictures, monkeypatch):
    judge = GenerativeJudge(Engine(backbone), Context(cot="reason_first", samples=1), strict=False)
    monkeypatch.setattr(type(backbone), "generate", lambda self, dialogs, *rest: [""] * len(dialogs))
    given = comparisons(pictures, reasons=(None, None, None))
    verdict, told = judge.learn(given)
    assert torch.isnan(told).all()
    assert torch.allclose(verdict.margin, judge.judge(given).margin, atol=1e-5)


def test_roles_change_places_whatever_their_case():
    assert swap_roles("Candidate good, the reference, REFERENCE") == "Reference good, the candidate, CANDIDATE"


def test_reasons_are_drawn_from_the_models_own_distribution(backbone, pictures):
    """A checkpoint's settings for chats (here: always the likeliest token) must not narrow it."""
    backbone.model.generation_config.update(top_k=1, top_p=0.01, repetition_penalty=9.0)
    torch.manual_seed(0)
    dialog = Context(cot="reason_first").render(comparisons(pictures)[0])
    assert len(set(backbone.generate([dialog] * 6, 4, temperature=1.0))) > 1


@pytest.mark.parametrize("cot", ["answer_first", "reason_first"])
def test_what_is_learnt_equals_plain_forwards(cot, backbone, pictures):
    engine = Engine(backbone)
    judge = GenerativeJudge(engine, Context(cot=cot, template="embedded-roles"), strict=False)
    asked = comparisons(pictures)
    verdict, told = judge.learn(asked)
    assert torch.isnan(told).tolist() == [False, True, False]
    space = " " if cot == "reason_first" else ""
    ids = [engine.word_ids(f"{space}{w}")[0] for w in ("yes", "no")]
    for i, c in enumerate(asked):
        word = ids[0] if c.label >= 0.5 else ids[1]
        if c.rationale is None and cot == "reason_first":
            start = engine.tokens(VERDICT)  # an empty reason: the verdict stands where inference reads it
            tail, place = [*start, word], len(start)
        elif c.rationale is None:
            tail, place = [word], 0
        elif cot == "answer_first":
            tail, place = [word, *engine.tokens(f" because {c.rationale}"), *engine.end_of_turn], 0
        else:
            start = engine.tokens(f"{c.rationale}{VERDICT}")
            tail, place = [*start, word, *engine.end_of_turn], len(start)
        rows = plain_logp(backbone, judge.context.render(c), tail)
        assert torch.allclose(verdict.logp_yes[i], rows[place, ids[0]], atol=1e-5)
        assert torch.allclose(verdict.logp_no[i], rows[place, ids[1]], atol=1e-5)
        if c.rationale is not None:
            others = [rows[k, t] for k, t in enumerate(tail) if k != place]
            assert torch.allclose(told[i], torch.stack(others).mean(), atol=1e-5)


def test_reasons_weigh_a_mean_and_reach_the_weights(backbone, pictures):
    judge = GenerativeJudge(Engine(backbone), Context(cot="answer_first"), strict=False)
    asked = [Question(c, c.label) for c in comparisons(pictures)]
    with_reasons, without = (reward_step(judge, asked, reason_weight=w) for w in (0.5, 0.0))
    _, told = judge.learn([q.comparison for q in asked])
    given = ~torch.isnan(told)
    assert torch.allclose(with_reasons["loss"], without["loss"] - 0.5 * told[given].sum() / 3)
    with_reasons["loss"].backward()
    assert backbone.module.get_input_embeddings().weight.grad.abs().sum() > 0


def test_questions_say_what_comes_first(pictures):
    a, b = pictures[:2]
    c = Comparison("x", a, b, "fidelity")
    for template, part in (("embedded", 0), ("embedded-roles", -1)):
        assert "answer yes or no." in Context(template=template).render(c)[part]
        opening_of = {
            cot: Context(template=template, cot=cot).render(c)[part] for cot in ("answer_first", "reason_first")
        }
        assert "first answer yes or no, second the reason." in opening_of["answer_first"]
        assert "first the reason, second answer yes or no." in opening_of["reason_first"]
    assert Context(cot="answer_first").answer(True, " so ") == ("", "yes", " because so")
    assert Context(cot="reason_first").answer(False, "so") == ("so\nanswer:", " no", "")
    with pytest.raises(ValidationError, match="needs layout 'strict'"):
        Context(cot="answer_first", layout="listwise")


def test_reasons_call_pictures_as_the_question_does():
    _, _, said = Context(cot="answer_first").answer(True, "The candidate matches, the reference is a candidate's twin")
    assert said == " because image 2 matches, image 1 is a image 2's twin"
    _, _, said = Context(cot="answer_first", template="embedded-roles").answer(True, "the candidate matches")
    assert said == " because the candidate matches"


def test_reasons_change_sides_with_the_order(pictures):
    c = comparisons(pictures)[0]
    assert c.swapped().rationale == "the reference is missing a red circle and the candidate matches"
    assert swap_roles(swap_roles(REASON)) == REASON


def test_reason_first_averages_over_written_reasons(backbone, pictures, monkeypatch):
    context = Context(cot="reason_first", samples=3)
    judge = GenerativeJudge(Engine(backbone), context, strict=True)
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    written = [f"reason {w}" for w in ("red", "blue\nanswer: yes", "green")] * 2
    monkeypatch.setattr(type(backbone), "generate", lambda self, dialogs, *_: written[: len(dialogs)])
    asked = comparisons(pictures)[:2]
    verdict = judge.judge(asked)
    engine = Engine(backbone)
    for i, c in enumerate(asked):
        tails = [engine.tokens(f"reason {w}{VERDICT}") for w in ("red", "blue", "green")]
        single = engine.answer_logits([context.render(c)] * 3, (" yes", " no"), tails)
        assert torch.allclose(verdict.logp_yes[i].exp(), single.logp[:, 0].exp().mean(), atol=1e-6)


def test_judges_explain_themselves(backbone, pictures):
    torch.manual_seed(0)
    spec = JudgeSpec(context=Context(cot="answer_first", max_reason_tokens=5), trained=True)
    judge = new_judge(spec, backbone)
    said = judge.single.explain(comparisons(pictures))
    assert len(said) == 3
    assert said == judge.single.explain(comparisons(pictures))
    # one at a time, without padding, it says the same
    assert said == [judge.single.explain([c])[0] for c in comparisons(pictures)]
