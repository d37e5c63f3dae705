"""A round robin in numbers, and what refused pairs take from it."""

import pytest
import torch

from rewarddance.core.errors import InputError, JudgementError
from rewarddance.core.media import Media
from rewarddance.core.task import Prompt
from rewarddance.core.types import Verdict
from rewarddance.reward.rank import rank, rank_all


def grey(level):
    return Media(torch.full((1, 3, 4, 4), float(level)))


class Brightness:
    """Ten times the difference in brightness; refuses the pairs of levels that it is given."""

    def __init__(self, *unclear):
        self.unclear, self.asked = unclear, []

    def judge(self, comparisons):
        self.asked.append(list(comparisons))
        levels = [(float(c.candidate.frames.mean()), float(c.reference.frames.mean())) for c in comparisons]
        verdict = Verdict.from_margin(torch.tensor([10 * (a - b) for a, b in levels]))
        return verdict.refuse(
            {i: "unclear" for i, (a, b) in enumerate(levels) if (round(a, 2), round(b, 2)) in self.unclear}
        )


def test_margins_are_means_over_the_others_and_wins_their_sigmoids():
    ranking = rank(Brightness(), "p", [grey(0.2), grey(0.5), grey(0.3)])
    assert ranking.order == (1, 2, 0)
    assert ranking.margin.tolist() == pytest.approx([(-3 - 1) / 2, (3 + 2) / 2, (1 - 2) / 2], abs=1e-5)
    table = torch.tensor([[0.0, -3.0, -1.0], [3.0, 0.0, 2.0], [1.0, -2.0, 0.0]])
    torch.testing.assert_close(ranking.wins, torch.sigmoid(table), atol=1e-5, rtol=0)
    assert ranking.refused == {}


def test_the_judge_sees_the_picture_of_a_request():
    first_frame = grey(0.9)
    judge = Brightness()
    rank_all(judge, [Prompt("p", condition=first_frame), "q"], [[grey(0.1), grey(0.2)]] * 2)
    assert [(c.prompt, c.condition) for c in judge.asked[0]] == [("p", first_frame), ("q", None)]


def test_refused_pairs_are_left_out_of_the_means_and_counted():
    ranking = rank(Brightness((0.2, 0.5)), "p", [grey(0.2), grey(0.5), grey(0.3)])
    assert ranking.refused == {(0, 1): "unclear"}
    assert ranking.margin.tolist() == pytest.approx([-1.0, 2.0, (1 - 2) / 2], abs=1e-5)
    assert ranking.order == (1, 2, 0)
    assert ranking.wins.isnan().tolist() == [[False, True, False], [True, False, False], [False] * 3]


def test_a_picture_that_could_not_be_compared_at_all_is_not_in_the_order():
    ranking = rank(Brightness((0.2, 0.5), (0.5, 0.3)), "p", [grey(0.2), grey(0.5), grey(0.3)])
    assert ranking.order == (2, 0)
    assert ranking.margin.tolist() == pytest.approx([-1.0, float("nan"), 1.0], abs=1e-5, nan_ok=True)
    assert sorted(ranking.refused) == [(0, 1), (1, 2)]


def test_all_pairs_refused_is_an_error_for_one_prompt_and_an_empty_order_among_several():
    two = [grey(0.2), grey(0.5)]
    with pytest.raises(JudgementError, match="no two pictures could be compared: unclear"):
        rank(Brightness((0.2, 0.5)), "p", two)
    judge = Brightness((0.2, 0.5))
    three = [grey(0.6), grey(0.7), grey(0.9)]
    first, second, third, last = rank_all(judge, ["a", "b", "c", "d"], [three, two, [grey(0.1)], three[::-1]], "style")
    assert (first.order, second.order, third.order, last.order) == ((2, 1, 0), (), (0,), (0, 1, 2))
    assert second.refused == {(0, 1): "unclear"}
    assert second.margin.isnan().all()
    assert third.margin.tolist() == [0.0]
    assert third.wins.tolist() == [[0.5]]
    assert first.margin.tolist() == pytest.approx([-2.0, -0.5, 2.5], abs=1e-5)
    assert last.margin.tolist() == pytest.approx([2.5, -0.5, -2.0], abs=1e-5)
    (comparisons,) = judge.asked  # one call for all prompts
    assert [c.prompt for c in comparisons] == ["a"] * 3 + ["b"] + ["d"] * 3
    assert {c.criterion for c in comparisons} == {"style"}


def test_equal_pictures_keep_the_order_of_the_input():
    assert rank(Brightness(), "p", [grey(0.5)] * 5).order == (0, 1, 2, 3, 4)


def test_lone_pictures_ask_nothing_and_no_pictures_are_an_error():
    judge = Brightness()
    assert [r.order for r in rank_all(judge, ["a", "b"], [[grey(0.5)], [grey(0.1)]])] == [(0,), (0,)]
    assert judge.asked == []
    with pytest.raises(InputError, match="no pictures given"):
        rank_all(judge, ["a", "b"], [[grey(0.5)], []])
    assert rank_all(judge, [], []) == []
    with pytest.raises(ValueError, match="zip"):
        rank_all(judge, ["a"], [[grey(0.5)], [grey(0.1)]])


def test_ranking_builds_no_graph():
    weight = torch.tensor(2.0, requires_grad=True)

    class Trained:
        def judge(self, comparisons):
            return Verdict.from_margin(weight * torch.ones(len(comparisons)))

    assert not rank(Trained(), "p", [grey(0.1), grey(0.2)]).margin.requires_grad
