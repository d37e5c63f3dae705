"""Conservative ensembles: values and gradients in closed form, and a round robin that favours no place."""

import math

import numpy as np
import pytest
import torch
from test_composite import UNIT, blueness, brightness
from test_picture_measures import grey

from rewarddance.align.diagnostics import part_means, set_disagreement
from rewarddance.align.probes import judge_gold
from rewarddance.align.scoring import score_groups
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.types import Comparison
from rewarddance.evaluate.generator import Samples, proxy_reward
from rewarddance.evaluate.judge import measure_judge
from rewarddance.reward.combine import combined
from rewarddance.reward.composite import Composite
from rewarddance.reward.composite_config import load_composite_config, normalised_weights
from rewarddance.reward.parts import MeasurePart
from rewarddance.reward.rank import rank_all


def test_combinations_are_those_of_the_formulas():
    z = torch.tensor([[1.0, -2.0, 4.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 1.0, 2.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert combined(z, weights).tolist() == pytest.approx([(1 - 2 + 8) / 4, 0.5])
    assert combined(z, weights, "minimum").tolist() == [-2.0, 0.5]
    variance = (0.25 * (1 - 1.75) ** 2 + 0.25 * (-2 - 1.75) ** 2 + 0.5 * (4 - 1.75) ** 2) / 1.0
    spread = combined(z, weights, "mean_minus_std", 2.0)
    assert spread.tolist() == pytest.approx([1.75 - 2 * math.sqrt(variance), 0.5])
    unweighted = combined(z, torch.zeros_like(z), "minimum")
    assert unweighted.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("how", ["sum", "minimum", "mean_minus_std"])
def test_gradients_agree_with_finite_differences_and_are_finite_where_judges_agree(how):
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(5, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(5, 3, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: combined(x, weights, how, 0.7), z)
    same = torch.ones(2, 3, requires_grad=True)
    combined(same, torch.ones(2, 3), how).sum().backward()
    assert same.grad.isfinite().all()
    assert same.grad.sum(1).tolist() == pytest.approx([1.0, 1.0])


def two_judges(how):
    parts = {"bright": MeasurePart(brightness), "blue": MeasurePart(blueness)}
    return Composite(parts, {"bright": UNIT, "blue": UNIT}, {"bright": 0.5, "blue": 0.5}, combine=how)


def coloured(red, green, blue):
    return Media(torch.tensor([red, green, blue])[None, :, None, None].expand(1, 3, 48, 48))


@pytest.mark.parametrize("how", ["minimum", "mean_minus_std"])
def test_a_round_robin_does_not_depend_on_the_order_of_the_pictures(how):
    """Judges that disagree count against both pictures, so minus the margin would favour the later one."""
    media = [coloured(0.9, 0.9, 0.1), coloured(0.1, 0.1, 0.9), coloured(0.5, 0.5, 0.5), coloured(0.7, 0.7, 0.8)]
    judge = two_judges(how)
    forward = rank_all(judge, ["p"], [media])[0]
    backward = rank_all(judge, ["p"], [media[::-1]])[0]
    assert backward.margin.flip(0).tolist() == pytest.approx(forward.margin.tolist(), abs=1e-6)
    assert (forward.wins + forward.wins.T)[0, 1] < 1
    for i, a in enumerate(media):
        row = [float(judge.judge([Comparison("p", a, b)]).margin) for j, b in enumerate(media) if j != i]
        assert forward.margin[i].item() == pytest.approx(np.mean(row), abs=1e-6)
    assert forward.order[0] == 3


def test_the_worst_judge_decides_and_refused_items_stay_refused():
    verdict = two_judges("minimum").judge([Comparison("p", coloured(0.9, 0.9, 0.1), grey(0.5))])
    assert verdict.margin.item() == pytest.approx(3 * math.tanh(-0.4 / 3), abs=1e-6)
    assert verdict.swapped_margin.item() == pytest.approx(-3 * math.tanh((1.9 / 3 - 0.5) / 3), abs=1e-6)
    refused = verdict.refuse({0: "why"})
    assert refused.swapped_margin.isnan().all()
    assert verdict.scattered([1], {0: "why"}).swapped_margin.isnan().tolist() == [True, False]


@pytest.mark.parametrize("how", ["minimum", "mean_minus_std"])
def test_win_rates_of_both_orders_sum_to_one(how):
    """The rewards of both orders sum to less: two policies of equal quality would both seem to lose."""
    judge, media = two_judges(how), [coloured(0.9, 0.9, 0.1), coloured(0.1, 0.1, 0.9), coloured(0.7, 0.7, 0.8)]
    forward = [Comparison("p", a, b) for a in media for b in media if a is not b]
    here, there = judge.judge(forward), judge.judge([c.swapped() for c in forward])
    assert (here.win_rate + there.win_rate).tolist() == pytest.approx([1.0] * 6, abs=1e-6)
    assert (here.reward + there.reward).max() < 0.99
    mean = torch.stack(list(here.parts.values())).mean(0)
    spread = (here.parts["bright"] - here.parts["blue"]).abs() / 2
    assert here.margin.tolist() == pytest.approx((mean - spread).tolist(), abs=1e-6)
    assert here.win_rate.tolist() == pytest.approx(torch.sigmoid(mean).tolist(), abs=1e-6)
    assert here.tempered(2.0).win_rate.tolist() == pytest.approx(torch.sigmoid(mean / 2).tolist(), abs=1e-6)
    alone = judge.judge([Comparison("p", m) for m in media])
    assert torch.equal(alone.win_rate, alone.reward)


@pytest.mark.parametrize("noises", [1, 2])
def test_every_win_rate_takes_both_orders(noises):
    """Of the picture after, against the picture before: P = sigmoid((bright + blue) / 2), whoever is the candidate."""
    judge, after, before = two_judges("minimum"), coloured(0.9, 0.9, 0.1), coloured(0.1, 0.1, 0.9)
    parts = judge.judge([Comparison("p", after, before)]).parts
    rate = torch.sigmoid((parts["bright"] + parts["blue"]) / 2).item()
    new, old = (Samples(("p",), ((m,) * noises,)) for m in (after, before))
    assert proxy_reward(judge, new, old, "overall").tolist() == [pytest.approx([rate] * noises, abs=1e-6)]
    scores = score_groups(judge, ["p"], [[after] * noises], "references", "overall", [before])
    assert scores.win_rates.tolist() == [pytest.approx([rate] * noises, abs=1e-6)]
    assert judge_gold(judge, "overall")(["p"], [after], [before]) == pytest.approx([rate], abs=1e-6)
    record = PreferenceRecord("r", "p", (after, before), (Choice(0, 1, 1.0),))
    tables = []
    measure_judge(judge, [record], each=lambda r, table, refused: tables.append(table))
    assert tables[0][0, 1] == pytest.approx(math.log(rate / (1 - rate)), abs=1e-5)


def test_sets_need_no_weights_and_names_for_metrics(tmp_path):
    file = tmp_path / "set.yaml"
    text = "preset: equal\ncombine: minimum\nparts: {a: {kind: judge}, b: {kind: judge, judge: runs/b}}\n"
    file.write_text(text)
    config = load_composite_config(file)
    assert normalised_weights(config) == ({"a": 0.5, "b": 0.5}, ())
    file.write_text(text.replace("a:", "a_std:"))
    with pytest.raises(ConfigError, match="cannot end in _std"):
        load_composite_config(file)
    file.write_text(text.replace("minimum", "worst"))
    with pytest.raises(ConfigError, match="combine"):
        load_composite_config(file)


def test_disagreement_counts_answered_items():
    nan = np.nan
    std, split = set_disagreement({"a": np.array([1.0, 1.0, nan]), "b": np.array([3.0, -1.0, 5.0])})
    assert (std, split) == (1.0, 0.5)
    assert all(np.isnan(set_disagreement({"a": np.array([1.0])})))
    assert part_means({"a": torch.tensor([1.0, nan, 2.0]), "b": torch.tensor([nan])}) == {"a": 1.5}
