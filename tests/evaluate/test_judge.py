"""Margins against fixed references: a judge that knows the truth orders all, a blind one nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_processes

from rewarddance.core.errors import JudgementError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.types import Verdict
from rewarddance.evaluate.judge import measure_judge, measure_margins


class Brightness:
    """Prefers the brighter picture, or (sign 0) nothing."""

    def __init__(self, sign):
        self.sign = sign

    def judge(self, comparisons):
        gaps = [float(c.candidate.frames.mean() - c.reference.frames.mean()) for c in comparisons]
        return Verdict.from_margin(self.sign * torch.tensor(gaps))


def grey(value):
    return Media.from_tensor(torch.full((3, 4, 4), value))


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    truth = rng.random((6, 5))
    candidates = [[grey(float(v)) for v in row] for row in truth]
    references = [[grey(0.5), grey(0.3)]] * 6
    return [f"prompt {i}" for i in range(6)], candidates, references, truth


@pytest.mark.parametrize("sign", [1, -1])
def test_a_judge_that_knows_the_truth_orders_everything(sets, sign):
    figures = measure_margins(Brightness(sign), *sets)
    assert figures["pooled"] == pytest.approx(sign)
    assert figures["within"] == pytest.approx(sign)
    assert figures["num_within"] == 6


def test_a_blind_judge_orders_nothing(sets):
    figures = measure_margins(Brightness(0), *sets)
    assert figures["pooled"] == figures["within"] == 0


def test_prompts_whose_truth_does_not_vary_are_left_out_of_the_mean_within(sets):
    prompts, candidates, references, truth = sets
    truth = truth.copy()
    truth[0] = 0.5
    assert measure_margins(Brightness(1), prompts, candidates, references, truth)["num_within"] == 5


class Reluctant(Brightness):
    """Refuses pairs that show a picture that is nearly black."""

    def judge(self, comparisons):
        dark = [min(c.candidate.frames.mean(), c.reference.frames.mean()) < 0.02 for c in comparisons]
        return super().judge(comparisons).refuse({i: "not answered with yes or no" for i, x in enumerate(dark) if x})


def records(num, dark=()):
    def one(i):
        media = (grey(0.01 if i in dark else 0.2 + 0.001 * i), grey(0.7), grey(0.5))
        return PreferenceRecord(f"r{i}", f"p{i}", media, (Choice(1, 0, 1.0), Choice(2, 1, 0.0)))

    return [one(i) for i in range(num)]


def test_what_a_judge_refuses_is_listed_and_the_rest_counts():
    seen = []
    figures = measure_judge(
        Reluctant(1), records(50, dark=(3, 20)), chunk=8, each=lambda r, table, refused: seen.append(r.record_id)
    )
    assert figures["refused"] == dict.fromkeys(("r3", "r20"), "not answered with yes or no")
    assert len(seen) == 50
    assert figures["num_refused"] == 4  # two of the three pairs of a record
    assert (figures["num_pairs"], figures["accuracy"]) == (98, 1.0)
    whole = measure_judge(Brightness(1), records(50), chunk=8)
    assert "refused" not in whole
    assert whole["num_pairs"] == 100
    with pytest.raises(JudgementError, match="pairs of 3 of 11 records were refused; last: not answered"):
        measure_judge(Reluctant(1), records(50, dark=range(0, 50, 5)), chunk=8)


SHARED = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent / "helpers")]
from test_judge import Reluctant, records
from rewarddance.core.parallel import process_group, rank
from rewarddance.evaluate.judge import measure_judge
with process_group():
    found = measure_judge(Reluctant(1), records(50, dark=(3, 20)), chunk=8, shared=True)
    open(sys.argv[2] + str(rank()), "w").write(json.dumps(found))
"""


def test_processes_that_share_the_work_find_the_same(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(SHARED)
    run_processes(2, program, Path(__file__).parent, tmp_path / "found")
    alone = measure_judge(Reluctant(1), records(50, dark=(3, 20)), chunk=8)
    assert [json.loads((tmp_path / f"found{i}").read_text()) for i in (0, 1)] == [alone, alone]


class FirstPlace:
    """Says yes to whatever stands second, as a judge with nothing but a lean to a place does."""

    def judge(self, comparisons):
        return Verdict.from_margin(torch.ones(len(comparisons)))


def test_a_lean_to_a_place_is_no_merit_where_the_data_puts_winners_first():
    rows = [
        PreferenceRecord(f"r{i}", f"p{i}", (grey(0.5), grey(0.001 * i)), (Choice(0, 1, 1.0),), "fidelity")
        for i in range(400)
    ]
    assert measure_judge(FirstPlace(), rows)["label_accuracy"] == pytest.approx(0.5, abs=0.08)


def test_records_of_one_prompt_are_no_independent_evidence():
    """Ten prompts of forty records each, of which a judge is right on all or on none."""
    light = {True: (grey(0.9), grey(0.1)), False: (grey(0.1), grey(0.9))}
    rows = [
        PreferenceRecord(f"r{i}", f"p{i % 10}", light[i % 2 == 0], (Choice(0, 1, 1.0),), "fidelity") for i in range(400)
    ]
    low, high = measure_judge(Brightness(1), rows)["label_accuracy_ci"]
    assert high - low > 0.4  # of 400 independent records it would be 0.1
