"""Alignment on a user's own prompts: no oracle, so a judge compares, and says whether it may."""

import shutil

import numpy as np
import pytest

from rewarddance.apps.report import write_report
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.runs import RunFolder
from rewarddance.data.prompt_task import PromptTask
from rewarddance.data.prompts import read_prompts
from rewarddance.evaluate.generator import compare_judges
from rewarddance.jobs.align import align_from_names, align_generator
from rewarddance.jobs.composite import fit_composite
from rewarddance.jobs.evaluate import evaluate_alignment, evaluate_on_prompts, task_features
from rewarddance.jobs.load import load_judge
from rewarddance.jobs.train import train_from_data
from rewarddance.reward.train_config import RewardConfig


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
    assert "so it cannot show reward hacking" in page
    assert "50% of these prompts were trained on" in page
    model = tmp_path / "judge" / "model"
    assert evaluate_on_prompts(run, tmp_path / "held_out.txt", judge=str(model), num_noises=2)["same_judge"]
    shutil.copytree(model, tmp_path / "other")
    other = evaluate_on_prompts(run, tmp_path / "held_out.txt", judge=str(tmp_path / "other"), num_noises=2)
    assert not other["same_judge"]
    assert other["training_judge"]["mean"] == pytest.approx(other["win_rate"]["mean"], abs=1e-4)  # the same weights
    assert other["hacking"] in ("none", "suspected")
    page = write_report(run).read_text()
    assert "higher by" in page
    assert 'class="px"' in page


def test_a_composite_without_a_judge_compares_and_measures_no_diversity(run, data_folder, tmp_path):
    file = tmp_path / "looks.yaml"
    file.write_text("preset: equal\nparts: {composition: {kind: composition}, harmony: {kind: colour_harmony}}\n")
    fit_composite(file, data_folder)
    (tmp_path / "held_out.txt").write_text("a cat on a mat\na horse\n")
    found = evaluate_on_prompts(run, tmp_path / "held_out.txt", judge=str(file), num_noises=2, num_steps=2)
    assert found["diversity"] is None
    assert found["same_judge"] is False
    assert 0 < found["win_rate"]["mean"] < 1
    task = PromptTask(read_prompts(tmp_path / "held_out.txt")[0])
    with pytest.raises(ConfigError, match="names no features to measure diversity with"):
        task_features(task, load_judge(str(file)))


def test_the_training_judge_is_held_against_another():
    rng = np.random.default_rng(0)
    high, low, even = (np.clip(rng.normal(m, 0.05, (40, 4)), 0, 1) for m in (0.7, 0.4, 0.5))
    assert compare_judges(high, low)["hacking"] == "hacking"
    assert compare_judges(high, even - even.mean() + 0.499)["hacking"] == "suspected"
    assert compare_judges(high, high)["hacking"] == "none"
    assert compare_judges(even, low)["hacking"] == "none"  # it does not claim a gain
    found = compare_judges(high, low)["overrated"]
    assert found["mean"] == pytest.approx(np.mean(high > 0.5) - np.mean(low > 0.5))
    assert found["ci_low"] > 0.8
    bolder = 0.5 + 4 * (even - 0.5)  # surer of the very same wins
    assert compare_judges(bolder, even)["overrated"]["mean"] == 0


def test_the_oracle_is_not_asked_about_prompts_that_it_does_not_know(run):
    with pytest.raises(RunError, match="evaluate --prompts FILE"):
        evaluate_alignment(run, every=120)


def test_a_second_judge_calls_hacking_where_there_is_no_oracle(run, quick_align, tmp_path):
    (tmp_path / "probes.txt").write_text("a horse\na red bus\n")
    config = quick_align(
        tmp_path / "judge",
        prompts=str(tmp_path / "prompts.txt"),
        probe_file=str(tmp_path / "probes.txt"),
        gold_judge=str(tmp_path / "judge" / "model"),
    )
    align_from_names(config, tmp_path / "watched")
    probes = [m for m in RunFolder(tmp_path / "watched").metrics() if "probe/proxy" in m]
    assert probes[0]["probe/gold"] == pytest.approx(0.5, abs=0.1)
    assert all(
        m["probe/gold"] == pytest.approx(m["probe/proxy"], abs=1e-4) for m in probes
    )  # here it is the same judge
    assert probes[-1]["probe/hacking"] in ("none", "suspected")
    blind = [m for m in RunFolder(run).metrics() if "probe/proxy" in m]
    assert all("probe/hacking" not in m for m in blind)


def test_only_the_first_prompts_of_a_long_file_are_trained_on(run, quick_align, tmp_path, capsys):
    config = quick_align(tmp_path / "judge", prompts=str(tmp_path / "prompts.txt"), num_prompts=2)
    align_from_names(config, tmp_path / "short")
    said = capsys.readouterr()
    assert "trains on the first 2" in said.out + said.err


def test_the_embedded_world_is_not_asked_of_other_generators(quick_align, generator, monkeypatch, tmp_path):
    monkeypatch.setattr(generator, "side", 1024)
    with pytest.raises(ConfigError, match="--prompts FILE"):
        align_generator(quick_align("tiny"), generator, None, tmp_path / "run")
    monkeypatch.undo()
    config = quick_align("tiny", algorithm="sft")
    (tmp_path / "prompts.txt").write_text("a dog\na cat\n")
    task = PromptTask(read_prompts(tmp_path / "prompts.txt")[0])
    with pytest.raises(ConfigError, match="no --prompts"):
        align_generator(config, generator, None, tmp_path / "run", task=task)
    assert not (tmp_path / "run").exists()
