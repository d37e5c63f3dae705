"""Every figure of a step in closed form, from verdicts that are put in."""

import math
from dataclasses import replace

import pytest
import torch

from rewarddance.core.media import Media
from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.objective import agreement, askable, reward_step, verdicts
from rewarddance.reward.paradigms import Question

PICTURE = Media(torch.zeros(1, 3, 4, 4))
LN2 = math.log(2)


class Given:
    """Answers with the given verdict, whatever it is asked."""

    def __init__(self, verdict):
        self.verdict = verdict

    def judge(self, comparisons):
        assert len(comparisons) == len(self.verdict)
        return self.verdict


class WithReasons(Given):
    def __init__(self, verdict, reason_logp):
        super().__init__(verdict)
        self.reason_logp = reason_logp

    def learn(self, comparisons):
        return self.verdict, self.reason_logp


def asked(*targets, weights=None):
    weights = weights or [1.0] * len(targets)
    return [Question(Comparison("p", PICTURE, PICTURE), t, w) for t, w in zip(targets, weights, strict=True)]


def softplus(x):
    return math.log1p(math.exp(x))


def test_agreement_is_a_half_where_either_side_is_zero():
    margin = torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0, 0.0, -2.0, -2.0, -2.0])
    truth = torch.tensor([0.1, 0.0, -0.1] * 3)
    assert agreement(margin, truth).tolist() == [1, 0.5, 0, 0.5, 0.5, 0.5, 0, 0.5, 1]


def test_the_figures_of_a_step():
    verdict = Verdict.from_margin(torch.tensor([2.0, -1.0, 3.0, 0.0]), torch.tensor([0.9, 0.7, 0.6, 0.8]))
    step = reward_step(Given(verdict), asked(1.0, 0.8, 0.5, 0.2))
    wanted = [softplus(-2), 0.8 * softplus(1) + 0.2 * softplus(-1), (softplus(3) + softplus(-3)) / 2, LN2]
    assert step["loss"].item() == pytest.approx(sum(wanted) / 4, rel=1e-6)
    assert step["verdict_loss"].item() == step["loss"].item()
    assert step["coin_loss"].item() == pytest.approx(LN2)
    assert step["accuracy"].item() == pytest.approx((1 + 0 + 0.5) / 3)  # the tie is not counted
    assert step["num_decided"].item() == 3
    assert step["num_reasons"].item() == 0
    assert step["answer_mass"].item() == pytest.approx(0.75)
    assert step["margin"].item() == pytest.approx(1.0)
    assert step["margin_std"].item() == pytest.approx(math.sqrt((1 + 4 + 4 + 1) / 4))
    assert step["reason_logp"].isnan()


def test_a_target_below_one_half_is_a_preference_for_the_other_side():
    step = reward_step(Given(Verdict.from_margin(torch.tensor([-1.0, 2.0, 0.5, -0.5]))), asked(0.0, 0.3, 0.7, 0.4))
    assert step["accuracy"].item() == pytest.approx((1 + 0 + 1 + 1) / 4)


def test_without_decided_questions_there_is_no_accuracy():
    step = reward_step(Given(Verdict.from_margin(torch.tensor([2.0]))), asked(0.5))
    assert step["accuracy"].isnan()
    assert step["num_decided"].item() == 0


def test_weights_multiply_the_losses_and_the_coins():
    margins = torch.tensor([1.0, -2.0])
    step = reward_step(Given(Verdict.from_margin(margins)), asked(1.0, 1.0, weights=[0.5, 1.5]), "ranking")
    assert step["loss"].item() == pytest.approx((0.5 * softplus(-1) + 1.5 * softplus(2)) / 2)
    assert step["coin_loss"].item() == pytest.approx((0.5 + 1.5) * LN2 / 2)
    heavy = reward_step(Given(Verdict.from_margin(margins)), asked(1.0, 1.0, weights=[4.0, 4.0]), "ranking")
    assert heavy["coin_loss"].item() == pytest.approx(4 * LN2)


def test_smoothing_reaches_the_loss():
    step = reward_step(Given(Verdict.from_margin(torch.tensor([2.0]))), asked(1.0), smoothing=0.2)
    assert step["loss"].item() == pytest.approx(0.9 * softplus(-2) + 0.1 * softplus(2))


@pytest.mark.parametrize(("distance", "right"), [(0.0, 1), (0.49, 1), (-0.49, 1), (0.5, 0), (-0.5, 0), (0.7, 0)])
def test_a_rating_is_right_within_half_a_point(distance, right):
    verdict = Verdict.from_margin(torch.tensor([3.0 + distance, 0.5]))
    verdict = replace(verdict, logp_yes=torch.tensor([3.0 + distance, 0.5]), logp_no=torch.zeros(2))
    step = reward_step(Given(verdict), asked(3.0, 0.5), "regression")  # a rating of 0.5 is no tie
    assert step["accuracy"].item() == (right + 1) / 2
    assert step["num_decided"].item() == 2
    assert step["loss"].item() == pytest.approx(distance**2 / 2)
    assert step["coin_loss"].item() == pytest.approx((9 + 0.25) / 2)  # of a score of 0


def test_the_coin_of_a_model_with_ties_has_a_difference_of_zero():
    k, difference = torch.tensor([3.0, 3.0, 3.0]), torch.tensor([2.0, -1.0, 0.5])
    verdict = replace(Verdict.from_margin(difference), parts={"difference": difference, "tie_strength": k})
    step = reward_step(Given(verdict), asked(1.0, 0.0, 0.5), "bradley_terry_ties")
    lose = 1 / (1 + 3)  # P(win) = P(loss) = 1 / (1 + k) for equal pictures
    tie = 1 - 2 * lose
    assert step["coin_loss"].item() == pytest.approx(-(2 * math.log(lose) + math.log(tie)) / 3)

    def win(d):
        return 1 / (1 + 3 * math.exp(-d))

    wanted = [win(2.0), win(1.0), 1 - win(0.5) - win(-0.5)]
    assert step["loss"].item() == pytest.approx(-sum(map(math.log, wanted)) / 3)
    assert verdict.parts["difference"] is difference


def test_reasons_add_their_mean_over_all_questions():
    nan = math.nan
    verdict = Verdict.from_margin(torch.tensor([2.0, -1.0, 3.0, 0.0]))
    reason_logp = torch.tensor([-0.5, nan, -1.5, nan], requires_grad=True)
    judge, batch = WithReasons(verdict, reason_logp), asked(1.0, 1.0, 1.0, 1.0)
    plain = reward_step(judge, batch)
    step = reward_step(judge, batch, reason_weight=0.3)
    assert plain["loss"].item() == plain["verdict_loss"].item() == step["verdict_loss"].item()
    assert step["loss"].item() == pytest.approx(plain["loss"].item() + 0.3 * (0.5 + 1.5) / 4, rel=1e-6)
    assert step["reason_logp"].item() == pytest.approx(-1.0)
    assert step["num_reasons"].item() == 2
    (gradient,) = torch.autograd.grad(step["loss"], reason_logp)
    assert gradient.tolist() == pytest.approx([-0.3 / 4, 0, -0.3 / 4, 0])
    without = WithReasons(verdict, torch.full((4,), nan))
    assert reward_step(without, batch, reason_weight=0.3)["loss"].item() == pytest.approx(plain["loss"].item())


def test_only_the_loss_has_a_graph():
    margin = torch.tensor([2.0, -1.0], requires_grad=True)
    step = reward_step(Given(Verdict.from_margin(margin)), asked(1.0, 1.0))
    assert [k for k, v in step.items() if v.requires_grad] == ["loss"]
    (gradient,) = torch.autograd.grad(step["loss"], margin)
    assert gradient.tolist() == pytest.approx([-1 / (1 + math.exp(m)) / 2 for m in (2.0, -1.0)])


def test_verdicts_of_a_judge_without_words_have_no_reasons():
    verdict, reasons = verdicts(Given(Verdict.from_margin(torch.tensor([1.0, 2.0]))), [None, None])
    assert verdict.margin.tolist() == pytest.approx([1.0, 2.0])
    assert reasons.isnan().tolist() == [True, True]


def test_questions_that_a_judge_cannot_be_asked_are_left_out():
    class Picky(Given):
        def problem(self, comparison):
            return "too long" if comparison.prompt == "long" else None

    batch = [Question(Comparison(p, PICTURE, PICTURE), 1.0) for p in ("a", "long", "b")]
    assert [q.comparison.prompt for q in askable(Picky(None), batch)] == ["a", "b"]
    assert askable(Given(None), batch) == batch
