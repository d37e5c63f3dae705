"""What is kept apart before training: prompts to calibrate on, and prompts to take examples from."""

import pytest
import torch

from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.reward.context import Context
from rewarddance.reward.train_config import RewardConfig
from rewarddance.reward.training import set_aside

PICTURES = (Media(torch.zeros(1, 3, 2, 2)), Media(torch.ones(1, 3, 2, 2)))


def records(num_prompts, each=1):
    return [
        PreferenceRecord(f"r{i}.{k}", f"prompt {i}", PICTURES, (Choice(0, 1, 1.0),), "fidelity")
        for k in range(each)
        for i in range(num_prompts)
    ]


def config(examples=0, **changes):
    return RewardConfig(context=Context(examples=examples), **changes)


def prompts(part):
    return {r.prompt for r in part}


@pytest.mark.parametrize(
    ("num", "asked", "kept"),
    [(159, 128, 0), (160, 128, 8), (200, 128, 10), (399, 128, 19), (2560, 128, 128), (4000, 128, 128), (400, 9, 9),
     (400, 7, 0), (400, 8, 8), (4000, 0, 0)],
)  # fmt: skip
def test_a_twentieth_of_the_prompts_is_kept_to_calibrate_on_or_none(num, asked, kept):
    given = records(num)
    train, calibrate, examples = set_aside(given, config(calibration_prompts=asked))
    assert (len(train), len(calibrate), len(examples)) == (num - kept, kept, 0)
    if not kept:
        assert train is given


@pytest.mark.parametrize(("num", "asked", "shown"), [(24, 2, 8), (200, 3, 12), (6, 4, 3), (1, 1, 0)])
def test_four_prompts_an_example_are_kept_but_no_more_than_half(num, asked, shown):
    train, calibrate, examples = set_aside(records(num), config(asked))
    kept = num // 20 if num >= 160 else 0
    assert (len(train), len(calibrate), len(examples)) == (num - kept - shown, kept, shown)


def test_a_prompt_is_on_one_side_only_and_every_record_on_one():
    given = records(200, each=3)
    parts = set_aside(given, config(2))
    assert [len(prompts(p)) for p in parts] == [182, 10, 8]
    assert sum(len(prompts(p)) for p in parts) == 200
    assert sorted(r.record_id for p in parts for r in p) == sorted(r.record_id for r in given)
    place = {r.record_id: i for i, r in enumerate(given)}
    for part in parts:
        places = [place[r.record_id] for r in part]
        assert places == sorted(places)  # the order of the data stays


def test_the_seed_decides_and_nothing_else():
    given = records(400)
    first, again = (set_aside(given, config())[1] for _ in range(2))
    shuffled = set_aside(given[::-1], config())[1]
    assert prompts(first) == prompts(again) == prompts(shuffled)
    assert prompts(first) != prompts(set_aside(given, config(seed=1))[1])


def test_tables_are_set_apart_as_lists_are(tmp_path):
    given = records(170)
    write_rows(map(row_of, given), tmp_path / "train.parquet")
    table = RecordTable.open(tmp_path / "train.parquet")
    for settings in (config(1), config(1, calibration_prompts=0), config()):
        for from_table, from_list in zip(set_aside(table, settings), set_aside(given, settings), strict=True):
            assert [r.record_id for r in from_table] == [r.record_id for r in from_list]
    assert list(table.take([])) == []
