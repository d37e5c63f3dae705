from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from rewarddance.core.errors import InputError, JudgementError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.types import Comparison, RewardModel, Verdict
from rewarddance.evaluate.judge import measure_judge
from rewarddance.reward.config import PARADIGMS, SCALAR, JudgeSpec
from rewarddance.reward.context import Context
from rewarddance.reward.judge import new_judge
from rewarddance.reward.objective import agreement, reward_step
from rewarddance.reward.paradigms import Question, losses
from rewarddance.reward.rank import rank
from rewarddance.reward.saved import load_judge_folder, save_judge
from rewarddance.reward.wrappers import Symmetrised

SENTENCES = Context().words.criteria


def cross_entropy(verdict, targets, smoothing=0.0):
    return losses("generative_pairwise", verdict, targets, smoothing)


class Brightness:
    """A judge whose truth is known: the brighter picture is better; with a bias towards the candidate's place."""

    def __init__(self, bias=0.0):
        self.bias = bias
        self.calls = 0

    def judge(self, comparisons):
        self.calls += 1
        rows = [c.candidate.frames.mean() - (c.reference.frames.mean() if c.reference else 0.5) for c in comparisons]
        return Verdict.from_margin(10 * torch.stack(rows) + self.bias)


def grey(level):
    return Media(torch.full((1, 3, 48, 48), float(level)))


def test_context_words_a_question_in_sharing_order(pictures):
    a, b = pictures[:2]
    parts = Context().render(Comparison("a red circle", b, a, "fidelity"))
    assert parts[1] is a
    assert parts[3] is b
    opening = f"instruction: {SENTENCES['fidelity']}\nanswer yes or no.\nprompt: a red circle\nimage 1: "
    assert parts == (opening, a, "\nimage 2: ", b, "\nquestion: is image 2 the better one?")
    alone = Context(instruction=False).render(Comparison("a red circle", b))
    opening = "answer yes or no.\nprompt: a red circle\nimage 1: "
    assert alone == (opening, b, "\nquestion: is image 1 good for the prompt?")
    roles = Context(template="embedded-roles").render(Comparison("a red circle", b, a, "fidelity"))
    assert roles[0] == f"instruction: {SENTENCES['fidelity']}\nprompt: a red circle\nreference: "
    assert roles[-1] == "\nquestion: is the candidate better than the reference? answer yes or no."


def test_context_refuses_what_it_cannot_ask(pictures):
    with pytest.raises(InputError, match="empty"):
        Context().render(Comparison("  ", pictures[0]))
    with pytest.raises(InputError, match="criterion 'beauty'"):
        Context().render(Comparison("x", pictures[0], criterion="beauty"))


def test_symmetrised_margins_cancel_place_bias():
    judge = Brightness(bias=3.0)
    verdict = Symmetrised(judge).judge([Comparison("p", grey(0.6), grey(0.5)), Comparison("p", grey(0.5), grey(0.5))])
    assert torch.allclose(verdict.margin, torch.tensor([1.0, 0.0]), atol=1e-5)
    assert verdict.disagreement is not None
    assert torch.allclose(verdict.disagreement, torch.full((2,), 3.0), atol=1e-5)
    assert judge.calls == 1


def test_generative_loss_is_next_token_cross_entropy(backbone, pictures):
    judge = new_judge(JudgeSpec(), backbone)
    comparisons = [
        Comparison("p", pictures[0], pictures[1], label=1.0),
        Comparison("p", pictures[2], pictures[1], label=0.0),
    ]
    loss = cross_entropy(judge.single.judge(comparisons), torch.tensor([1.0, 0.0]))
    rows = []
    for c, word in zip(comparisons, ("yes", "no"), strict=True):
        e = backbone.encoder.chat([("user", Context().render(c))])
        pixels = torch.cat([backbone.prepare.frames(m.frames) for m, _ in e.images])
        logits = backbone.model(input_ids=torch.tensor([e.ids]), pixel_values=pixels).logits[0, -1]
        rows.append(F.cross_entropy(logits, torch.tensor(judge.engine.word_ids(word)[0])))
    assert torch.allclose(loss, torch.stack(rows), atol=1e-5)


def test_bradley_terry_loss_is_log_sigmoid_of_the_difference(backbone, pictures):
    judge = new_judge(JudgeSpec(paradigm="bradley_terry"), backbone)
    torch.nn.init.normal_(judge.single.head.weight, std=0.5)
    win, lose = pictures[:2]
    scores = judge.single.score([Comparison("p", win), Comparison("p", lose)])
    loss = cross_entropy(judge.judge([Comparison("p", win, lose)]), torch.tensor([1.0]))
    assert torch.allclose(loss, -F.logsigmoid(scores[0] - scores[1])[None], atol=1e-5)


def test_soft_labels_and_smoothing():
    verdict = Verdict.from_margin(torch.tensor([2.0]))
    half = cross_entropy(verdict, torch.tensor([0.5]))
    assert torch.allclose(half, -(F.logsigmoid(torch.tensor(2.0)) + F.logsigmoid(torch.tensor(-2.0))) / 2)
    assert torch.allclose(cross_entropy(verdict, torch.tensor([1.0]), smoothing=1.0), half)


def test_agreement_counts_a_zero_margin_as_half():
    assert agreement(torch.tensor([1.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])).tolist() == [1, 0, 0.5]


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_judges_are_antisymmetric_differentiable_and_survive_the_disk(paradigm, backbone, pictures, tmp_path):
    judge = new_judge(JudgeSpec(paradigm=paradigm), backbone)
    if paradigm in SCALAR:
        torch.nn.init.normal_(judge.single.head.weight, std=0.5)
    assert isinstance(judge, RewardModel)
    x = Media(pictures[0].frames.clone().requires_grad_())
    there, back = judge.judge([Comparison("p", x, pictures[1]), Comparison("p", pictures[1], x)]).margin
    assert torch.allclose(there, -back, atol=1e-5)
    there.backward()
    assert x.frames.grad is not None
    assert x.frames.grad.abs().sum() > 0
    save_judge(judge, tmp_path / "judge")
    again = load_judge_folder(tmp_path / "judge")
    if paradigm not in SCALAR:
        again.single.strict = False
    margin = again.judge([Comparison("p", pictures[0], pictures[1])]).margin
    assert torch.allclose(margin, there.detach(), atol=1e-5)
    assert not any(p.requires_grad for p in again.engine.backbone.module.parameters())


def test_pixel_gradient_of_the_margin_equals_finite_differences(backbone, pictures):
    judge = new_judge(JudgeSpec(), backbone)
    backbone.module.double()
    x = pictures[0].frames.clone()

    def margin(pixels):
        return judge.judge([Comparison("p", Media(pixels), pictures[1])]).margin

    leaf = x.clone().requires_grad_()
    margin(leaf).backward()
    direction = leaf.grad / leaf.grad.norm()
    with torch.no_grad():
        change = (margin(x + 0.2 * direction) - margin(x - 0.2 * direction)) / 0.4
    assert torch.allclose(leaf.grad.norm(), change.float().squeeze(), rtol=0.02)


def test_unclear_answers_are_refused_at_inference(backbone, pictures):
    judge, comparisons = new_judge(JudgeSpec(), backbone, strict=True), [Comparison("p", pictures[0], pictures[1])]
    verdict = judge.judge(comparisons)
    assert verdict.margin.isnan().tolist() == [True]
    assert "did not answer yes or no" in verdict.refused[0]
    with pytest.raises(JudgementError, match=r"1 of 1 comparisons were refused; comparison 0 \(prompt 'p'\): the VLM"):
        judge.judge(comparisons, on_refused="raise")


def test_no_comparisons_no_verdicts(backbone):
    assert len(new_judge(JudgeSpec(), backbone).judge([])) == 0


def test_ranking_orders_by_round_robin():
    ranking = rank(Brightness(bias=0.0), "p", [grey(0.2), grey(0.9), grey(0.5)])
    assert ranking.order == (1, 2, 0)
    assert torch.allclose(ranking.wins + ranking.wins.T, torch.ones(3, 3))
    assert rank(Brightness(), "p", [grey(0.1)]).order == (0,)
    with pytest.raises(InputError, match="nothing to rank"):
        rank(Brightness(), "p", [])


def record(name, levels, labels=None):
    choices = tuple(
        Choice(i, j, float(levels[i] > levels[j]) if labels is None else labels)
        for i in range(len(levels))
        for j in range(i + 1, len(levels))
    )
    return PreferenceRecord(name, "p", tuple(grey(x) for x in levels), choices, source=name, truth=tuple(levels))


def test_measures_of_a_perfect_and_an_inverted_judge():
    records = [record("rendered", (0.1, 0.5, 0.9)), record("generator", (0.3, 0.2, 0.8, 0.81))]
    right = measure_judge(Brightness(), records)
    assert right["accuracy"] == right["accuracy_generator"] == right["spearman"] == right["label_accuracy"] == 1
    assert right["num_pairs"] == 3 + 5  # one pair differs by less than 0.05

    class Inverted(Brightness):
        def judge(self, comparisons):
            return Verdict.from_margin(-super().judge(comparisons).margin)

    assert measure_judge(Inverted(), records)["accuracy"] == 0


def test_reward_step_reports_ties_apart():
    with_tie = [
        Question(Comparison("p", grey(0.9), grey(0.1)), 1.0),
        Question(Comparison("p", grey(0.5), grey(0.6)), 0.5),
    ]
    metrics = reward_step(Brightness(), with_tie)
    assert metrics["accuracy"] == 1
    assert metrics["loss"] > 0


def test_a_pointwise_judge_answers_mixed_questions_one_by_one(backbone, pictures):
    judge = new_judge(JudgeSpec(paradigm="generative_pointwise"), backbone)
    a, b = pictures[:2]
    mixed = judge.judge([Comparison("p", a), Comparison("p", a, b), Comparison("p", b)]).margin
    torch.testing.assert_close(mixed[1], mixed[0] - mixed[2], atol=1e-5, rtol=1e-4)
    assert mixed[0] != 0


def test_a_judge_asks_what_it_was_trained_to_judge_by(backbone, pictures):
    judge = new_judge(JudgeSpec(criteria=("style", "overall")), backbone)
    assert judge.criterion == "style"
    assert new_judge(JudgeSpec(), backbone).criterion == "overall"
    own, named, other = (judge.rank("a red circle", pictures[:2], c).margin for c in (None, "style", "overall"))
    assert torch.equal(own, named)
    assert not torch.equal(own, other)
    margins = [judge.judge([Comparison("a red circle", *pictures[:2], c)]).margin for c in (None, "style", "overall")]
    assert torch.equal(margins[0], margins[1])
    assert not torch.equal(margins[0], margins[2])


def test_a_second_judge_is_asked_by_a_criterion_that_it_knows(backbone):
    trained = new_judge(JudgeSpec(criteria=("style", "overall")), backbone)
    assert [trained.own_or(c) for c in ("overall", "fidelity", "of my own")] == ["overall", "style", "style"]
    plain = new_judge(JudgeSpec(), backbone)
    assert [plain.own_or(c) for c in ("fidelity", "of my own")] == ["fidelity", "overall"]


def test_ratings_that_were_never_learnt_are_not_guessed(backbone, pictures):
    judge = new_judge(JudgeSpec(paradigm="regression", criteria=("style",)), backbone)
    style = list(SENTENCES).index("style")
    with torch.no_grad():
        judge.single.head.weight[style] = 1
    question = Comparison("a red circle", pictures[0], pictures[1])
    assert judge.judge([question]).margin != 0
    refused = judge.judge([replace(question, criterion="fidelity"), question])
    assert refused.refused == {0: "this judge has learnt no ratings of 'fidelity', only: style"}
    assert refused.margin.isnan().tolist() == [True, False]


def test_criteria_of_your_own_are_worded_and_kept_with_the_judge(backbone, pictures, tmp_path):
    context = Context(instructions={"aesthetics": "prefer the better picture for the prompt.", "style": "prefer blue."})
    judge = new_judge(JudgeSpec(context=context), backbone)
    save_judge(judge, tmp_path)
    again = load_judge_folder(tmp_path)
    again.single.strict = False
    own, known = (again.rank("a red circle", pictures[:2], c).margin for c in ("aesthetics", "overall"))
    assert torch.equal(own, known)  # the same sentence
    assert "prefer blue." in str(again.spec.context.render(Comparison("x", pictures[0], pictures[1], "style"))[0])
    with pytest.raises(JudgementError, match="criterion 'glamour'; known: overall, fidelity"):
        again.rank("a red circle", pictures[:2], "glamour")
    head = new_judge(JudgeSpec(paradigm="regression", context=context), backbone).single.head
    assert head.out_features == len(SENTENCES) + 1
