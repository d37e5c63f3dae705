"""FSDP2 on two real processes: the same losses, weights and figures as one process alone, and checkpoints that any
number of processes goes on from."""

import shutil

import pytest
import torch
from processes import run_processes
from safetensors.torch import load_file

from rewarddance.core.errors import ConfigError
from rewarddance.core.runs import RunFolder
from rewarddance.core.sharding import mesh_of
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.train import train_judge
from rewarddance.reward.train_config import RewardConfig
from rewarddance.vlm.registry import load_backbone_folder

PROGRAM = """
import sys
from functools import partial
from pathlib import Path
import torch
from rewarddance.core.parallel import process_group
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.train import train_judge
from rewarddance.reward.train_config import RewardConfig
from rewarddance.reward import judge
from rewarddance.vlm.registry import load_backbone_folder
from rewarddance.vlm.engine import Engine

torch.set_num_threads(1)
judge.Engine = partial(Engine, budget=700, image_budget=5)  # several passes, not as many on every process
vlm, data, out, config, resume = sys.argv[1:]
with process_group():
    train = RecordTable.open(Path(data) / "train.parquet")
    held = {"id": RecordTable.open(Path(data) / "id.parquet")}
    config = RewardConfig.model_validate_json(config)
    backbone = load_backbone_folder(vlm, torch.bfloat16 if config.weights == "bf16" else torch.float32)
    train_judge(config, backbone, train, held, Path(out), resume=resume == "resume")
"""


def in_processes(num, vlm, data, out, config, resume=""):
    program = out.parent / "program.py"
    program.write_text(PROGRAM)
    run_processes(num, program, vlm, data, out, config.model_dump_json(), resume)


def alone(vlm, data, out, config, resume=False):
    train, held = RecordTable.open(data / "train.parquet"), {"id": RecordTable.open(data / "id.parquet")}
    backbone = load_backbone_folder(vlm, torch.bfloat16 if config.weights == "bf16" else torch.float32)
    return train_judge(config, backbone, train, held, out, resume=resume)


def recipe(quick, **changes):
    given = {
        "prompts_per_step": 5,
        "micro_batch": 2,
        "precision": "fp32",
        "patience": 3,
        "gradient_checkpointing": True,
    }
    return RewardConfig.model_validate({**given, **quick(4), **changes})


@pytest.fixture(scope="module")
def whole(vlm_folder, data_folder, quick, tmp_path_factory):
    """The run of one process with the plain recipe."""
    out = tmp_path_factory.mktemp("whole") / "run"
    alone(vlm_folder, data_folder, out, recipe(quick))
    return out


def assert_same(first, second):
    losses = [[m["loss"] for m in RunFolder(f).metrics()] for f in (first, second)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    a, b = load_file(first / "model" / "model.safetensors"), load_file(second / "model" / "model.safetensors")
    assert a.keys() == b.keys()
    for name, weight in a.items():
        torch.testing.assert_close(b[name], weight, rtol=1e-4, atol=2e-5, msg=name)
    was, now = ([m["id/accuracy"] for m in RunFolder(f).metrics() if "id/accuracy" in m] for f in (first, second))
    assert was == pytest.approx(now, abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),  # the test of resumption below says it too
        pytest.param(
            {"lora": {"rank": 2}, "freeze_vision": True}, marks=pytest.mark.slow
        ),  # adapters have a test below
        pytest.param({"paradigm": "bradley_terry"}, marks=pytest.mark.slow),
    ],
    ids=["full", "lora", "bradley_terry"],
)
def test_two_processes_that_share_the_weights_do_what_one_does(changes, vlm_folder, data_folder, quick, tmp_path):
    config = recipe(quick, **changes)
    alone(vlm_folder, data_folder, tmp_path / "one", config)
    in_processes(2, vlm_folder, data_folder, tmp_path / "two", config.model_copy(update={"shard": 2}))
    assert_same(tmp_path / "one", tmp_path / "two")
    one, two = ([m["grad_norm"] for m in RunFolder(tmp_path / n).metrics()] for n in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)


def test_two_whole_copies_that_share_the_records_do_what_one_does(whole, vlm_folder, data_folder, quick, tmp_path):
    """Data-parallel without sharding, records that do not divide evenly."""
    in_processes(2, vlm_folder, data_folder, tmp_path / "two", recipe(quick))
    assert_same(whole, tmp_path / "two")


@pytest.mark.slow
def test_reasons_are_written_by_processes_together(vlm_folder, data_folder, quick, tmp_path):
    """Shared weights, and validation that writes before it judges: not as many calls on every process."""
    config = recipe(quick, context={"cot": "reason_first", "samples": 1, "max_reason_tokens": 3}, patience=0)
    alone(vlm_folder, data_folder, tmp_path / "one", config)
    in_processes(2, vlm_folder, data_folder, tmp_path / "two", config.model_copy(update={"shard": 2}))
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_four_processes_as_two_copies_of_two_shards_do_what_one_does(whole, vlm_folder, data_folder, quick, tmp_path):
    in_processes(4, vlm_folder, data_folder, tmp_path / "four", recipe(quick, shard=2))
    assert_same(whole, tmp_path / "four")


@pytest.mark.slow
def test_adapters_on_sharded_weights_in_bf16_learn(vlm_folder, data_folder, quick, tmp_path):
    config = recipe(quick, lora={"rank": 2}, weights="bf16")
    alone(vlm_folder, data_folder, tmp_path / "one", config)
    in_processes(2, vlm_folder, data_folder, tmp_path / "two", config.model_copy(update={"shard": 2}))
    one, two = ([m["loss"] for m in RunFolder(tmp_path / n).metrics()] for n in ("one", "two"))
    assert two == pytest.approx(one, abs=2e-2)  # sums of bf16 products in another order
    assert two[-1] < two[0]
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("order", [(2, 1), pytest.param((1, 2), marks=pytest.mark.slow)], ids=["two_one", "one_two"])
def test_a_run_is_resumed_by_another_number_of_processes(order, whole, vlm_folder, data_folder, quick, tmp_path):
    config, out = recipe(quick), tmp_path / "parts"
    for part, num in enumerate(order):
        if num > 1:
            sharded = config.model_copy(update={"shard": num})
            in_processes(num, vlm_folder, data_folder, out, sharded, resume="resume")
        else:
            alone(vlm_folder, data_folder, out, config, resume=True)
        if part == 0:
            assert_same(whole, out)
            shutil.rmtree(out / "model")
            shutil.rmtree(out / "checkpoints" / "step_4")
            (out / "best.safetensors").unlink()
    assert_same(whole, out)


def test_processes_that_cannot_be_shared_out_evenly_are_refused():
    with pytest.raises(ConfigError, match="shard: 3 does not divide the 1 processes"):
        mesh_of(3, torch.device("cpu"))
