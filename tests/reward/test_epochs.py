"""How often training sees a record: what the start of a run announces is what its batches do."""

from collections import Counter

import pytest

from rewarddance.core.loop_config import LoopConfig
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.jobs.load import load_backbone
from rewarddance.jobs.train import train_judge
from rewarddance.reward.train_config import RewardConfig
from rewarddance.reward.training import num_epochs, training_batch


def config_of(num_steps, prompts_per_step=4):
    return RewardConfig(prompts_per_step=prompts_per_step, loop=LoopConfig(num_steps=num_steps), precision="fp32")


def records_of(num, pictures):
    return [PreferenceRecord(f"r{i}", f"p{i}", tuple(pictures[:2]), (Choice(0, 1, i % 2),)) for i in range(num)]


@pytest.mark.parametrize("num", [1, 3, 4, 8, 20])
def test_the_number_of_epochs_is_how_often_every_record_is_seen(num, pictures):
    config, records = config_of(num_steps=10), records_of(num, pictures)
    seen = Counter(r.record_id for step in range(10) for r in training_batch(records, config, step))
    assert num_epochs(num, config) == pytest.approx(sum(seen.values()) / num)


@pytest.mark.parametrize("num", [1, 3, 8])
def test_whole_epochs_show_every_record_equally_often(num, pictures):
    config, records = config_of(num_steps=6), records_of(num, pictures)
    seen = Counter(r.record_id for step in range(6) for r in training_batch(records, config, step))
    assert set(seen.values()) == {num_epochs(num, config)}
    assert len(seen) == num


def test_records_that_fill_no_step_are_left_out_of_an_epoch(pictures):
    """Ten records make two steps of four an epoch; which two are left out changes."""
    config, records = config_of(num_steps=40), records_of(10, pictures)
    assert num_epochs(10, config) == 20
    for epoch in range(20):
        batches = [training_batch(records, config, 2 * epoch + i) for i in range(2)]
        assert len({r.record_id for batch in batches for r in batch}) == 8
    seen = Counter(r.record_id for step in range(40) for r in training_batch(records, config, step))
    assert sum(seen.values()) == 160
    assert len(seen) == 10


def test_training_on_one_record_announces_its_epochs(vlm_folder, pictures, tmp_path, capsys):
    train_judge(config_of(num_steps=3), load_backbone(vlm_folder), records_of(1, pictures), {}, tmp_path / "run")
    assert "3 steps of 4: 3.00 epochs of 1 record\n" in capsys.readouterr().err
