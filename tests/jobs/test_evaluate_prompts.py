"""Alignment on a user's own prompts: no oracle, so a judge compares, and says whether it may."""

import pytest

from rewarddance.apps.report import write_report
from rewarddance.core.errors import RunError
from rewarddance.jobs.align import align_from_names
from rewarddance.jobs.evaluate import evaluate_alignment
from rewarddance.jobs.evaluate_prompts import evaluate_on_prompts
from rewarddance.jobs.train import train_from_data
from rewarddance.jobs.train_reward_config import RewardConfig


@pytest.fixture
def run(vlm_folder, data_folder, quick_align, quick, tmp_path):
    judge = RewardConfig(
        backbone=str(vlm_folder),
        data=str(data_folder),
        paradigm="bradley_terry",
        prompts_per_step=4,
        **quick(num_steps=1),
    )
    train_from_data(judge, tmp_path / "judge")
    (tmp_path / "prompts.txt").write_text("a dog\na cat on a mat\ntwo birds\n")
    config = quick_align(tmp_path / "judge", prompts=str(tmp_path / "prompts.txt"))
    align_from_names(config, tmp_path / "run")
    return tmp_path / "run"


def test_a_judge_compares_before_and_after_and_says_what_it_knows(run, tmp_path):
    (tmp_path / "held_out.txt").write_text("a cat on a mat\na horse\n")
    found = evaluate_on_prompts(run, tmp_path / "held_out.txt", num_noises=2)
    assert (found["prompts"], found["same_judge"], found["trained_on"]) == (2, True, 0.5)
    assert 0 <= found["win_rate"]["ci_low"] <= found["win_rate"]["mean"] <= found["win_rate"]["ci_high"] <= 1
    assert found["diversity"]["after"]["feature"] > 0
    page = write_report(run).read_text()
    assert "cannot tell whether it is being hacked" in page
    assert "50% of these prompts were trained on" in page
    other = evaluate_on_prompts(run, tmp_path / "held_out.txt", judge=str(tmp_path / "judge" / "model"), num_noises=2)
    assert not other["same_judge"]


def test_the_oracle_is_not_asked_about_prompts_that_it_does_not_know(run):
    with pytest.raises(RunError, match="evaluate --prompts FILE"):
        evaluate_alignment(run, every=120)
