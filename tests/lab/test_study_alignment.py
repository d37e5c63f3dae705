"""The study of alignment in its smallest form: three arms, what is finished is kept, figures are paired."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.runs import RunFolder
from rewarddance.lab.study_alignment import study_alignment, summarise
from rewarddance.reward.training import with_random_labels


@pytest.fixture
def config(quick_align, vlm_folder, tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    shutil.copytree(vlm_folder, assets / "vlm-tiny")
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", assets)
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    return quick_align(vlm_folder, num_prompts=4)


def test_arms_are_trained_measured_and_kept(config, vlm_folder, tmp_path):
    out = tmp_path / "study"
    found = study_alignment(config, str(vlm_folder), out, seeds=(0,), num_noises=2, every=60)
    assert set(found["arms"]) == {"refl", "sft", "shuffled"}
    assert set(found["differences"]) == {"sft", "shuffled"}
    assert found["arms"]["refl"]["gain"]["ci_low"] <= found["arms"]["refl"]["gain"]["mean"]
    assert found["arms"]["refl"]["feature_diversity_ratio"][0] > 0
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")}
    again = study_alignment(config, None, out, seeds=(0,), arms=("refl", "sft"), num_noises=2, every=60)
    assert again["arms"] == found["arms"]
    with pytest.raises(ConfigError, match="needs --shuffled-judge"):
        study_alignment(config, None, out, seeds=(0,), num_noises=2, every=60)
    with pytest.raises(RunError, match=r"other settings \(shuffled_judge\)"):
        study_alignment(config, "another", out, seeds=(0,), num_noises=2, every=60)
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")} == before
    setting = json.loads((out / "setting.json").read_text())
    (out / "setting.json").write_text(json.dumps(setting | {"judge_sha256": "of before"}))
    with pytest.raises(RunError, match=r"other settings \(judge_sha256\)"):
        study_alignment(config, str(vlm_folder), out, seeds=(0,), num_noises=2, every=60)


def test_a_diversity_in_other_features_is_measured_anew(config, vlm_folder, tmp_path):
    """It had a ratio of 1.2 to the start's, which had been measured with an earlier VLM."""
    at = {"out": tmp_path / "study", "seeds": (0,), "num_noises": 2, "every": 60}
    found = study_alignment(config, None, arms=("sft",), **at)
    measured = at["out"] / "start" / "measured.json"
    content = json.loads(measured.read_text())
    measured.write_text(json.dumps(content | {"features": "of before", "diversity": {"feature": 1e9}}))
    assert summarise(at["out"])["arms"]["sft"]["feature_diversity_ratio"] == {}
    again = study_alignment(config, None, arms=("sft",), **at)
    assert again["arms"] == found["arms"]
    assert json.loads(measured.read_text()) == content


def test_an_arm_that_another_process_is_at_is_left_to_it(config, tmp_path, capsys):
    at_work = """
import sys
from pathlib import Path
from rewarddance.core.lock import folder_lock
with folder_lock(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""
    folder = tmp_path / "study" / "refl-0"
    at = {"out": tmp_path / "study", "seeds": (0,), "num_noises": 2, "every": 60}
    started = [sys.executable, "-c", at_work, str(folder)]
    with subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        study_alignment(config, None, arms=("refl", "sft"), **at)
        other.kill()  # what it held is free, whatever became of it
    assert not (folder / "run.json").exists()
    assert (folder.parent / "sft-0" / "measured.json").is_file()
    assert "refl seed 0: another process works on it" in "".join(capsys.readouterr())
    assert set(study_alignment(config, None, arms=("refl",), **at)["arms"]) == {"refl", "sft"}


def test_gains_and_differences_are_those_of_the_values(tmp_path):
    rng = np.random.default_rng(0)
    start = rng.random((10, 2))
    shifts = {"start": 0.0, "refl-0": 0.3, "refl-1": 0.1, "sft-0": 0.1, "sft-1": 0.1, "shuffled-0": 0.3}
    for name, shift in shifts.items():
        (tmp_path / name).mkdir()
        content = {"gold": (start + shift).tolist(), "diversity": {"feature": 2.0 - shift}, "features": "these"}
        (tmp_path / name / "measured.json").write_text(json.dumps(content))
        RunFolder(tmp_path / name).log(1, {"seconds": 5.0})
    found = summarise(tmp_path)
    assert found["arms"]["refl"]["gain"]["mean"] == pytest.approx(0.2)
    assert found["arms"]["refl"]["by_seed"][0]["mean"] == pytest.approx(0.3)
    assert found["differences"]["sft"]["mean"] == pytest.approx(0.1)
    assert found["differences"]["shuffled"]["mean"] == pytest.approx(0)
    assert found["arms"]["refl"]["feature_diversity_ratio"][1] == pytest.approx(0.95)


def test_shuffled_labels_depend_on_record_and_seed_alone():
    choices = tuple(Choice(0, 1, float(i % 2)) for i in range(200))
    record = PreferenceRecord("a", "p", (), choices)
    once = with_random_labels(record, 0)
    assert once == with_random_labels(record, 0)
    assert once != with_random_labels(record, 1)
    kept = np.mean([a.label == b.label for a, b in zip(once.choices, choices, strict=True)])
    assert 0.35 < kept < 0.65
