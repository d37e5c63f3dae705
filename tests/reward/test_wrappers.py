"""Both orders, or both pictures: what is averaged, what is halved, what is subtracted, and whose refusal it is."""

from dataclasses import replace

import pytest
import torch

from rewarddance.core.media import Media
from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.composite import Standard
from rewarddance.reward.standardised import Standardised, standard_of
from rewarddance.reward.wrappers import PointwiseDifference, Symmetrised


def grey(level):
    return Media(torch.full((1, 3, 4, 4), float(level)))


DARK, MIDDLE, LIGHT = grey(0.1), grey(0.5), grey(0.9)


class Table:
    """Margin and answer mass of every (candidate, reference), or the reason to refuse it."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def judge(self, comparisons):
        self.asked.append(list(comparisons))
        rows = [self.answers[c.candidate, c.reference] for c in comparisons]
        margin = torch.tensor([r[0] for r in rows])
        verdict = Verdict.from_margin(margin, torch.tensor([r[1] for r in rows]))
        return verdict.refuse({i: r[2] for i, r in enumerate(rows) if len(r) > 2})


def close(values, wanted):
    assert values.tolist() == pytest.approx(wanted, abs=1e-6, nan_ok=True)


def test_both_orders_are_averaged_with_their_masses():
    table = Table(
        {
            (LIGHT, DARK): (3.0, 0.9),
            (DARK, LIGHT): (-1.0, 0.5),
            (MIDDLE, None): (0.25, 0.8),
            (DARK, MIDDLE): (-2.0, 1.0),
            (MIDDLE, DARK): (4.0, 0.6),
        }
    )
    comparisons = [Comparison("p", LIGHT, DARK), Comparison("p", MIDDLE), Comparison("p", DARK, MIDDLE)]
    verdict = Symmetrised(table).judge(comparisons)
    close(verdict.margin, [(3 + 1) / 2, 0.25, (-2 - 4) / 2])
    close(verdict.answer_mass, [0.7, 0.8, 0.8])
    close(verdict.disagreement, [abs(3 - 1) / 2, float("nan"), abs(-2 + 4) / 2])
    assert len(table.asked) == 1
    assert verdict.refused == {}


def test_questions_about_single_pictures_go_through():
    inner = Table({(LIGHT, None): (1.5, 0.7)})
    for wrapper in (Symmetrised(inner), PointwiseDifference(inner)):
        verdict = wrapper.judge([Comparison("p", LIGHT)])
        close(verdict.margin, [1.5])
        close(verdict.answer_mass, [0.7])


def test_an_item_is_refused_if_either_order_is():
    table = Table(
        {
            (LIGHT, DARK): (3.0, 0.9),
            (DARK, LIGHT): (-1.0, 0.1, "unclear backwards"),
            (MIDDLE, None): (0.25, 0.2, "unclear alone"),
            (DARK, MIDDLE): (-2.0, 0.3, "unclear forwards"),
            (MIDDLE, DARK): (4.0, 0.1, "unclear backwards"),
            (LIGHT, MIDDLE): (1.0, 0.9),
            (MIDDLE, LIGHT): (-1.0, 0.9),
        }
    )
    comparisons = [
        Comparison("p", LIGHT, DARK),
        Comparison("p", MIDDLE),
        Comparison("p", DARK, MIDDLE),
        Comparison("p", LIGHT, MIDDLE),
    ]
    verdict = Symmetrised(table).judge(comparisons)
    assert verdict.refused == {0: "unclear backwards", 1: "unclear alone", 2: "unclear forwards"}
    close(verdict.margin, [float("nan")] * 3 + [1.0])
    close(verdict.answer_mass, [0.5, 0.2, 0.2, 0.9])


def test_a_pointwise_comparison_is_the_difference_of_both_pictures():
    table = Table({(LIGHT, None): (2.0, 0.9), (DARK, None): (-1.0, 0.5), (MIDDLE, None): (0.5, 0.3, "unclear")})
    comparisons = [
        Comparison("p", DARK, LIGHT),
        Comparison("p", LIGHT),
        Comparison("p", LIGHT, DARK),
        Comparison("p", LIGHT, MIDDLE),
        Comparison("p", MIDDLE, DARK),
    ]
    verdict = PointwiseDifference(table).judge(comparisons)
    close(verdict.margin, [-3.0, 2.0, 3.0, float("nan"), float("nan")])
    close(verdict.answer_mass, [0.7, 0.9, 0.7, 0.6, 0.4])
    assert verdict.refused == {3: "unclear", 4: "unclear"}
    assert all(c.reference is None for c in table.asked[0])
    assert len(table.asked) == 1


def test_gradients_reach_both_orders_with_one_half():
    inner = torch.tensor([3.0, -1.0], requires_grad=True)

    class Leaf:
        def judge(self, comparisons):
            return Verdict.from_margin(inner)

    Symmetrised(Leaf()).judge([Comparison("p", LIGHT, DARK)]).margin.sum().backward()
    close(inner.grad, [0.5, -0.5])


class Levels:
    """Margin 5 (level - reference), or 10 level of a picture alone, with a gradient; refuses the prompt "unclear"."""

    criterion = "fidelity"
    differentiable = True

    def judge(self, comparisons):
        def level(media):
            return media.frames.mean()

        margins = [
            10 * level(c.candidate) if c.reference is None else 5 * (level(c.candidate) - level(c.reference))
            for c in comparisons
        ]
        return Verdict.from_margin(torch.stack(margins)).refuse(
            {i: "unclear" for i, c in enumerate(comparisons) if c.prompt == "unclear"}
        )


def test_a_standardised_judge_has_unit_spread_on_its_reference_set():
    levels = torch.rand(12, 2, generator=torch.Generator().manual_seed(0))
    media = [[grey(a), grey(b)] for a, b in levels.tolist()]
    standard = standard_of("judge", lambda c: Levels().judge(c).margin, ["p"] * 11 + ["unclear"], media, "fidelity")
    judge = Standardised(Levels(), standard)
    known = levels[:11]
    pairs = judge.judge([Comparison("p", a, b) for a, b in media[:11]]).margin
    close(pairs, ((known[:, 0] - known[:, 1]) / (known[:, 0] - known[:, 1]).square().mean().sqrt()).tolist())
    alone = judge.judge([Comparison("p", m) for own in media[:11] for m in own]).margin
    close(alone, ((known - known.mean()) / known.std()).flatten().tolist())
    assert judge.criterion == "fidelity"
    assert judge.problem(Comparison("p", DARK)) is None


def test_a_standardised_judge_keeps_refusals_and_gradients_and_refuses_unknown_questions():
    standard = standard_of(
        "judge",
        lambda c: Levels().judge(c).margin,
        ["p"] * 8,
        [[grey(i / 8), grey((i + 1.5) / 8)] for i in range(8)],
        "fidelity",
    )
    pixels = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    comparisons = [Comparison("p", Media(pixels), DARK), Comparison("unclear", LIGHT, DARK)]
    verdict = Standardised(Levels(), standard).judge(comparisons)
    assert verdict.refused == {1: "unclear"}
    verdict.margin[0].backward()
    close(pixels.grad.sum(), 5 / standard.paired_std)
    pairs_only = type(standard)(None, None, standard.paired_std)
    assert "no spread" in Standardised(Levels(), pairs_only).judge([Comparison("p", LIGHT)]).refused[0]


def test_a_standardised_judge_scales_the_other_order_and_the_disagreement_too():
    """A single picture has no other order: its swapped margin is minus its margin."""

    class Both:
        def judge(self, comparisons):
            num = len(comparisons)
            verdict = Verdict.from_margin(torch.full((num,), 5.0), disagreement=torch.full((num,), 1.0))
            return replace(verdict, swapped_margin=torch.full((num,), -5.0))

    judge = Standardised(Both(), Standard(3.0, 2.0, 4.0))
    verdict = judge.judge([Comparison("p", LIGHT, DARK), Comparison("p", LIGHT)])
    close(verdict.margin, [5 / 4, (5 - 3) / 2])
    close(verdict.swapped_margin, [-5 / 4, -(5 - 3) / 2])
    close(verdict.balanced_margin, [5 / 4, (5 - 3) / 2])
    close(verdict.disagreement[:1], [1 / 4])
    assert len(judge.judge([])) == 0
