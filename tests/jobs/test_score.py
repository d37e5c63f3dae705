"""`score` on a data set: one line a choice, what the judge says of it, and the same figures as without lines."""

import json
from dataclasses import replace

import pytest
import torch

from rewarddance.core.media import Media
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.jobs.load import load_judge
from rewarddance.jobs.score import score_data


def test_lines_are_what_the_judge_says_of_each_choice(data_folder, tmp_path):
    judge = load_judge("tiny")
    found = score_data(data_folder, judge, tmp_path / "lines.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert found == score_data(data_folder, judge, None)
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]
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
    assert found["num_ties"] == sum(c.label == 0.5 for _, c in choices)


def test_a_refused_choice_is_a_line_with_its_reason_and_the_others_keep_theirs(data_folder, tmp_path):
    records = list(RecordTable.open(data_folder / "id.parquet"))
    write_rows((row_of(r) for r in records), tmp_path / "good.parquet")
    wide = Media.from_tensor(torch.rand(3, 2, 900))  # too narrow to judge
    bad = replace(records[1], media=(wide, *records[1].media[1:]))
    write_rows((row_of(r) for r in [records[0], bad, *records[2:]]), tmp_path / "bad.parquet")
    judge, lines = load_judge("tiny"), {}
    for name in ("good", "bad"):
        figures = score_data(tmp_path / f"{name}.parquet", judge, tmp_path / f"{name}.jsonl")
        lines[name] = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    for before, after in zip(lines["good"], lines["bad"], strict=True):
        if after["id"] == bad.record_id and 0 in (after["first"], after["second"]):
            assert (after["reward"], after["margin"]) == (None, None)
            assert "900x2 pixels is too small or too narrow" in after["refused"]
        else:
            assert after["margin"] == pytest.approx(before["margin"], abs=1e-4)
            assert "refused" not in after
    assert figures["num_refused"] == 2  # of the three pairs of that record
    assert list(figures["refused"]) == [bad.record_id]


def test_a_third_of_refused_rows_keeps_all_lines_and_counts(data_folder, tmp_path):
    """Three of ten records cannot be asked about. Their rows say so, and the others keep their values."""
    good = [*RecordTable.open(data_folder / "id.parquet"), *RecordTable.open(data_folder / "ood.parquet")][:10]
    given = [replace(r, prompt="a red circle " * 800) if i in (0, 4, 9) else r for i, r in enumerate(good)]
    judge, lines, figures = load_judge("tiny"), {}, {}
    for name, records in (("good", good), ("given", given)):
        write_rows((row_of(r) for r in records), tmp_path / name / "train.parquet")
        figures[name] = score_data(tmp_path / name, judge, tmp_path / f"{name}.jsonl")
        lines[name] = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    bad = {given[i].record_id for i in (0, 4, 9)}
    assert len(lines["given"]) == len(lines["good"]) == sum(len(r.choices) for r in given)
    for before, after in zip(lines["good"], lines["given"], strict=True):
        if after["id"] in bad:
            assert (after["reward"], after["margin"]) == (None, None)
            assert "tokens, and the model takes 2,048" in after["refused"]
        else:
            assert after["margin"] == pytest.approx(before["margin"], abs=1e-4)
            assert "refused" not in after
    assert figures["given"]["num_refused"] == 3 * 3
    assert set(figures["given"]["refused"]) == bad
    assert figures["good"]["num_pairs"] > figures["given"]["num_pairs"] > 0
    assert {p.name for p in tmp_path.iterdir()} == {"good", "given", "good.jsonl", "given.jsonl"}


def test_an_error_leaves_no_partial_file(data_folder, tmp_path):
    class Broken:
        def judge(self, comparisons):
            raise RuntimeError("out of order")

    (tmp_path / "lines.jsonl").write_text("earlier lines\n")
    with pytest.raises(RuntimeError, match="out of order"):
        score_data(data_folder, Broken(), tmp_path / "lines.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]
    assert (tmp_path / "lines.jsonl").read_text() == "earlier lines\n"
