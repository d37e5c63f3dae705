"""Judges on Qwen backbones: trained whole and by adapters, saved, and loaded again."""

import pytest
import torch

from rewarddance.core.runs import RunFolder
from rewarddance.core.types import Comparison
from rewarddance.data.parquet import RecordTable
from rewarddance.evaluate.judge import measure_judge
from rewarddance.jobs.load import load_backbone, load_judge
from rewarddance.jobs.train import train_judge
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.context import Context
from rewarddance.reward.judge import new_judge
from rewarddance.reward.train_config import LoraSettings, RewardConfig


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def folder(request, new_qwen, tmp_path):
    return new_qwen(request.param).save(tmp_path / "vlm")


def asked(data_folder):
    media = RecordTable.open(data_folder / "id.parquet")[0].media
    return [
        Comparison("a red circle", media[0], media[1], "fidelity"),
        Comparison("two", media[1], media[2], "fidelity"),
    ]


@pytest.mark.parametrize("how", ["whole", "adapters"])
def test_a_judge_is_trained_saved_and_loaded(folder, data_folder, quick, tmp_path, monkeypatch, how):
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    config = RewardConfig(
        backbone=str(folder),
        data=str(data_folder),
        prompts_per_step=4,
        precision="fp32",
        lora=LoraSettings(rank=2 if how == "adapters" else 0),
        gradient_checkpointing=how == "adapters",
        **quick(num_steps=3),
    )
    train, held_out = (RecordTable.open(data_folder / f"{n}.parquet") for n in ("train", "id"))
    questions = asked(data_folder)
    start = new_judge(JudgeSpec(precision="fp32"), load_backbone(folder)).judge(questions).margin.detach()
    out = train_judge(config, load_backbone(folder), train, {"id": held_out}, tmp_path / "run")
    loaded = load_judge(out, precision="fp32")
    first, again = (loaded.judge(questions) for _ in range(2))
    assert torch.equal(first.margin, again.margin)
    # what is on the disk, adapters merged, says what the judge said at its last validation
    trained, saved = RunFolder(tmp_path / "run").metrics()[-1], measure_judge(loaded, held_out)
    for name in ("disagreement", "answer_mass", "spearman", "accuracy"):
        assert trained[f"id/{name}"] == pytest.approx(saved[name], rel=1e-3), name
    assert not torch.allclose(first.margin, start, atol=1e-4)
    assert first.disagreement is not None


def test_a_frozen_tower_stays_and_its_projection_learns(folder, data_folder, quick, tmp_path):
    config = RewardConfig(
        backbone=str(folder), prompts_per_step=4, precision="fp32", freeze_vision=True, **quick(num_steps=3)
    )
    train = RecordTable.open(data_folder / "train.parquet")
    before = {k: v.clone() for k, v in load_backbone(folder).vision.state_dict().items()}
    train_judge(config, backbone := load_backbone(folder), train, {}, tmp_path / "run")
    moved = {k for k, v in backbone.vision.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in moved} == {k.split(".")[0] for k in before if "merger" in k}


def test_a_qwen_judge_thinks_aloud(folder, data_folder, monkeypatch):
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    context = Context(cot="reason_first", samples=2, max_reason_tokens=3)
    judge = new_judge(JudgeSpec(context=context, precision="fp32"), load_backbone(folder))
    assert judge.judge(asked(data_folder)).margin.isfinite().all()
