"""Every paradigm's loss against closed forms, and what it asks about a record."""

import math
from dataclasses import replace

import pytest
import torch
from rankings import choices_of_ranking
from torch.nn import functional as F

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.types import Verdict
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.judge import new_judge
from rewarddance.reward.objective import reward_step
from rewarddance.reward.paradigms import (
    gaussian_margin,
    losses,
    questions,
    rao_kupper_loss,
    with_ties,
)


@pytest.fixture
def record(pictures):
    choices = (Choice(0, 1, 1.0), Choice(1, 2, 1.0), Choice(2, 0, 0.0), Choice(0, 1, 0.5))
    return PreferenceRecord("r", "a red circle", tuple(pictures[:3]), choices, "fidelity", ratings=(4.5, 3.0, 1.5))


def with_difference(d, k):
    """What a head of Bradley-Terry with ties answers."""
    return replace(Verdict.from_margin(with_ties(d, k)), parts={"difference": d, "tie_strength": k.expand_as(d)})


def test_a_margin_with_ties_is_win_and_half_of_tie():
    d, k = torch.linspace(-30, 30, 121, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)
    win, loss = torch.sigmoid(d - k.log()), torch.sigmoid(-d - k.log())
    torch.testing.assert_close(torch.sigmoid(with_ties(d, k)), win + (1 - win - loss) / 2)
    start = torch.zeros(1, requires_grad=True)  # where every head begins
    losses("bradley_terry_ties", with_difference(start, torch.tensor(5.0)), torch.ones(1)).sum().backward()
    torch.testing.assert_close(start.grad, -torch.sigmoid(torch.tensor([math.log(5.0)])))


@pytest.mark.parametrize(("smoothing", "win", "tie"), [(0.0, 1.0, 0.0), (0.5, 0.5, 0.5), (1.0, 0.0, 1.0)])
def test_smoothing_moves_the_weight_of_a_win_to_the_tie(smoothing, win, tie):
    d, k = torch.tensor([0.7, -1.2]), torch.tensor(3.0)
    loss = losses("bradley_terry_ties", with_difference(d, k), torch.ones(2), smoothing)
    p_win = torch.sigmoid(d - k.log())
    p_tie = 1 - p_win - torch.sigmoid(-d - k.log())
    torch.testing.assert_close(loss, -win * p_win.log() - tie * p_tie.log())


@pytest.mark.parametrize(("share", "ties"), [(0.8, 0.0), (0.7, 0.2)])
def test_the_strength_of_ties_is_learnt_so_that_shares_come_out_right(share, ties):
    """A fixed strength of 5 ends at 0.87 for hard labels of which 0.80 are wins."""
    d, raw = torch.zeros((), requires_grad=True), torch.tensor(math.log(4.0), requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 0.5])
    weights = torch.tensor([share, 1 - share - ties, ties])
    optimizer = torch.optim.Adam([d, raw], lr=0.05)
    for _ in range(800):
        verdict = with_difference(d.expand(3), 1 + raw.exp())
        optimizer.zero_grad()
        (losses("bradley_terry_ties", verdict, labels) * weights).sum().backward()
        optimizer.step()
    reward = torch.sigmoid(with_ties(d, 1 + raw.exp())).item()
    assert reward == pytest.approx(share + ties / 2, abs=0.01)


def test_rao_kupper_probabilities_sum_to_one_and_match_the_formula():
    margin, k = torch.linspace(-3, 3, 7), torch.tensor(5.0)
    win, loss, tie = (torch.exp(-rao_kupper_loss(margin, torch.full((7,), t), k)) for t in (1.0, 0.0, 0.5))
    torch.testing.assert_close(win + loss + tie, torch.ones(7))
    torch.testing.assert_close(win, torch.sigmoid(margin - k.log()))
    torch.testing.assert_close(win[3], loss[3])
    assert tie[3].item() == pytest.approx(4 / 6)


def test_gaussian_margins_are_means_of_sigmoids():
    mean, deviation = torch.tensor([0.0, 1.0, -2.0, 3.0, -2.0]), torch.tensor([1.0, 0.5, 3.0, 0.0, 10.4])
    probability = torch.sigmoid(gaussian_margin(mean, deviation**2))
    x = torch.linspace(-140, 140, 400_001, dtype=torch.float64)
    for m, s, p in zip(mean.double(), deviation.double(), probability, strict=True):
        density = torch.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi)) if s else None
        truth = torch.trapezoid(density * torch.sigmoid(x), x) if s else torch.sigmoid(m)
        assert p.item() == pytest.approx(truth.item(), abs=1e-6)


def test_doubt_draws_margins_to_zero_and_keeps_their_sign():
    margins = gaussian_margin(torch.tensor([2.0, 2.0, -2.0]), torch.tensor([0.01, 9.0, 9.0]))
    assert margins[0] > margins[1] > 0
    torch.testing.assert_close(margins[1], -margins[2])


def test_regression_is_squared_error_of_the_score(record):
    training_questions = questions(record, "regression")
    assert [q.target for q in training_questions] == [4.5, 3.0, 1.5]
    assert all(q.comparison.reference is None for q in training_questions)
    verdict = Verdict.from_margin(torch.tensor([4.0, 3.0, 2.5]))
    torch.testing.assert_close(losses("regression", verdict, torch.tensor([4.5, 3, 1.5])), torch.tensor([0.25, 0, 1]))


def test_regression_needs_ratings(pictures):
    record = PreferenceRecord("r9", "p", tuple(pictures[:2]), (Choice(0, 1, 1.0),))
    with pytest.raises(InputError, match="r9: regression needs ratings"):
        questions(record, "regression")


def test_pointwise_asks_about_each_side_alone(record):
    training_questions = questions(record, "generative_pointwise")
    assert len(training_questions) == 8
    assert all(q.comparison.reference is None for q in training_questions)
    assert [q.target for q in training_questions[:2]] == [1.0, 0.0]
    assert training_questions[0].comparison.candidate is record.media[0]
    assert training_questions[1].comparison.candidate is record.media[1]
    assert [q.target for q in training_questions[-2:]] == [0.5, 0.5]


def test_pairwise_asks_both_orders_and_scalars_one(record):
    assert [q.target for q in questions(record, "generative_pairwise")] == [1, 1, 0, 0.5, 0, 0, 1, 0.5]
    for paradigm in ("bradley_terry", "bradley_terry_ties", "uncertainty"):
        assert [q.target for q in questions(record, paradigm)] == [1, 1, 0, 0.5]


def test_best_references_leave_the_choices_that_the_best_picture_is_part_of(record, pictures):
    training_questions = questions(record, "generative_pairwise", "best_of_n")
    assert [q.target for q in training_questions] == [1, 0, 0.5, 0, 1, 0.5]
    best = record.media[0]  # two wins and a tie
    assert all(best in (q.comparison.candidate, q.comparison.reference) for q in training_questions)
    assert sum(best is q.comparison.reference for q in training_questions) == 3
    ordered = PreferenceRecord("o", "x", tuple(pictures[:4]), choices_of_ranking(1, 2, 3, 4))
    weights = [q.weight for q in questions(ordered, "ranking", "best_of_n")]
    assert weights == pytest.approx([0.5, 1.0, 1.5])  # places apart in the order of all, not of what is left
    unmet = PreferenceRecord("u", "x", tuple(pictures[:3]), (Choice(1, 2, 0.5),))
    assert len(questions(unmet, "bradley_terry", "best_of_n")) == 1


def test_ranking_weighs_choices_by_how_far_apart_they_stand(record):
    weights = [q.weight for q in questions(record, "ranking")]
    assert sum(weights) / 4 == pytest.approx(1)
    assert weights[2] == pytest.approx(2 * weights[0])  # first against last; first against second
    assert weights[0] == weights[1] == weights[3]


def test_every_paradigm_learns_a_toy_preference(backbone):
    """Thirty steps of the head alone order bright over dark."""
    levels = (0.1, 0.5, 0.9)
    media = tuple(Media(torch.full((1, 3, 48, 48), v)) for v in levels)
    choices = (Choice(1, 0, 1.0), Choice(2, 1, 1.0), Choice(2, 0, 1.0))
    record = PreferenceRecord("r", "p", media, choices, "overall", ratings=(1.0, 3.0, 5.0))
    for paradigm in ("bradley_terry", "bradley_terry_ties", "uncertainty", "regression", "ranking"):
        judge = new_judge(JudgeSpec(paradigm=paradigm), backbone)
        optimizer = torch.optim.Adam(judge.single.head.parameters(), lr=0.05)
        first = last = None
        for _ in range(30):
            metrics = reward_step(judge.single, questions(record, paradigm), paradigm)
            optimizer.zero_grad()
            metrics["loss"].backward()
            optimizer.step()
            first, last = first or metrics["loss"].item(), metrics["loss"].item()
        assert last < first
        assert judge.rank("p", media).order == (2, 1, 0), paradigm


def test_log_sigmoid_losses_are_those_of_the_margin():
    verdict, target = Verdict.from_margin(torch.tensor([0.7])), torch.tensor([1.0])
    for paradigm in ("bradley_terry", "uncertainty", "ranking"):
        torch.testing.assert_close(losses(paradigm, verdict, target), -F.logsigmoid(torch.tensor([0.7])))
