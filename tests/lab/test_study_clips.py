"""The study of alignment on clips: good-same-bad against the start and a baseline, and motion."""

import json

import numpy as np
import pytest
import torch
from clip_assets import count_verdicts, write_clip_assets
from safetensors.torch import load_file

from rewarddance.core.errors import ConfigError
from rewarddance.core.statistics import bootstrap
from rewarddance.evaluate.generator import fixed_samples
from rewarddance.jobs.load import load_generator, load_task
from rewarddance.lab.alignment_clips import MEASURES, compare_clip_values
from rewarddance.lab.alignment_config import AlignmentStudyConfig
from rewarddance.lab.study_alignment import study_alignment
from rewarddance.world.motion.task import EmbeddedVideoTask


def test_good_same_bad_and_motion_in_closed_form():
    start = {"oracle": [[0.5, 0.5], [0.5, 0.5]], "degree": [[0.0, 1.0], [1.0, 1.0]]}
    first = {"oracle": [[0.9, 0.55], [0.5, 0.2]], "degree": [[1.0, 1.0], [1.0, 1.0]]}  # good, same, same, bad
    second = {"oracle": [[0.9, 0.9], [0.9, 0.5]], "degree": [[0.0, 0.0], [1.0, 1.0]]}  # good, good, good, same
    figures = compare_clip_values([first, second], [start, start], {"oracle": 0.1})
    own = figures["oracle"]
    assert [own[k] for k in ("good", "same", "bad")] == [4 / 8, 3 / 8, 1 / 8]
    assert own["gsb"]["over_prompts"]["mean"] == pytest.approx(3 / 8)
    assert own["gsb"]["over_seeds"]["mean"] == pytest.approx((0 + 0.75) / 2)
    assert figures["moving"]["after"] == pytest.approx(6 / 8)
    assert figures["moving"]["before"] == pytest.approx(6 / 8)
    assert figures["moving"]["change"]["over_seeds"]["mean"] == pytest.approx(0)
    assert "raters" not in figures
    degree = figures["measures"]["degree"]
    assert [degree[side]["mean"] for side in ("before", "after")] == [0.75, 0.75]
    assert degree["before"] == bootstrap([[0.0, 1.0], [1.0, 1.0]]).as_dict()
    assert set(figures["measures"]) == {"degree"}
    assert "frechet" not in figures


def test_alignment_scores_and_distances_before_and_after_in_closed_form():
    start = {"oracle": [[0.5], [0.5]], "degree": [[0.1], [0.1]], "alignment": [[1.0], [0.5]], "frechet": 0.5}
    first, second = (
        start | {"alignment": [[1.5 + seed], [1.5]], "degree": [[0.1], [0.3]], "frechet": 0.2 + 0.2 * seed}
        for seed in (0, 1)
    )
    figures = compare_clip_values([first, second], [start, start], {"oracle": 0.1})
    scores = figures["measures"]["alignment"]
    assert scores["before"]["mean"] == pytest.approx(0.75)
    assert scores["after"]["mean"] == pytest.approx((1.5 + 1.5 + 2.5 + 1.5) / 4)
    assert scores["change"]["over_prompts"] == bootstrap([[0.5, 1.5], [1.0, 1.0]]).as_dict()
    gap = scores["change"]["over_seeds"]  # 0.75 and 1.25: Student's t of 1 degree is 12.706, the standard error 0.25
    assert (gap["mean"], gap["ci_low"]) == pytest.approx((1.0, 1.0 - 12.706 * 0.25), abs=1e-3)
    assert figures["measures"]["degree"]["change"]["over_prompts"]["mean"] == pytest.approx(0.1)
    assert [figures["frechet"][side] for side in ("before", "after")] == pytest.approx([0.5, 0.3])
    assert figures["frechet"]["change"]["over_seeds"]["mean"] == pytest.approx(-0.2)


def study_of(**values):
    align = {
        "num_prompts": 2,
        "batch_size": 2,
        "micro_batch": 2,
        "lora_rank": 2,
        "probe_prompts": 2,
        "references": {"num_candidates": 2, "refresh": "never"},
        "refl": {"num_steps": 2, "window": [0.5, 0.5]},
        "loop": {"num_steps": 1, "validate_every": 9, "save_every": 1},
    }
    few = {"every": 24, "num_noises": 2, "num_steps": 2, "diversity_prompts": 2, "diversity_noises": 2}
    arms = {"sft": {"align": {"algorithm": "sft"}}, "refl": {}}
    content = {"recipe": "recipes/tiny/t2v-refl.yaml", "align": align, "arms": arms, "baseline": "sft", "seeds": [0]}
    return AlignmentStudyConfig.model_validate({**content, **few, **values})


def measured(out, run):
    return json.loads((out / run / "marks" / "end" / "measured.json").read_text())["clips"]


def test_a_study_of_clips_compares_them_with_the_start_and_the_baseline(vlm_folder, tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    assets.mkdir()
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", write_clip_assets(assets, vlm_folder))
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    out, verdicts, right, draw = (
        tmp_path / "study",
        count_verdicts(monkeypatch),
        [],
        EmbeddedVideoTask.reference_pictures,
    )
    monkeypatch.setattr(EmbeddedVideoTask, "reference_pictures", lambda *args: right.append(args) or draw(*args))
    figures = study_alignment(study_of(), out)
    assert (set(verdicts.values()), len(right)) == ({1}, 1)  # for the start and two arms
    start = json.loads((out / "start" / "measured.json").read_text())
    assert list(start["gold"]) == ["benchmark"]  # clips have no second benchmark
    assert np.array(start["clips"]["oracle"]).tolist() == start["gold"]["benchmark"]
    assert set(start["widths"]) == {"oracle", "raters"}
    assert json.loads((out / "sft-0" / "run.json").read_text())["config"]["guidance"] == 1.0
    assert json.loads((out / "setting.json").read_text())["guidance"] == 3.0  # that of the recipe's samples
    prompts = load_task("embedded-video").benchmark()[::24]
    drawn = fixed_samples(load_generator("tiny-video", guidance=3.0), prompts, 2, 2)
    expected = torch.stack([m.to_bytes() for row in drawn.media for m in row])
    assert torch.equal(load_file(out / "start" / "pictures.safetensors")["pictures"], expected)
    assert set(start["clips"]) == {"oracle", "raters", "frechet", *MEASURES} - {"first_frame"}
    weights = {"fidelity": 0.5, "motion": 0.3, "consistency": 0.2}
    parts = sum(w * np.array(start["clips"][c]) for c, w in weights.items())
    np.testing.assert_allclose(parts, start["clips"]["oracle"])
    sft, refl = figures["marks"]
    for against, before in ((refl["clips"], start["clips"]), (refl["minus"][0]["clips"], measured(out, "sft-0"))):
        after = measured(out, "refl-0")
        for name, f in against["measures"].items():
            means = [float(np.mean(values[name])) for values in (before, after)]
            assert [f["before"]["mean"], f["after"]["mean"]] == pytest.approx(means)
            assert f["change"]["over_seeds"]["mean"] == pytest.approx(means[1] - means[0])
        assert against["frechet"]["change"]["over_seeds"]["mean"] == after["frechet"] - before["frechet"]
    assert 0 < start["clips"]["frechet"] < np.inf
    for own in (sft["clips"], refl["clips"], refl["minus"][0]["clips"]):
        for name in ("oracle", "raters"):
            assert own[name]["good"] + own[name]["same"] + own[name]["bad"] == pytest.approx(1)
    table = (out / "table.md").read_text()
    assert "good / same / bad by simulated raters" in table
    assert "| refl, the end | sft, the end |" in table
    assert "| refl, the end | the start | video-text alignment by simulated raters, 0 to 2 |" in table
    assert "| refl, the end | sft, the end | Fréchet distance |" in table
    assert "Gain in oracle value (fidelity, motion, consistency) over the start" in table


def test_all_arms_share_a_task_that_the_oracles_know():
    with pytest.raises(ConfigError, match="arm refl: task differs from that of arm sft"):
        study_of(arms={"sft": {"align": {"algorithm": "sft"}}, "refl": {"align": {"task": "embedded"}}}).check()
    with pytest.raises(ConfigError, match="take a task of embedded, embedded-video"):
        study_of(align={"task": "my_tasks:Task"}).check()
