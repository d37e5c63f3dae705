import numpy as np
import pytest

from rewarddance.core.preferences import PreferenceRecord
from rewarddance.lab.study_differences import RightByPrompt, differences
from rewarddance.lab.study_tables import judge_tables


def _rows(*shares, prompts=40):
    return {"seeds": [{"right_by_prompt": {"id": {f"p{i}": [s * 4, 4] for i in range(prompts)}}} for s in shares]}


def named(rows):
    return {name: {**entry, "parameters": 2_000_000} for name, entry in rows.items()}


def test_counts_are_of_clear_pairs_and_add_up_over_records_of_a_prompt():
    table = np.array([[0, 1, 1], [-1, 0, -1], [-1, 1, 0]], float)
    counted = RightByPrompt()
    counted(PreferenceRecord("a", "p", (), (), truth=(0.9, 0.1, 0.5)), table, {})
    counted(PreferenceRecord("b", "p", (), (), truth=(0.5, 0.9, 0.52)), table, {})
    counted(PreferenceRecord("c", "q", (), ()), table, {})
    assert counted.counts == {"p": [3.0, 5.0]}


def test_differences_are_of_the_same_pairs_with_intervals():
    found = {"pairwise": _rows(0.5, 0.5, 0.5), "other": _rows(0.75, 0.75, 0.75), "mixed": _rows(1.0, 0.5, 0.0)}
    gaps = differences(found, "pairwise")
    assert gaps["other"]["id"]["mean"] == pytest.approx(0.25)
    assert gaps["other"]["id"]["ci_low"] == pytest.approx(0.25)
    assert gaps["mixed"]["id"]["mean"] == pytest.approx(0)
    assert gaps["mixed"]["id"]["ci_low"] < -0.2
    assert set(gaps["other"]) == {"id"}
    tables = judge_tables({"variants": named(found), "differences": gaps, "against": "pairwise"})
    assert tables[1].title.startswith("Minus pairwise")
    assert tables[1].rows[0] == ["other", "+0.250 [+0.250, +0.250]", "–"]


def test_prompts_count_by_their_pairs():
    one, two = _rows(0.0, prompts=2), _rows(0.0, prompts=2)
    two["seeds"][0]["right_by_prompt"]["id"]["p1"] = [3.0, 4]
    one["seeds"][0]["right_by_prompt"]["id"]["p0"] = [2.0, 12]
    two["seeds"][0]["right_by_prompt"]["id"]["p0"] = [2.0, 12]
    assert differences({"a": one, "b": two}, "b")["a"]["id"]["mean"] == pytest.approx(-3 / 16)


def test_nothing_to_compare_gives_no_table():
    assert differences({"other": _rows(0.5)}, "pairwise") == {}
    alone = judge_tables({"variants": named({"other": _rows(0.5)}), "differences": {}})
    assert [t.title.split(" ")[0] for t in alone] == ["One"]
    assert differences({"pairwise": _rows(0.5), "old": {"seeds": [{}]}}, "pairwise") == {"old": {}}
