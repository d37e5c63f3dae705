"""The study of alignment in its smallest form: where arms end, what is kept, and figures against closed forms."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from rewarddance.align.work_config import Budget
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.loop import Loop
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.runs import RunFolder
from rewarddance.core.types import Verdict
from rewarddance.evaluate.generator import Samples, diversity, fixed_samples
from rewarddance.evaluate.metrics import vendi_score
from rewarddance.lab.alignment_arm import ArmWatcher, kl_probe
from rewarddance.lab.alignment_config import AlignmentStudyConfig
from rewarddance.lab.alignment_figures import _baselines, summarise
from rewarddance.lab.alignment_tables import alignment_tables
from rewarddance.lab.study_alignment import PICTURE_VERSION, _is_measured, _rewards, _spread, study_alignment
from rewarddance.reward.composite import load_standards
from rewarddance.reward.training import with_random_labels
from rewarddance.world.task import EmbeddedTask


@pytest.fixture
def shared(vlm_folder, pipeline_folder, tmp_path, monkeypatch):
    """Settings of all arms: a small random generator and judge, two pictures a step."""
    assets = tmp_path / "assets"
    shutil.copytree(vlm_folder, assets / "vlm-tiny")
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", assets)
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    monkeypatch.setattr("rewarddance.world.task.EmbeddedTask.development", few_development_prompts)
    return {
        "generator": str(pipeline_folder),
        "judge": str(vlm_folder),
        "num_prompts": 4,
        "batch_size": 2,
        "lora_rank": 2,
        "probe_prompts": 2,
        "references": {"num_candidates": 2, "refresh": "never"},
        "refl": {"num_steps": 4, "window": [0.5, 0.5]},
        "rollout": {"num_steps": 2, "group_size": 2, "score": "references", "spread": 0.0},
        "optim": {"ema_decay": 0.0, "warmup_steps": 0},
        "loop": {"num_steps": 3, "validate_every": 9, "save_every": 1},
    }


def few_development_prompts(task):
    return task.benchmark()[1::15]


def study_of(shared, arms, **values):
    few = {"every": 60, "num_noises": 2, "num_steps": 2, "diversity_prompts": 2, "diversity_noises": 2}
    sizes = {"kl_every": 1, "curve_every": 1000, "second_seed": None, "seeds": [0]}
    return AlignmentStudyConfig.model_validate(
        {"recipe": "recipes/tiny/refl.yaml", "align": shared, "arms": arms, **few, **sizes, **values}
    )


def marks_of(out, arm, seed=0):
    folders = (out / f"{arm}-{seed}" / "marks").iterdir()
    return {folder.name: json.loads((folder / "mark.json").read_text()) for folder in folders}


def test_arms_end_at_their_work_and_kl_and_are_kept(shared, tmp_path):
    """ReFL takes 32 passes for references (4 prompts, 2 candidates, 4 steps) and 8 a step (2 pictures; 2 steps of
    approach, the gradient step and the frozen policy); supervised training 2 a step."""
    out = tmp_path / "study"
    sft = {"align": {"algorithm": "sft", "optim": {"lr": 0.01}, "loop": {"num_steps": 30}}, "match_kl": "refl"}
    budget = {"generator_passes": 48}
    study = study_of(shared, {"refl": {"budget": budget}, "sft": sft}, baseline="refl")
    figures = study_alignment(study, out)
    work = marks_of(out, "refl")["work"]
    assert (work["step"], work["reached"], work["work"]["generator_passes"]) == (2, True, 48)
    assert RunFolder(out / "refl-0").metrics()[-1]["stopped"] == "budget used up"
    target, matched = work["kl"], marks_of(out, "sft")["kl"]
    kls = [m["study/kl"] for m in RunFolder(out / "sft-0").metrics()]
    assert [k > target for k in kls] == [False] * (len(kls) - 1) + [True]
    assert matched["kl"] == kls[-1]
    assert matched["work"] == {
        "generator_passes": 2 * len(kls),
        "generator_passes_with_gradient": 2 * len(kls),
        "judge_calls": 0,
        "judge_calls_with_gradient": 0,
    }
    assert [(r["arm"], r["mark"]) for r in figures["marks"]] == [("refl", "work"), ("sft", "kl")]
    assert [(m["arm"], m["mark"]) for m in figures["marks"][1]["minus"]] == [("refl", "work")]
    assert figures["marks"][0]["proxy"][0] is not None
    assert 1 <= figures["marks"][0]["vendi"][0] <= 2
    assert "sft, equal KL" in (out / "table.md").read_text()
    versions = [json.loads(file.read_text())["picture_version"] for file in out.rglob("measured.json")]
    assert versions == [PICTURE_VERSION] * 3  # of the start and two marks
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")}
    assert study_alignment(study, out, arms=("sft",))["marks"] == figures["marks"]
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")} == before
    with pytest.raises(ConfigError, match="no arm 'nft'; known: refl, sft"):
        study_alignment(study, out, arms=("nft",))
    with pytest.raises(RunError, match=r"other settings \(every\)"):
        study_alignment(study.model_copy(update={"every": 50}), out)
    other = study_of(shared, {"refl": {"budget": {"generator_passes": 40}}, "sft": sft}, baseline="refl")
    with pytest.raises(RunError, match=r"refl-0: was made with other settings \(budget\)"):
        study_alignment(other, out)


def test_a_standardised_judge_is_fitted_once_and_another_arms_kl_is_waited_for(shared, tmp_path, capsys):
    out = tmp_path / "study"
    grpo = {"align": {"algorithm": "grpo", "grpo": {"noisy_steps": 1}, "loop": {"num_steps": 1}}}
    arms = {"refl": {}, "grpo": {**grpo, "standardise": True, "match_kl": "refl"}}
    study = study_of(shared, arms)
    assert study_alignment(study, out, arms=("grpo",))["marks"] == []
    assert "grpo seed 0: needs the KL of refl" in "".join(capsys.readouterr())
    (out / "refl-0" / "marks" / "end").mkdir(parents=True)
    (out / "refl-0" / "marks" / "end" / "mark.json").write_text(json.dumps({"kl": 1e9}))
    figures = study_alignment(study, out, arms=("grpo",))
    mark = marks_of(out, "grpo")["kl"]
    assert (mark["step"], mark["reached"]) == (3, False)  # three times the steps
    assert load_standards(out / "grpo-0" / "standards.json")[1]["judge"].paired_std > 0
    assert "not reached by 1 of 1" in alignment_tables(figures)[1].rows[0][1]


def test_an_arm_that_another_process_is_at_is_left_to_it(shared, tmp_path, capsys):
    at_work = """
import sys
from pathlib import Path
from rewarddance.core.lock import folder_lock
with folder_lock(Path(sys.argv[1])) as locked:
    print(locked, flush=True)
    sys.stdin.read()
"""
    folder = tmp_path / "study" / "refl-0"
    study = study_of(shared, {"refl": {}, "sft": {"align": {"algorithm": "sft", "loop": {"num_steps": 1}}}})
    started = [sys.executable, "-c", at_work, str(folder)]
    with subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        figures = study_alignment(study, folder.parent)
        other.kill()  # the system releases its lock
    assert not (folder / "run.json").exists()
    assert [row["arm"] for row in figures["marks"]] == ["sft"]
    assert "refl seed 0: another process works on it" in "".join(capsys.readouterr())


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "setting.json").write_text(json.dumps({"shuffled_judge": "runs/x", "every": 1}))
    with pytest.raises(RunError, match=r"was made with other settings \(split\); name another --out"):
        study_alignment(AlignmentStudyConfig.model_validate({"arms": {"refl": {}}}), tmp_path)


def watched(tmp_path, kls, resume=False, tick=lambda: None, **limits):
    """Steps that a run takes with these KLs at every step, and why it ended; every step has 10 passes.

    Each step calls `tick` once.
    """
    from torch import nn

    class Saved:
        def save_adapter(self, folder):
            saved.append(folder.parent.name)

    saved, module = [], nn.Linear(1, 1)
    values = iter(kls)

    def kl():
        value = next(values)
        return value() if callable(value) else value

    watcher = ArmWatcher(Saved(), tmp_path / "run", kl, lambda: 0.5, 1, 10**9, **limits)
    loop = Loop({"m": module}, OptimConfig(), LoopConfig(num_steps=len(kls)), RunFolder(tmp_path / "run"))
    (tmp_path / "run").mkdir(exist_ok=True)
    if resume:
        assert loop.resume()

    def step(index):
        tick()
        module(torch.ones(1)).sum().backward()
        loop.extra["work"] = {"generator_passes": 10 * (index + 1), "judge_calls": index + 1}
        return {}

    loop.run(step, stop=lambda metrics: watcher.after_step(loop, metrics))
    return loop, saved


def test_the_kl_is_matched_at_the_first_measurement_above_it(tmp_path):
    loop, saved = watched(tmp_path, [0.1, 0.3, 0.2, 0.31, 0.9, 0.9], target=0.3)
    assert (loop.step, saved, loop.extra["marks"]) == (4, ["kl"], {"kl": 4})
    mark = json.loads((tmp_path / "run/marks/kl/mark.json").read_text())
    assert (mark["kl"], mark["reached"], mark["work"]["generator_passes"]) == (0.31, True, 40)
    assert loop.extra["stopped"] == "KL passed 0.30000"


def test_a_run_with_both_marks_goes_on_until_it_has_passed_both(tmp_path):
    loop, saved = watched(tmp_path, [0.1, 0.4, 0.5, 0.6, 0.7], target=0.3, budget=Budget(generator_passes=35))
    assert (loop.step, saved, loop.extra["marks"]) == (4, ["kl", "work"], {"kl": 2, "work": 4})
    assert loop.extra["stopped"] == "budget used up, KL passed 0.30000"


def test_a_kl_that_is_out_of_reach_ends_after_three_times_the_budget(tmp_path):
    loop, saved = watched(tmp_path, [0.1] * 20, target=0.3, budget=Budget(judge_calls=2))
    assert (loop.step, saved, loop.extra["marks"]) == (6, ["work"], {"work": 2})
    assert loop.extra["stopped"] == "KL 0.30000 not reached in 3 times the steps"


class Clock:
    """Replaces the module `time`: seconds pass only where the test says so."""

    process_time = staticmethod(time.process_time)

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def test_the_seconds_of_a_mark_leave_measurements_out_in_a_resumed_run_too(tmp_path, monkeypatch):
    """Steps take 1 second and measurements 10. The last measurement before a checkpoint is in neither figure."""
    clock = Clock()
    for module in ("rewarddance.core.loop", "rewarddance.lab.alignment_arm"):
        monkeypatch.setattr(f"{module}.time", clock)

    def slow():
        clock.pass_by(10)
        return 0.1

    def tick():
        clock.pass_by(1)

    assert watched(tmp_path, [slow] * 2, tick=tick)[0].step == 2
    loop, saved = watched(tmp_path, [slow] * 4, resume=True, tick=tick, budget=Budget(generator_passes=40))
    assert (loop.step, saved) == (4, ["work"])
    assert (loop.seconds, loop.extra["measuring"]) == (24, 20)  # the measurements after steps 1 and 3
    assert json.loads((tmp_path / "run" / "marks" / "work" / "mark.json").read_text())["seconds"] == 4


def test_the_proxy_of_a_conservative_ensemble_is_its_win_rate():
    class Conservative:
        def judge(self, comparisons):
            margin = torch.full((len(comparisons),), 1.0)
            return replace(Verdict.from_margin(margin), swapped_margin=-3 * margin)

    media = (Media(torch.zeros(1, 3, 4, 4)),) * 2
    table = _rewards(Conservative(), "fidelity", Samples(("p",), (media,)), [media])
    assert table == pytest.approx(np.full((1, 2), 1 / (1 + np.exp(-2))))  # (1 + 3) / 2


def test_the_kl_has_the_same_states_for_all_seeds(generator):
    generator.add_lora(2, 4.0)
    with torch.no_grad():
        for name, p in generator.trainable()["transformer"].named_parameters():
            if "lora_B" in name:
                p.fill_(0.05)
    first, second = kl_probe(generator, EmbeddedTask(), 2), kl_probe(generator, EmbeddedTask(), 2)
    assert first.measure() == second.measure() > 0
    assert len({p.category for p in first.prompts}) == 5
    with generator.reference():
        assert first.measure() == 0


def written(tmp_path, shifts, features="these"):
    """A folder of measured arms: the start's values plus a shift for each arm and seed."""
    rng = np.random.default_rng(0)
    start, categories = rng.random((10, 2)), ["object"] * 4 + ["count"] * 6
    measured = {"gold": {"benchmark": start.tolist()}, "diversity": {"feature": 2.0, "vendi": 1.5}, "curve": 0.4}
    prompts = {"benchmark": {"texts": ["p"] * 10, "categories": categories}}
    (tmp_path / "start").mkdir()
    (tmp_path / "start/measured.json").write_text(json.dumps({**measured, "prompts": prompts, "features": "these"}))
    for (arm, seed), shift in shifts.items():
        folder = tmp_path / f"{arm}-{seed}" / "marks" / "end"
        folder.mkdir(parents=True)
        gold = {"benchmark": (start + shift).tolist()}
        proxy = {"probe/proxy": 0.6, "probe/gap": 0.1, "verdict": "none"}
        spread = {"feature": 1.8, "vendi": 1.4}
        content = {"gold": gold, "proxy": proxy, "diversity": spread, "features": features}
        (folder / "measured.json").write_text(json.dumps(content))
        work = {"generator_passes": 10, "generator_passes_with_gradient": 5, "judge_calls": 3}
        mark = {"step": 4, "kl": 0.01, "reached": True, "seconds": 5.0, "cpu_seconds": 4.0}
        (folder / "mark.json").write_text(json.dumps({**mark, "work": {**work, "judge_calls_with_gradient": 0}}))


def test_seeds_are_the_units_of_gains_and_differences(tmp_path):
    gains = {("a", 0): 0.3, ("a", 1): 0.1, ("a", 2): 0.2, ("b", 0): 0.1, ("b", 1): 0.0, ("b", 2): 0.05, ("a-0", 5): 9.0}
    written(tmp_path, gains)
    study = AlignmentStudyConfig.model_validate({"arms": {"a": {}, "b": {}}, "baseline": "b"})
    first, second = summarise(study, tmp_path)["marks"]
    assert (first["arm"], first["seeds"], second["minus"]) == ("a", [0, 1, 2], [])
    gain = first["sets"]["benchmark"]
    half = student.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert gain["over_seeds"]["mean"] == pytest.approx(0.2)
    assert gain["over_seeds"]["ci_high"] == pytest.approx(0.2 + half)
    assert gain["over_prompts"]["ci_low"] == pytest.approx(0.2)
    assert gain["categories"]["count"]["over_seeds"]["mean"] == pytest.approx(0.2)
    minus = first["minus"][0]["sets"]["benchmark"]
    assert minus["by_seed"] == pytest.approx({0: 0.2, 1: 0.1, 2: 0.15})
    assert minus["over_seeds"]["ci_low"] == pytest.approx(0.15 - student.ppf(0.975, 2) * 0.05 / np.sqrt(3))
    assert minus["smallest"] > 0.15  # three seeds of this spread could not have shown this difference
    assert first["feature_diversity_ratio"][1] == pytest.approx(0.9)


def test_a_row_is_compared_at_the_same_mark_and_at_the_kl_that_matches_its_own():
    arms = {"refl": {}, "sft": {"match_kl": "refl"}, "nft": {"match_kl": "refl"}, "grpo": {}}
    values = {"arms": arms, "baseline": "sft", "budget": {"generator_passes": 9}}
    study = AlignmentStudyConfig.model_validate(values)
    assert _baselines(study, "refl", "work") == [("sft", "work"), ("sft", "kl")]
    assert _baselines(study, "nft", "work") == [("sft", "work")]
    assert _baselines(study, "nft", "kl") == [("sft", "kl")]
    assert _baselines(study, "grpo", "work") == [("sft", "work")]
    assert _baselines(study, "sft", "kl") == []


def test_a_diversity_in_other_features_is_left_out(tmp_path, capsys):
    """It had a ratio of 1.2 to the start's, which had been measured with an earlier VLM."""
    written(tmp_path, {("a", 0): 0.3}, features="of before")
    study = AlignmentStudyConfig.model_validate({"arms": {"a": {}}})
    row = summarise(study, tmp_path)["marks"][0]
    assert row["feature_diversity_ratio"] == row["vendi"] == {}
    assert "a-0: its diversity was measured with other features" in "".join(capsys.readouterr())


def test_pictures_of_another_version_are_measured_again(tmp_path, monkeypatch):
    """Figures without a version are of version 1; figures of clips are never those of pictures."""
    pictures = SimpleNamespace(features=None, criteria=None)

    def is_measured(**content):
        (tmp_path / "measured.json").write_text(json.dumps({"features": None, **content}))
        return _is_measured(tmp_path, pictures)

    assert not _is_measured(tmp_path, pictures)
    monkeypatch.setattr("rewarddance.lab.study_alignment.PICTURE_VERSION", 1)
    assert is_measured()
    assert is_measured(picture_version=1)
    assert not is_measured(picture_version=1, features="of before")
    assert not is_measured(clip_version=1)
    monkeypatch.setattr("rewarddance.lab.study_alignment.PICTURE_VERSION", 2)
    assert not is_measured()
    assert not is_measured(picture_version=1)
    assert is_measured(picture_version=2)


def test_pictures_of_another_version_than_the_starts_are_left_out(tmp_path, capsys):
    written(tmp_path, {("a", 0): 0.3, ("a", 1): 0.1})
    file = tmp_path / "a-1" / "marks" / "end" / "measured.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"picture_version": 2}))
    row = summarise(AlignmentStudyConfig.model_validate({"arms": {"a": {}}}), tmp_path)["marks"][0]
    assert row["seeds"] == [0]
    assert "a-1: left out, because an earlier version measured its samples" in "".join(capsys.readouterr())


def test_the_samples_of_a_diversity_are_embedded_once(shared, generator, monkeypatch):
    embedded = []

    def features(media):
        embedded.extend(media)
        return torch.stack([m.frames.float().mean((0, 2, 3)) for m in media])

    monkeypatch.setattr("rewarddance.lab.study_alignment.task_features", lambda task: features)
    study, task = study_of(shared, {"refl": {}}), EmbeddedTask()
    found = _spread(study, task, generator)
    assert len(embedded) == study.diversity_prompts * study.diversity_noises
    samples = fixed_samples(generator, task.benchmark()[:: 2 * study.every], 2, 2, 1)
    vendi = [vendi_score(features(row).double().numpy()) for row in samples.media]
    assert found == pytest.approx({**diversity(samples, features), "vendi": np.mean(vendi)})
    assert found["feature"] > 0


def test_shuffled_labels_depend_on_record_and_seed_alone():
    choices = tuple(Choice(0, 1, float(i % 2)) for i in range(200))
    record = PreferenceRecord("a", "p", (), choices)
    once = with_random_labels(record, 0)
    assert once == with_random_labels(record, 0)
    assert once != with_random_labels(record, 1)
    kept = np.mean([a.label == b.label for a, b in zip(once.choices, choices, strict=True)])
    assert 0.35 < kept < 0.65
