"""Bradley-Terry with ties, and what questions weigh: signs and values that a small mistake would change."""

import math
from dataclasses import replace

import pytest
import torch
from rankings import choices_of_ranking

from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.judge import new_judge
from rewarddance.reward.paradigms import Question, losses, questions, rao_kupper_loss, targets_of, with_ties

MEDIA = tuple(Media(torch.full((1, 3, 4, 4), v)) for v in (0.1, 0.3, 0.5, 0.7))
K = 3.0


def probabilities(d, k=K):
    win, loss = 1 / (1 + k * math.exp(-d)), 1 / (1 + k * math.exp(d))
    return win, 1 - win - loss, loss


def tie_loss(d, target, smoothing=0.0):
    d = torch.tensor([d], dtype=torch.float64)
    parts = {"difference": d, "tie_strength": torch.full_like(d, K)}
    verdict = replace(Verdict.from_margin(d), parts=parts)
    return losses("bradley_terry_ties", verdict, torch.tensor([target], dtype=torch.float64), smoothing).item()


@pytest.mark.parametrize("d", [-2.0, -0.3, 0.0, 1.7])
@pytest.mark.parametrize("target", [0.0, 0.2, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_a_target_is_shared_between_its_side_and_the_tie(d, target, smoothing):
    win, tie, loss = (-math.log(p) for p in probabilities(d))
    y = target + smoothing * (0.5 - target)
    side = win if y > 0.5 else loss
    sure = abs(2 * y - 1)
    assert tie_loss(d, target, smoothing) == pytest.approx(sure * side + (1 - sure) * tie, rel=1e-6)


def test_both_sides_of_a_pair_cost_the_same():
    for target in (0.0, 0.3, 1.0):
        assert tie_loss(1.3, target, 0.2) == pytest.approx(tie_loss(-1.3, 1 - target, 0.2), rel=1e-9)


def test_targets_outside_the_unit_interval_weigh_no_more_than_a_win():
    d, k = torch.tensor([0.4, 0.4]), torch.tensor(K)
    outside = rao_kupper_loss(d, torch.tensor([1.2, -0.2]), k)
    torch.testing.assert_close(outside, rao_kupper_loss(d, torch.tensor([1.0, 0.0]), k))


def test_the_margin_with_ties_is_the_log_odds_of_win_and_half_of_tie():
    for d in (-1.5, 0.0, 0.8):
        win, tie, loss = probabilities(d)
        wanted = math.log((win + tie / 2) / (loss + tie / 2))
        assert with_ties(torch.tensor([d]), torch.tensor(K)).item() == pytest.approx(wanted, abs=1e-6)
    assert with_ties(torch.tensor([1.5]), torch.tensor(1.0)).item() == pytest.approx(1.5, abs=1e-6)  # no ties


def test_a_new_head_ties_equal_pictures_two_times_in_three(backbone):
    """k starts at 5, and (5 - 1) / (5 + 1) = 2 / 3."""
    judge = new_judge(JudgeSpec(paradigm="bradley_terry_ties"), backbone)
    k = judge.single.tie_strength.item()
    assert (k - 1) / (k + 1) == pytest.approx(2 / 3)


def test_smoothing_moves_a_log_sigmoid_loss_towards_the_other_side():
    verdict = Verdict.from_margin(torch.tensor([2.0, 2.0]))
    loss = losses("bradley_terry", verdict, torch.tensor([1.0, 0.0]), 0.2).tolist()
    yes, no = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert loss == pytest.approx([0.9 * yes + 0.1 * no, 0.1 * yes + 0.9 * no], rel=1e-6)


def record(choices, num=4):
    return PreferenceRecord("r", "p", MEDIA[:num], tuple(choices), "fidelity")


def test_ranking_weights_are_gaps_in_rank_over_their_mean():
    training_questions = questions(record(choices_of_ranking(1, 2, 3, 4)), "ranking")
    gaps = [1, 2, 3, 1, 2, 1]
    assert [q.weight for q in training_questions] == pytest.approx([g / (10 / 6) for g in gaps])
    assert [q.target for q in training_questions] == [1.0] * 6


def test_pictures_of_equal_rank_are_half_a_rank_apart():
    training_questions = questions(record([Choice(0, 1, 0.5), Choice(0, 2, 1.0), Choice(1, 2, 1.0)], 3), "ranking")
    # the first two win three quarters of their choices each, the last one none: ranks 0, 0 and 2
    assert [q.weight for q in training_questions] == pytest.approx([w / 1.5 for w in (0.5, 2.0, 2.0)])


def test_soft_choices_count_for_both_pictures_of_a_rank():
    training_questions = questions(record([Choice(0, 1, 0.4), Choice(1, 2, 0.9), Choice(2, 3, 0.2)]), "ranking")
    # shares of wins: 0.4, (0.6 + 0.9) / 2, (0.1 + 0.2) / 2, 0.8; ranks 2, 1, 3, 0
    assert [q.weight for q in training_questions] == pytest.approx([w / 2 for w in (1.0, 2.0, 3.0)])


def test_a_picture_without_choices_stands_in_the_middle():
    five = PreferenceRecord("r", "p", (*MEDIA, MEDIA[0]), (Choice(0, 1, 0.6), Choice(2, 3, 1.0)), "fidelity")
    # shares of wins: 0.6, 0.4, 1, 0 and one half; the first two stand on either side of the last
    assert [q.weight for q in questions(five, "ranking")] == pytest.approx([2 / 3, 4 / 3])


def test_a_single_choice_weighs_one():
    for paradigm in ("generative_pairwise", "bradley_terry", "ranking"):
        assert {q.weight for q in questions(record([Choice(0, 3, 1.0)]), paradigm)} == {1.0}


def test_only_ranking_weighs_and_both_orders_weigh_the_same():
    for paradigm in ("generative_pairwise", "bradley_terry", "generative_pointwise"):
        assert {q.weight for q in questions(record(choices_of_ranking(1, 2, 3, 4)), paradigm)} == {1.0}


def test_the_best_picture_of_best_of_n_is_the_first_of_equals_that_was_chosen_from():
    equal = questions(record([Choice(1, 2, 0.5), Choice(2, 3, 0.5), Choice(1, 3, 0.5)]), "bradley_terry", "best_of_n")
    assert all(MEDIA[1] in (q.comparison.candidate, q.comparison.reference) for q in equal)
    assert len(equal) == 2
    # shares of wins 0.4, 0.55 and 0.5 (picture 2): picture 1 is the best, and its choices stay in order
    soft = questions(record([Choice(0, 1, 0.4), Choice(2, 1, 0.5), Choice(0, 2, 0.4)], 3), "bradley_terry", "best_of_n")
    assert [q.target for q in soft] == [0.4, 0.5]


def test_a_record_without_choices_asks_nothing():
    for paradigm in ("generative_pairwise", "generative_pointwise", "bradley_terry", "ranking"):
        for reference in ("random", "best_of_n"):
            assert questions(record([]), paradigm, reference) == []


def test_pointwise_sides_have_targets_that_sum_to_one():
    training_questions = questions(record([Choice(0, 1, 0.7)]), "generative_pointwise")
    assert [q.target for q in training_questions] == pytest.approx([0.7, 0.3])
    assert [q.comparison.candidate for q in training_questions] == [MEDIA[0], MEDIA[1]]


def test_targets_and_weights_become_tensors():
    comparison = Comparison("p", MEDIA[0], MEDIA[1])
    targets, weights = targets_of([Question(comparison, 0.25), Question(comparison, 1.0, 2.0)])
    assert targets.tolist() == [0.25, 1.0]
    assert weights.tolist() == [1.0, 2.0]
