"""Judge training and ReFL: golden trajectories, repetition, resume after a stop."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import GOLDEN, Redness, check_golden, reward_config, same, trajectory

from rewarddance.align.config import AlignConfig, ReferenceConfig, ReflConfig
from rewarddance.core.errors import InputError, JudgementError, RunError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.monitors import StuckLoss
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.runs import RunFolder
from rewarddance.core.types import Comparison, Verdict
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.load import ASSETS, load_backbone, load_generator, load_judge
from rewarddance.jobs.train import train_from_data, train_judge
from rewarddance.reward.config import PARADIGMS
from rewarddance.reward.context import Context
from rewarddance.reward.train_config import LoraSettings, RewardConfig


def align(pipeline_folder, judge_folder, out, num_steps=4, algorithm="refl", resume=False, kind="best_of_n", every=2):
    config = AlignConfig(
        precision="fp32",
        num_prompts=6,
        batch_size=3,
        lora_rank=4,
        algorithm=algorithm,
        probe_prompts=3,
        references=ReferenceConfig(kind=kind, num_candidates=2, refresh="steps", every=3),
        refl=ReflConfig(num_steps=4),
        optim=OptimConfig(lr=1e-3, ema_decay=0.9),
        loop=LoopConfig(num_steps=num_steps, validate_every=every, save_every=2),
    )
    judge = load_judge(judge_folder, precision="fp32")
    judge.single.strict = False
    return align_generator(config, Sd3Generator.load(pipeline_folder), judge, out, resume=resume)


@pytest.fixture(scope="module")
def trained(vlm_folder, data_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    train_from_data(golden_config(vlm_folder, data_folder), out)
    return out


def golden_config(vlm_folder, data_folder, lr=4e-3, num_steps=30, **changes):
    return RewardConfig(
        backbone=str(vlm_folder),
        data=str(data_folder),
        prompts_per_step=4,
        precision="fp32",
        optim=OptimConfig(lr=lr, warmup_steps=2),
        loop=LoopConfig(num_steps=num_steps, validate_every=15, save_every=10),
        **changes,
    )


def test_reward_training_follows_the_golden_trajectory(trained):
    check_golden("reward", trajectory(trained, "loss", "grad_norm", "answer_mass"), rel=2e-2, abs=2e-4)


def from_the_shipped_judge(data_folder, out, **changes):
    """From a model that has opinions, so that labels and scales show at once; a random one learns to answer first."""
    train_from_data(golden_config(ASSETS / "judge-tiny", data_folder, **{"lr": 5e-4} | changes), out)
    return trajectory(out, "loss", "grad_norm", "margin_std")


def test_a_trained_judges_further_training_follows_the_golden_trajectory(data_folder, tmp_path):
    check_golden("reward_warm", from_the_shipped_judge(data_folder, tmp_path / "run"), rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("change", [{"shuffle_labels": True}, {"label_smoothing": 0.1}, {"lr": 7.5e-4}])
def test_the_golden_reward_trajectory_catches_changed_labels_and_scales(change, data_folder, tmp_path):
    golden = json.loads((GOLDEN / "reward_warm.json").read_text())
    found = from_the_shipped_judge(data_folder, tmp_path / "run", num_steps=4, **change)
    with pytest.raises(AssertionError):
        same(found, {k: v[:4] for k, v in golden.items()}, rel=2e-2, abs=2e-3)


def test_the_golden_reward_trajectory_catches_labels_of_the_wrong_side(data_folder, tmp_path, monkeypatch):
    golden = json.loads((GOLDEN / "reward_warm.json").read_text())
    right = PreferenceRecord.comparisons

    def wrong(self, **how):
        return [replace(c, label=1 - c.label) for c in right(self, **how)]

    monkeypatch.setattr(PreferenceRecord, "comparisons", wrong)
    found = from_the_shipped_judge(data_folder, tmp_path / "run", num_steps=4)
    with pytest.raises(AssertionError):
        same(found, {k: v[:4] for k, v in golden.items()}, rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_adapters_may_be_trained_beside_the_vision_tower(weights, vlm_folder, data_folder, quick, tmp_path, capsys):
    config = reward_config(vlm_folder, data_folder, quick, num_steps=2)
    tuned = {"lora": LoraSettings(rank=2, vision=True), "weights": weights, "precision": "bf16"}
    config = config.model_copy(update=tuned)
    train_from_data(config, tmp_path / "run")
    kept = load_file(tmp_path / "run" / "checkpoints" / "step_2" / "tensors.safetensors")
    assert {v.dtype for k, v in kept.items() if k.startswith("model/")} == {torch.float32}
    assert ("of what the merged adapters change" in capsys.readouterr().err) == (weights == "bf16")
    before, after = (load_backbone(f).vision.state_dict() for f in (vlm_folder, tmp_path / "run" / "model"))
    assert not all(torch.equal(v, after[k]) for k, v in before.items())


def test_training_lowers_the_loss_and_learns_to_answer(trained):
    found = trajectory(trained, "loss", "answer_mass")
    assert found["loss"][-1] < found["loss"][0] - 1
    assert found["answer_mass"][-1] > 0.9


def test_a_trained_run_is_a_judge(trained, pictures):
    judge = load_judge(trained)
    ranking = judge.rank("a red circle", pictures[:3])
    assert sorted(ranking.order) == [0, 1, 2]
    assert judge.criterion == judge.spec.criteria[0] == "fidelity"


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_resumed_training_equals_unbroken_training(paradigm, vlm_folder, data_folder, quick, tmp_path):
    whole = reward_config(vlm_folder, data_folder, quick, paradigm, num_steps=4)
    train_from_data(whole, tmp_path / "whole")
    stopped = whole.model_copy(update={"loop": whole.loop.model_copy(update={"max_seconds": 1e-9})})
    for i in range(3):
        with pytest.raises(RunError, match="out of time"):
            train_from_data(stopped, tmp_path / "parts", resume=i > 0)
        assert not (tmp_path / "parts" / "model").exists()
    train_from_data(whole, tmp_path / "parts", resume=True)  # a time limit may change, nothing else
    keys = ("loss", "grad_norm", "accuracy", "id/accuracy")
    same(trajectory(tmp_path / "parts", *keys), trajectory(tmp_path / "whole", *keys), rel=1e-5)


def test_a_stopped_run_goes_on_with_another_rate_and_smaller_passes(vlm_folder, data_folder, quick, tmp_path):
    """What error messages advise after a divergence or out of memory."""
    config = reward_config(vlm_folder, data_folder, quick, num_steps=4)
    stopped = config.model_copy(update={"loop": config.loop.model_copy(update={"max_seconds": 1e-9})})
    for i in range(3):
        with pytest.raises(RunError, match="out of time"):
            train_from_data(stopped, tmp_path / "run", resume=i > 0)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    train_from_data(config, tmp_path / "run", resume=True)
    gentle = config.model_copy(update={"micro_batch": 2, "optim": config.optim.model_copy(update={"lr": 1e-9})})
    train_from_data(gentle, tmp_path / "other", resume=True)
    state = json.loads(max((tmp_path / "other" / "checkpoints").glob("step_*/state.json")).read_text())
    assert state["extra"]["micro_batch"] == 2
    same(*(trajectory(tmp_path / n, "loss") for n in ("other", "run")), rel=1e-5)  # the rate of a step shows after it
    weights = [load_backbone(tmp_path / n / "model").module.get_input_embeddings().weight for n in ("run", "other")]
    assert float((weights[0] - weights[1]).detach().abs().max()) > 1e-5


def test_what_a_run_has_noticed_survives_a_stop(vlm_folder, data_folder, quick, tmp_path, monkeypatch):
    watch = partial(StuckLoss, after=3, window=3, tolerance=10.0)
    monkeypatch.setattr("rewarddance.reward.training.StuckLoss", watch)
    config = reward_config(vlm_folder, data_folder, quick, num_steps=4)
    stopped = config.model_copy(update={"loop": config.loop.model_copy(update={"max_seconds": 1e-9})})
    out = tmp_path / "run"
    for i in range(2):
        with pytest.raises(RunError, match="out of time"):
            train_from_data(stopped, out, resume=i > 0)
    state_file = max((out / "checkpoints").glob("step_*/state.json"))
    state = json.loads(state_file.read_text())
    assert state["extra"]["micro_batch"] == config.prompts_per_step
    state_file.write_text(json.dumps(state | {"extra": {**state["extra"], "micro_batch": 2}}))  # as after a halving
    train_from_data(config, out, resume=True)
    assert ["warning" in m for m in RunFolder(out).metrics()] == [False, False, True, False]
    last = max((out / "checkpoints").glob("step_*/state.json"))
    assert json.loads(last.read_text())["extra"]["micro_batch"] == 2


@pytest.mark.parametrize("layout", ["two_questions", "listwise"])
def test_adapters_layouts_and_checkpointing_train_a_judge_that_loads(layout, vlm_folder, data_folder, quick, tmp_path):
    config = reward_config(vlm_folder, data_folder, quick, num_steps=3).model_copy(
        update={
            "lora": LoraSettings(rank=2),
            "gradient_checkpointing": True,
            "dropout": 0.1,
            "context": Context(layout=layout),
        }
    )
    train_from_data(config, tmp_path / "whole")
    parts = config.model_copy(update={"loop": config.loop.model_copy(update={"max_seconds": 1e-9})})
    for i in range(2):
        with pytest.raises(RunError, match="out of time"):
            train_from_data(parts, tmp_path / "parts", resume=i > 0)
    train_from_data(parts, tmp_path / "parts", resume=True)
    keys = ("loss", "grad_norm", "id/accuracy")
    same(trajectory(tmp_path / "parts", *keys), trajectory(tmp_path / "whole", *keys), rel=1e-5)
    judge = load_judge(tmp_path / "whole")
    assert judge.spec.context.layout == layout
    before, after = (load_backbone(f).vision.state_dict() for f in (vlm_folder, tmp_path / "whole" / "model"))
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_a_judge_sees_large_pictures_in_the_parts_that_it_was_trained_on(vlm_folder, quick, tmp_path):
    rng = np.random.default_rng(0)
    media = [tuple(Media.from_numpy(rng.integers(0, 256, (96, 144, 3), np.uint8)) for _ in range(2)) for _ in range(20)]
    records = [PreferenceRecord(f"r{i}", f"a dog {i}", m, (Choice(0, 1, float(i % 2)),)) for i, m in enumerate(media)]
    write_rows((row_of(r) for r in records), tmp_path / "data" / "train.parquet")
    config = RewardConfig(
        backbone=str(vlm_folder), data=str(tmp_path / "data"), paradigm="bradley_terry", prompts_per_step=2, tiles=6,
        precision="fp32", **quick(num_steps=1),
    )  # fmt: skip
    train_from_data(config, tmp_path / "run")
    judge, whole = load_judge(tmp_path / "run"), load_judge(tmp_path / "run", tiles=1)
    asked = records[0].comparisons()
    assert judge.engine.backbone.prepare.tiles == 6
    assert not torch.equal(judge.judge(asked).margin, whole.judge(asked).margin)


def test_equal_configurations_give_equal_trajectories_and_resume_is_exact(pipeline_folder, trained, tmp_path):
    keys = ("loss", "reward", "kl", "grad_norm", "probe/proxy", "probe/gold", "references_from")
    for name in ("a", "b"):
        align(pipeline_folder, trained, tmp_path / name)
    same(trajectory(tmp_path / "a", *keys), trajectory(tmp_path / "b", *keys), rel=1e-6)
    folder = RunFolder(tmp_path / "b")
    for step in (4,):  # forget the end of run b, as a kill after step 2 would
        shutil.rmtree(folder.checkpoints / f"step_{step}")
    align(pipeline_folder, trained, tmp_path / "b", resume=True)
    same(trajectory(tmp_path / "b", *keys), trajectory(tmp_path / "a", *keys), rel=1e-5, abs=1e-7)


def test_gradients_of_several_passes_are_those_of_one(pipeline_folder, tmp_path, monkeypatch):
    """Every pass weighs as many pictures as it has."""

    def known_gradient(generator, judge, prompts, references, *rest):
        weights = sum(p.sum() for n, p in generator.transformer.named_parameters() if p.requires_grad)
        mean = sum(len(p.text) for p in prompts) / len(prompts)
        metrics = {k: torch.tensor(mean) for k in ("reward", "reward_std", "kl", "margin", "time")}
        return metrics | {
            "loss": mean * weights,
            "num_answered": torch.tensor(len(prompts)),
            "num_judged": torch.tensor(len(prompts)),
        }

    monkeypatch.setattr("rewarddance.align.refl_run.refl_step", known_gradient)
    found = []
    for micro in (0, 1, 2):
        config = AlignConfig(
            num_prompts=6, batch_size=3, micro_batch=micro, lora_rank=2, probe_prompts=2,
            references=ReferenceConfig(num_candidates=2), refl=ReflConfig(num_steps=4),
            optim=OptimConfig(lr=1e-9), loop=LoopConfig(num_steps=2),
        )  # fmt: skip
        out = tmp_path / str(micro)
        align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), out)
        found.append(trajectory(out, "grad_norm", "reward"))
    same(found[1], found[0], rel=1e-5)
    same(found[2], found[0], rel=1e-5)


class Moody:
    """Refuses some of the comparisons of its n-th call."""

    criterion = "fidelity"

    def __init__(self, refuses):
        self.calls, self.refuses = 0, refuses

    def judge(self, comparisons):
        self.calls += 1
        verdict = Verdict.from_margin(torch.stack([c.candidate.frames.mean() for c in comparisons]))
        return verdict.refuse({i: "unclear" for i in range(len(comparisons)) if self.refuses(self.calls, i)})


def test_refused_pictures_are_left_out_of_a_step_and_counted_and_many_end_the_run(
    pipeline_folder, tmp_path, quick_align
):
    """The first probe asks once about 4 pictures and twice about each for the sensitivity; a step asks about two."""
    config = quick_align("none")
    loop, references = LoopConfig(num_steps=4, validate_every=4), ReferenceConfig(kind="random")
    config = config.model_copy(update={"loop": loop, "references": references})
    out = tmp_path / "some"
    moody = Moody(lambda call, i: (call, i) in {(11, 0), (12, 0), (12, 1)})
    align_generator(config, load_generator(pipeline_folder), moody, out)
    lines = {m["step"]: m for m in RunFolder(out).metrics()}
    assert [lines[i].get("refused") for i in (1, 2, 3, 4)] == [None, 1, 2, None]
    assert lines[3]["reward"] is None
    assert all(0 < lines[i]["reward"] < 1 and lines[i]["reward_std"] >= 0 for i in (1, 2, 4))
    assert lines[2]["reward_std"] == 0  # of the one picture that was answered
    assert all(lines[i]["grad_norm"] > 0 for i in (1, 2, 4))
    with pytest.raises(JudgementError, match="the judge refused 8 of 8 pictures; last in step 3"):
        align_generator(config, load_generator(pipeline_folder), Moody(lambda call, i: call > 1), tmp_path / "all")


@pytest.mark.parametrize(("algorithm", "kind"), [("sft", "best_of_n"), ("refl", "random"), ("refl", "none")])
def test_controls_and_reference_kinds_run(algorithm, kind, pipeline_folder, trained, vlm_folder, tmp_path):
    judge = vlm_folder if kind == "none" else trained
    adapter = align(pipeline_folder, judge, tmp_path / "run", num_steps=2, algorithm=algorithm, kind=kind)
    assert (adapter / "adapter.safetensors").is_file()


def test_a_judge_trained_to_compare_does_not_judge_a_picture_alone(trained, pictures):
    found = load_judge(trained).judge([Comparison("a red circle", p) for p in (pictures[0], pictures[1])])
    assert list(found.refused) == [0, 1]
    assert "trained to compare" in found.refused[0]


def test_early_stopping_by_pairs_that_are_all_ties_says_so(vlm_folder, data_folder, quick, tmp_path):
    records = RecordTable.open(data_folder / "train.parquet")
    ties = [replace(r, choices=(Choice(0, 1, 0.5),), truth=None) for r in records[:3]]
    config = reward_config(vlm_folder, data_folder, quick, num_steps=2, validate_every=1)
    config = config.model_copy(update={"patience": 2})
    with pytest.raises(InputError, match=r"patience: no pair of id/accuracy is decided"):
        train_judge(config, load_backbone(vlm_folder), records, {"id": ties}, tmp_path / "run")


def test_early_stopping_keeps_the_best_weights(vlm_folder, data_folder, quick, tmp_path, monkeypatch):
    accuracies, seen = iter([0.5, 0.7, 0.6, 0.65, 0.9]), []

    def scripted(judge, records, shared, max_refused):
        seen.append(judge.engine.backbone.module.get_input_embeddings().weight.detach().clone())
        return {"accuracy": next(accuracies)}

    monkeypatch.setattr("rewarddance.jobs.train.measure_judge", scripted)
    config = reward_config(vlm_folder, data_folder, quick, num_steps=20, validate_every=1)
    config = config.model_copy(update={"patience": 2})
    records = RecordTable.open(data_folder / "train.parquet")
    train_judge(config, load_backbone(vlm_folder), records, {"id": records}, tmp_path / "run")
    assert len(seen) == 4
    assert "has not risen" in RunFolder(tmp_path / "run").metrics()[-1]["stopped"]
    kept = load_backbone(tmp_path / "run" / "model").module.get_input_embeddings().weight
    assert torch.equal(kept, seen[1])
