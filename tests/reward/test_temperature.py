import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from rewarddance.core.errors import RunError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.judge import new_judge
from rewarddance.reward.saved import load_judge_folder, save_judge
from rewarddance.reward.temperature import FIT_PROMPTS, fitting_rows, starting_temperature


class TooSure:
    """Its margins are the true log-odds of the pictures' brightness, made larger, with a leaning to "yes"."""

    def __init__(self, times, leaning):
        self.times, self.leaning = times, leaning

    def judge(self, comparisons):
        gaps = [
            c.candidate.frames.mean() - (0.5 if c.reference is None else c.reference.frames.mean()) for c in comparisons
        ]
        return Verdict.from_margin(self.times * torch.stack(gaps) + self.leaning)


def records(num=20):
    made = []
    for i in range(num):
        levels = np.random.default_rng(i).random(3)
        media = tuple(Media(torch.full((1, 3, 8, 8), float(v))) for v in levels)
        pairs = [(0, 1), (0, 2), (1, 2)]
        choices = tuple(Choice(a, b, 1 / (1 + math.exp(levels[b] - levels[a]))) for a, b in pairs)
        made.append(PreferenceRecord(f"r{i}", f"prompt {i}", media, choices, "fidelity"))
    return made


@pytest.mark.parametrize("leaning", [0.0, 3.0])
def test_the_temperature_is_how_much_too_sure_a_judge_is(leaning):
    temperature = starting_temperature(TooSure(6.0, leaning), enumerate(records()), "generative_pairwise")
    assert temperature == pytest.approx(6.0, rel=1e-2)


def test_a_judge_is_never_made_surer():
    assert starting_temperature(TooSure(0.1, 0.0), enumerate(records()), "generative_pairwise") == 1.0


def test_an_answer_that_is_no_number_names_its_record():
    class Broken(TooSure):
        def judge(self, comparisons):
            broken = any(c.prompt == "prompt 3" for c in comparisons)
            return Verdict.from_margin(super().judge(comparisons).margin * (math.nan if broken else 1))

    with pytest.raises(RunError, match=r"these records is not a number: r3;"):
        starting_temperature(Broken(1.0, 0.0), enumerate(records()), "generative_pairwise")


def test_records_without_choices_are_passed_over():
    empty = replace(records(1)[0], choices=())
    temperature = starting_temperature(TooSure(6.0, 0.0), enumerate([empty, *records()]), "generative_pairwise")
    assert temperature == pytest.approx(6.0, rel=1e-2)


def test_where_the_order_decides_places_they_are_shuffled():
    """A judge that likes the first questions of a record; with winners first that looks like taste."""

    class FirstHalf(TooSure):
        def judge(self, comparisons):
            first = torch.arange(len(comparisons)) < len(comparisons) / 2
            return Verdict.from_margin(super().judge(comparisons).margin + 3.0 * first)

    winners = [replace(r, choices=tuple(_winner_first(c) for c in r.choices)) for r in records()]
    ask = partial(starting_temperature, FirstHalf(0.0, 0.0), paradigm="generative_pairwise")
    plain, shuffled = (ask(records=enumerate(winners), shuffle=s) for s in (False, True))
    assert shuffled > 1.5 * plain, (plain, shuffled)


def _winner_first(c):
    return c if c.label >= 0.5 else Choice(c.second, c.first, 1 - c.label)


def test_a_pointwise_judge_is_fitted_on_its_own_questions():
    cool, hot = (
        starting_temperature(TooSure(t, 0.0), enumerate(records()), "generative_pointwise") for t in (9.0, 18.0)
    )
    assert hot == pytest.approx(2 * cool, rel=1e-2)


def test_rows_for_the_fit_are_drawn_by_the_seed():
    first, again, other = (list(fitting_rows(FIT_PROMPTS + 10, s).values()) for s in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == FIT_PROMPTS
    assert fitting_rows(1, 0) == {0: 0}


@pytest.mark.parametrize("layout", ["strict", "listwise"])
def test_a_temperature_divides_margins_and_nothing_else(layout, backbone, pictures, tmp_path):
    spec = JudgeSpec.model_validate({"context": {"layout": layout}, "trained": True})
    warm = new_judge(spec, backbone)
    cool = new_judge(spec.model_copy(update={"temperature": 4.0}), backbone)
    comparisons = [Comparison("a red circle", b, a, "fidelity") for a in pictures[:2] for b in pictures[2:4]]
    before, after = warm.judge(comparisons), cool.judge(comparisons)
    torch.testing.assert_close(after.margin, before.margin / 4)
    torch.testing.assert_close(after.answer_mass, before.answer_mass)
    alone = [judge.single.judge(comparisons) for judge in (warm, cool)]
    words = [v.logp_yes.exp() + v.logp_no.exp() for v in alone]
    torch.testing.assert_close(words[1], words[0])
    torch.testing.assert_close(words[0], alone[0].answer_mass)
    kept = load_judge_folder(save_judge(cool, tmp_path / "judge"), precision="fp32")
    assert kept.spec.temperature == kept.single.temperature == 4.0
    kept.single.strict = False
    torch.testing.assert_close(kept.judge(comparisons).margin, after.margin.detach())


def test_reasons_are_learnt_at_the_judges_temperature_too(backbone, pictures):
    spec = JudgeSpec.model_validate({"context": {"cot": "answer_first"}, "trained": True})
    comparisons = [Comparison("a red circle", pictures[0], pictures[1], "fidelity", 1.0, "the candidate is red")]
    (warm, told), (cool, same) = (
        new_judge(spec.model_copy(update={"temperature": t}), backbone).single.learn(comparisons) for t in (1.0, 5.0)
    )
    torch.testing.assert_close(cool.margin, warm.margin / 5)
    torch.testing.assert_close(told, same)
