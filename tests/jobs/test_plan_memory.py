"""The plan against what a real training step really holds, and against published numbers of parameters."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from rewarddance.apps.cli import main
from rewarddance.apps.training import Train
from rewarddance.core.errors import ConfigError
from rewarddance.core.loop import Loop
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.runs import RunFolder
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.plan import (
    Setting,
    adapters,
    choices,
    config_of,
    memory_of,
    parse_memory,
    plan,
)
from rewarddance.reward.accumulate import Accumulator
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.judge import new_judge
from rewarddance.vlm.footprint import Pass, empty_model, kept_by, parts_of
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.memory import LiveBytes
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.vlm.tuning import add_lora, checkpoint_gradients
from rewarddance.world.build.tiny_vlm import new_vlm

SIZE = "tiny-2m"


def measured(setting, tokenizer, records, folder):
    """Bytes at the worst moment of two real steps, and the tokens of a pass."""
    backbone = InternVLBackbone(new_vlm(SIZE, tokenizer), tokenizer, Preprocessor.square(48))
    backbone.module.train()
    if setting.trained == "language":
        backbone.vision.requires_grad_(False)
    if setting.trained == "adapters":
        add_lora(backbone, setting.lora_rank, 32.0)
    if setting.checkpointing:
        checkpoint_gradients(backbone)
    judge = new_judge(JudgeSpec(precision="fp32"), backbone)
    loop = Loop(judge.trainable(), OptimConfig(ema_decay=0.9), LoopConfig(num_steps=2), RunFolder(folder))
    step = Accumulator(judge.single, list(loop.parameters.values()), "generative_pairwise", 0.0, len(records), print)
    live = LiveBytes()
    for tensor in (*backbone.module.parameters(), *loop.ema.shadow.values()):
        live.note(tensor)
    with live:
        for i in range(2):
            step(records, i)
            loop.update()
            loop.ema.update(loop.parameters, i + 1)
    return live.peak, judge.engine.counts.tokens


@pytest.mark.parametrize(
    ("trained", "checkpointing"),
    [
        ("all", False),
        ("adapters", True),
        pytest.param("all", True, marks=pytest.mark.slow),
        pytest.param("language", True, marks=pytest.mark.slow),
    ],
)
def test_memory_is_what_a_real_step_holds(trained, checkpointing, tokenizer, data_folder, tmp_path):
    """On a CPU, with its attention; tests/test_gpu.py has the same on CUDA."""
    table = RecordTable.open(data_folder / "train.parquet")
    records = [table[i] for i in range(4)]
    setting = Setting(trained=trained, checkpointing=checkpointing, compute="fp32")
    peak, tokens = measured(setting, tokenizer, records, tmp_path)
    config, model = config_of(SIZE), empty_model(config_of(SIZE))
    kept = kept_by(model, Pass(4, len(records[0].media), 96), torch.float32, cuda=False)
    assert kept.tokens == pytest.approx(tokens, rel=0.15)
    planned = memory_of(setting, parts_of(model), kept, adapters(config, setting.lora_rank))
    assert planned.total == pytest.approx(peak, rel=0.2)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("1b", 1.1), ("2b", 2.3), ("4b", 4.7), ("8b", 8.5), ("14b", 15.1), ("38b", 38.4)],
)
def test_presets_have_as_many_parameters_as_their_model_cards_say(name, billions):
    parts = parts_of(empty_model(config_of(f"internvl3.5-{name}")))
    assert round(parts.total / 1e9, 1) == billions


def test_sharding_divides_what_it_shares():
    parts, kept = parts_of(empty_model(config_of(SIZE))), kept_by(empty_model(config_of(SIZE)), Pass(1), torch.float32)
    one, eight = (asdict(memory_of(Setting(shard=n), parts, kept)) for n in (1, 8))
    for name in ("weights", "gradients", "optimizer", "average"):
        assert eight[name] == one[name] / 8
    assert eight["activations"] == one["activations"]


def test_the_setting_that_gives_up_least_is_chosen():
    roomy = plan(SIZE, 1, parse_memory("80GB"), Pass(1))
    assert roomy.chosen == Setting(records=1)
    tight = plan(SIZE, 8, parse_memory("60MB"), Pass(1))
    assert tight.chosen is not None
    assert tight.chosen != roomy.chosen
    assert tight.memory.total <= tight.limit
    assert all(m.total > tight.limit for s, m in tight.tried if s != tight.chosen)
    assert plan(SIZE, 1, parse_memory("1MB"), Pass(1)).chosen is None


def test_every_setting_is_flags_that_train_understands():
    for setting in choices(8, 4):
        flags = ["--data", "d", "--out", "o", "--backbone", "internvl3.5-1b", *setting.flags().split()]
        found = Train.read("train", flags).config
        assert (found.micro_batch, found.shard) == (setting.records, setting.shard)
        assert found.gradient_checkpointing == setting.checkpointing
        assert found.weights == setting.weights
        assert (found.lora.rank > 0) == (setting.trained == "adapters")
        assert found.freeze_vision == (setting.trained == "language")
        assert (found.optim.ema_decay > 0) == setting.average
        assert {"auto": "bf16"}.get(found.precision) == setting.compute  # on a GPU


def test_the_command_prints_what_was_found(capsys):
    assert main(["plan", "--backbone", SIZE, "--gpus", "2", "--memory", "60MB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"]["shard"] in (1, 2)
    assert found["flags"].startswith("--micro-batch ")
    with pytest.raises(ConfigError, match="known by name: tiny-2m"):
        config_of("internvl9")
    with pytest.raises(ConfigError, match="give it like 80GB"):
        parse_memory("lots")


def test_main_memory_and_disk_are_counted_too():
    found = plan(SIZE, 8, parse_memory("80GB"), Pass(1))
    assert found.loading == 8 * 4 * found.parts.total
    assert found.checkpoint == 16 * found.parts.total  # weights, two moments, the average
    small = replace(found, chosen=Setting(trained="adapters", weights="bf16"), gpus=1, num_adapters=100)
    assert small.loading == 2 * found.parts.total
    assert small.checkpoint == 1600


def test_larger_pictures_take_more_memory_and_only_what_a_model_takes(monkeypatch):
    model = empty_model(config_of(SIZE))
    one, four = (kept_by(model, Pass(2, tiles=t), torch.float32) for t in (1, 4))
    assert four.vision.total == 5 * one.vision.total  # four parts and the whole
    assert four.tokens > 3 * one.tokens
    qwen = config_of("qwen3-vl-2b")
    assert Pass(1).squares(qwen) == (1, 14**2)
    assert Pass(1, side=1024).squares(qwen) == (1, 32**2)
    with pytest.raises(ConfigError, match="sees pictures whole; give --side"):
        Pass(1, tiles=2).squares(qwen)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("internvl2.5-26b", 25.5),
        ("internvl3.5-38b", 38.4),
        ("qwen2.5-vl-3b", 3.75),
        ("qwen2.5-vl-72b", 73.4),
        ("qwen3-vl-2b", 2.13),
        ("qwen3-vl-8b", 8.77),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, billions):
    assert parts_of(empty_model(config_of(name))).total / 1e9 == pytest.approx(billions, rel=4e-3)


def test_a_llama_text_model_is_planned_too():
    found = plan("internvl2.5-26b", 8, parse_memory("80GB"), Pass(4))
    assert (found.chosen.trained, found.chosen.shard) == ("all", 8)
    assert found.memory.total < found.limit
    assert found.parts.total == 25_514_186_112


def test_the_largest_preset_fits_eight_gpus_by_adapters_on_shared_weights():
    found = plan("internvl3.5-38b", 8, parse_memory("80GB"), Pass(4))
    assert (found.chosen.trained, found.chosen.shard, found.chosen.checkpointing) == ("adapters", 2, True)
    assert found.memory.total < found.limit
    assert all(m.total > found.limit for s, m in found.tried if s != found.chosen)
