"""At the end of training a temperature is fitted on prompts kept apart, saved with the judge, and used by it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.runs import RunFolder
from rewarddance.core.statistics import fit_temperature
from rewarddance.core.streams import stream
from rewarddance.evaluate.calibration import expected_calibration_error
from rewarddance.jobs.load import load_backbone, load_judge
from rewarddance.jobs.train import train_judge
from rewarddance.reward.train_config import RewardConfig
from rewarddance.reward.training import set_aside


def records(num=240):
    """The brighter picture is preferred, always."""
    made = []
    for i in range(num):
        levels = stream(0, "levels", i).random(3)
        media = tuple(Media(torch.full((1, 3, 48, 48), round(v * 255) / 255)) for v in levels.tolist())
        choices = tuple(Choice(a, b, float(levels[a] > levels[b])) for a, b in ((0, 1), (1, 2), (2, 0)))
        made.append(PreferenceRecord(f"r{i}", f"prompt {i}", media, choices, "fidelity"))
    return made


def config(vlm_folder, **changes):
    return RewardConfig(
        backbone=str(vlm_folder),
        paradigm="bradley_terry",
        label_smoothing=0.8,  # it learns to be far less sure than it may be
        prompts_per_step=6,
        precision="fp32",
        optim=OptimConfig(lr=3e-3),
        loop=LoopConfig(num_steps=12),
        **changes,
    )


@pytest.fixture(scope="module")
def trained(vlm_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibrated")
    train_judge(config(vlm_folder), load_backbone(vlm_folder), records(), {}, out)
    return out / "model"


def test_the_kept_temperature_is_the_likeliest_on_the_prompts_kept_apart(trained, vlm_folder):
    kept = json.loads((trained / "judge.json").read_text())["calibration"]
    judge = load_judge(trained, precision="fp32")
    assert judge.spec.calibration.temperature == kept["temperature"] < 0.9
    _, apart, _ = set_aside(records(), config(vlm_folder))
    assert len(apart) == 12
    asked = [c for r in apart for c in r.comparisons()]
    assert kept["num_choices"] == len(asked) == 36
    with torch.no_grad():
        raw, scaled = judge.single.judge(asked).margin.double().numpy(), judge.judge(asked).margin.double().numpy()
    labels = np.array([c.label for c in asked])
    assert scaled == pytest.approx(raw / kept["temperature"], rel=1e-4, abs=1e-5)
    assert kept["temperature"] == pytest.approx(fit_temperature(raw, labels), rel=1e-2)
    errors = [expected_calibration_error(expit(m), labels) for m in (raw, scaled)]
    assert kept["ece_before"] == pytest.approx(errors[0], abs=1e-3)
    assert errors[1] < errors[0]
    assert kept["ece_after"] < kept["ece_before"]


def test_without_prompts_kept_apart_nothing_is_fitted(vlm_folder, tmp_path):
    settings = config(vlm_folder).model_copy(update={"loop": LoopConfig(num_steps=1)})
    for name, given, changes in (("few", records(40), {}), ("none", records(170), {"calibration_prompts": 0})):
        train_judge(settings.model_copy(update=changes), load_backbone(vlm_folder), given, {}, tmp_path / name)
        kept = json.loads((tmp_path / name / "model" / "judge.json").read_text())["calibration"]
        assert kept == {
            "temperature": 1.0,
            "ece_before": None,
            "ece_after": None,
            "noise_floor": None,
            "num_choices": 0,
            "num_refused": 0,
            "not_fitted": None,
        }


LONG = "a red circle " * 800


def overlong(given, num_answered):
    """The records, where only so many of those kept apart keep a prompt that a judge can be asked about.

    The prompts keep their order, so that the same ones are kept apart.
    """
    _, apart, _ = set_aside(given, config("tiny"))
    bad = {r.record_id for r in apart[num_answered:]}
    return [replace(r, prompt=f"{r.prompt} {LONG}") if r.record_id in bad else r for r in given]


@pytest.mark.parametrize("num_answered", [6, 1, 0])
def test_records_that_are_refused_at_the_end_lose_no_judge(num_answered, vlm_folder, tmp_path, capsys):
    settings = config(vlm_folder).model_copy(update={"loop": LoopConfig(num_steps=1)})
    given = overlong(records(160), num_answered)
    assert sum(LONG in r.prompt for r in set_aside(given, settings)[1]) == 8 - num_answered
    train_judge(settings, load_backbone(vlm_folder), given, {}, tmp_path)
    kept = load_judge(tmp_path / "model").spec.calibration
    assert kept.num_refused == 8 - num_answered
    said = capsys.readouterr().err
    if num_answered == 6:
        assert (kept.num_choices, kept.not_fitted) == (18, None)
        assert kept.ece_before is not None
        assert "fitted on 18 choices" in said
        assert "2 refused records were left out" in said
    else:
        assert (kept.temperature, kept.num_choices) == (1.0, 0)
        left = "one prompt only" if num_answered else "no answered choice"
        assert left in kept.not_fitted
        assert f"{8 - num_answered} of 8 records were refused: the question has 2," in kept.not_fitted
        (line,) = [text for text in said.splitlines() if "no final temperature" in text]
        assert kept.not_fitted in line


@pytest.mark.parametrize("num_answered", [2, 0])
def test_refused_records_of_a_validation_do_not_stop_the_run(num_answered, vlm_folder, tmp_path, capsys):
    changes = {"loop": LoopConfig(num_steps=4, validate_every=2), "patience": 2}
    settings = config(vlm_folder).model_copy(update=changes)
    given = records(8)
    held_out = [*given[:num_answered], *(replace(r, prompt=LONG) for r in given[num_answered:5])]
    train_judge(settings, load_backbone(vlm_folder), given, {"id": held_out}, tmp_path)
    assert load_judge(tmp_path / "model").spec.trained
    validated = [m for m in RunFolder(tmp_path).metrics() if "id/num_pairs" in m]
    assert [m["step"] for m in validated] == [2, 4]
    for m in validated:
        assert m["id/num_refused"] == 3 * (5 - num_answered)
        assert m["id/num_pairs"] == 3 * num_answered
        assert (m["id/accuracy"] is None) == (num_answered == 0)
    assert (tmp_path / "best.safetensors").is_file() == (num_answered > 0)
    assert f"id: {5 - num_answered} of 5 records refused: the question has 2," in capsys.readouterr().err
