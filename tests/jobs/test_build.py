"""Pretraining of the embedded models in a few steps: losses fall, stops resume, folders load."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rewarddance.core.errors import RunError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import stream
from rewarddance.data.parquet import RecordTable
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.build.assets import ship
from rewarddance.jobs.build.autoencoder import AutoencoderConfig, train_autoencoder
from rewarddance.jobs.build.generator import GeneratorConfig, train_generator
from rewarddance.jobs.build.preferences import PreferencesConfig, embedded_records, generator_draw
from rewarddance.jobs.build.vlm import VlmConfig, collate, lesson_messages, train_vlm
from rewarddance.jobs.data_build import build_data
from rewarddance.vlm.encoding import Encoded
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.tiny import SIZES, Size
from rewarddance.world.oracle import judge
from rewarddance.world.questions import lesson


def quick(num_steps, **optim):
    loop = LoopConfig(num_steps=num_steps, validate_every=num_steps, save_every=1)
    return {"loop": loop, "optim": OptimConfig(lr=2e-3, **optim)}


def test_autoencoder_then_generator_then_package(tmp_path):
    vae = train_autoencoder(AutoencoderConfig(batch_size=4, **quick(8)), tmp_path / "ae")
    losses = [m["mse"] for m in RunFolder(tmp_path / "ae").metrics()]
    assert losses[-1] < losses[0]
    config = GeneratorConfig(batch_size=4, **quick(2, name="muon", ema_decay=0.9))
    train_generator(config, vae, tmp_path / "gen")
    ship(tmp_path / "gen", tmp_path / "package")
    weights = load_file(tmp_path / "package" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(w.dtype == torch.bfloat16 for w in weights.values())
    facts = json.loads((tmp_path / "package" / "training.json").read_text())
    assert facts["trained"]["steps"] == 2
    generator = Sd3Generator.load(tmp_path / "package")
    z = generator.noise(1, torch.Generator().manual_seed(0))
    assert generator.velocity(z, 0.5, generator.condition(["hello"])).shape == (1, 8, 12, 12)


def test_vlm_pretraining_and_its_resume(tmp_path):
    SIZES["test"] = Size(64, 2, 64, 2, 2)
    config = VlmConfig(size="test", batch_size=8, num_questions=2, **quick(4, name="muon", ema_decay=0.9))
    folder = train_vlm(config, tmp_path / "whole")
    assert InternVLBackbone.load(folder).model.config.image_seq_length == 16
    stopped = config.model_copy(update={"loop": config.loop.model_copy(update={"max_seconds": 1e-9})})
    for i in range(4):
        train_vlm(stopped, tmp_path / "parts", resume=i > 0)
    a, b = ([m["loss"] for m in RunFolder(tmp_path / n).metrics()] for n in ("whole", "parts"))
    assert a == pytest.approx(b, rel=1e-4)
    assert a[-1] < a[0]


def test_lessons_become_chats():
    found = lesson(stream(0, "chat"), 3)
    messages = lesson_messages(found)
    assert [role for role, _ in messages] == ["user", "assistant"] * len(found.turns)
    assert sum(isinstance(p, Media) for p in messages[0][1]) == len(found.images)


def test_loss_weights_single_out_one_word_answers():
    answers = (False, True, True, False, True, True, True, False)
    ids, mask, weight = collate([Encoded(tuple(range(1, 9)), (), answers)], 0, 3.0)
    assert ids.shape == (1, 32)
    assert mask.sum() == 8
    assert weight[0, :8].tolist() == [0, 3, 1, 0, 1, 1, 1, 0]


def test_preferences_follow_the_oracle_and_repeat(generator):
    config = PreferencesConfig(num_prompts=6, pictures=3, generator_share=0.5)
    first, second = (list(embedded_records(config, generator_draw(generator, 4))) for _ in range(2))
    assert [r.source for r in first] == ["generator"] * 3 + ["rendered"] * 3
    for a, b in zip(first, second, strict=True):
        assert a.choices == b.choices
        assert [m.key for m in a.media] == [m.key for m in b.media]
        assert a.truth == pytest.approx([judge(m.to_numpy(), a.prompt).fidelity for m in a.media])


def test_labels_agree_with_the_truth_unless_shuffled():
    def agreement(**changes):
        records = embedded_records(PreferencesConfig(num_prompts=60, **changes))
        pairs = [(c.label - 0.5, r.truth[c.first] - r.truth[c.second]) for r in records for c in r.choices]
        clear = [a * b > 0 for a, b in pairs if a and abs(b) > 0.1]
        return sum(clear) / len(clear)

    assert agreement() > 0.85
    assert 0.35 < agreement(shuffle_labels=True) < 0.65


def test_a_stopped_data_build_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.jobs.data_build.SHARD", 4)
    config = PreferencesConfig(num_prompts=10, pictures=2)
    build_data(config, 3, None, tmp_path / "whole")
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        yield from embedded_records(*args)

    with monkeypatch.context() as patch:
        patch.setattr("rewarddance.jobs.data_build.embedded_records", failing)
        with pytest.raises(KeyboardInterrupt):
            build_data(config, 3, None, tmp_path / "parts")
    build_data(config, 3, None, tmp_path / "parts")
    for name in ("train", "id", "ood"):
        a, b = (RecordTable.open(tmp_path / x / f"{name}.parquet") for x in ("whole", "parts"))
        assert a.table.equals(b.table)
    with pytest.raises(RunError, match="another configuration"):
        build_data(config, 5, None, tmp_path / "parts")
