"""`score` on a data set: one line a choice, what the judge says of it, and the same figures as without lines."""

import json

import pytest

from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.load import load_judge
from rewarddance.jobs.score import score_data


def test_lines_are_what_the_judge_says_of_each_choice(data_folder, tmp_path):
    found = score_data(data_folder, "tiny", tmp_path / "lines.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert found == score_data(data_folder, "tiny", None)
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]
    judge = load_judge("tiny")
    records = list(RecordTable.open(data_folder / "id.parquet"))
    choices = [(r, c) for r in records for c in r.choices]
    assert len(lines) == len(choices)
    verdict = [judge.judge(r.comparisons()) for r in records]
    margins = [m for v in verdict for m in v.margin.tolist()]
    rewards = [x for v in verdict for x in v.reward.tolist()]
    for line, (r, c), margin, reward in zip(lines, choices, margins, rewards, strict=True):
        assert (line["id"], line["first"], line["second"], line["label"]) == (r.record_id, c.first, c.second, c.label)
        assert line["margin"] == pytest.approx(margin, abs=1e-5)
        assert line["reward"] == pytest.approx(reward, abs=1e-5)
