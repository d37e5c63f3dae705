"""On CUDA: the same answers as plain forward passes and as on the CPU, and trainings that run. `make gpu` runs them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from dialogs import WORDS, mixed_dialogs, question

from rewarddance import Comparison, Media, load_generator, load_judge
from rewarddance.apps.cli import main
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.runs import RunFolder
from rewarddance.vlm.engine import Engine
from rewarddance.world.build.autoencoder import AutoencoderConfig, train_autoencoder
from rewarddance.world.build.generator import GeneratorConfig, train_generator
from rewarddance.world.build.tiny_vlm import SIZES, Size
from rewarddance.world.build.vision import VisionConfig, pretrain_vision
from rewarddance.world.build.vlm import train_vlm
from rewarddance.world.build.vlm_config import VlmConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    # torch.compile itself reads .grad of tensors that are no leaves, and warns of it
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
PROMPT = "flat drawing of a red circle on white"
KINDS = ["internvl", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture
def asked(pictures):
    return [Comparison(PROMPT, a, b, "fidelity") for a in pictures for b in pictures if a is not b]


@pytest.fixture
def on_cuda(backbone, new_qwen):
    def make(kind, dtype=torch.float32):
        model = backbone if kind == "internvl" else new_qwen(kind)
        model.module.to("cuda", dtype)
        return model

    return make


def plain(model, dialogs):
    """One full forward a dialog, with transformers' own attention."""
    language = model.model.model.language_model
    language.config._attn_implementation = "sdpa"
    del language.layers[-1].forward
    ids = [model.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in WORDS]
    rows = []
    for d in dialogs:
        e = model.encoder.chat([("user", d)])
        tokens = torch.tensor([e.ids], device="cuda")
        inputs = dict(model.picture_inputs([e]))
        if model.needs_types:
            inputs["mm_token_type_ids"] = (tokens == model.image_token_id).int()
        rows.append(model.model(input_ids=tokens, **inputs).logits[0, -1][ids].float())
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("dtype", "kernel", "atol"),
    [(torch.float32, "flex", 1e-3), (torch.bfloat16, "flex", 0.15), (torch.bfloat16, "varlen", 0.15)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_plain_forwards(kind, dtype, kernel, atol, on_cuda, pictures):
    model, dialogs = on_cuda(kind, dtype), mixed_dialogs(pictures)
    model.prefers_varlen = kernel == "varlen"
    with torch.no_grad():
        found = Engine(model).answer_logits(dialogs, WORDS).logits
        assert model.attention_kernel(dtype) == kernel
        torch.testing.assert_close(found, plain(model, dialogs), atol=atol, rtol=0)


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e-2), (torch.bfloat16, 0.1)], ids=["flex", "varlen"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_to_pixels_and_weights_are_those_of_plain_forwards(kind, dtype, far, on_cuda, pictures):
    model = on_cuda(kind, dtype)
    model.prefers_varlen = dtype == torch.bfloat16
    media = [Media(m.frames.cuda().requires_grad_()) for m in pictures[:5]]
    dialogs = mixed_dialogs(media)
    weights = [p for n, p in model.module.named_parameters() if "k_proj.bias" not in n]

    def gradients(logits):
        inputs = [m.frames for m in media] + weights
        return torch.autograd.grad((logits[:, 0] - logits[:, 1]).square().sum(), inputs, allow_unused=True)

    ours = gradients(Engine(model).answer_logits(dialogs, WORDS).logits)
    for a, b in zip(ours, gradients(plain(model, dialogs)), strict=True):
        assert (a is None) == (b is None)
        if a is not None and b.norm() > 1e-6:
            assert (a - b).norm() / b.norm() < far


def test_compiled_layers_answer_and_learn_as_eager_ones_whatever_lengths_come(on_cuda, pictures):
    """A handful of compilations: with and without gradients, of vision, language and last layer."""
    model = on_cuda("internvl")
    texts = ["a red circle", "two blue squares on black, and a green star under them", "hm"]
    lists = [[question(t, *pictures[: 2 + i]) for t in texts[: 1 + i]] * (1 + i) for i in range(3)]
    lists.append(mixed_dialogs(pictures))

    def everything():
        found = []
        for dialogs in lists:
            with torch.no_grad():
                found.append(Engine(model).answer_logits(dialogs, WORDS).logits)
            logits = Engine(model).answer_logits(dialogs, WORDS).logits
            (slope,) = torch.autograd.grad(logits.square().sum(), model.model.get_input_embeddings().weight)
            found += [logits.detach(), slope]
        return found

    wanted = everything()
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.utils.counters.clear()
    for layer in model.blocks:
        layer.compile(dynamic=True)
    for a, b in zip(everything(), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 16


@torch.no_grad()
def test_a_pass_that_does_not_fit_is_halved(on_cuda, pictures):
    model = on_cuda("internvl")
    dialogs = [question(f"prompt {i} {'and so on ' * 60}", *pictures[:2]) for i in range(400)]
    wanted = Engine(model, memory_share=0.01).answer_logits(dialogs, WORDS).logits
    torch.cuda.empty_cache()
    engine = Engine(model)
    engine._memory.measured = False
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (48 << 20)) / total)
    try:
        found = engine.answer_logits(dialogs, WORDS).logits
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.budget < 131_072
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


@torch.no_grad()
def test_pictures_are_remembered_across_calls(on_cuda, pictures):
    model = on_cuda("internvl")
    model.module.requires_grad_(False)
    engine = Engine(model, image_cache=4)
    first = engine.answer_logits([question("x", *pictures[:2])], WORDS).logits
    assert engine.counts.images == 2
    again = engine.answer_logits([question("x", *pictures[:2])], WORDS).logits
    assert engine.counts.images == 0
    torch.testing.assert_close(again, first)


@torch.no_grad()
def test_margins_are_those_of_the_cpu(asked):
    here, there = (load_judge("tiny", precision="fp32", device=d).judge(asked).margin.cpu() for d in ("cpu", "cuda"))
    torch.testing.assert_close(here, there, atol=2e-2, rtol=1e-3)  # a GPU may multiply in TF32
    half = load_judge("tiny", precision="bf16", device="cuda").judge(asked).margin.cpu()
    assert torch.corrcoef(torch.stack([here, half]))[0, 1] > 0.98


def test_pixels_get_a_gradient():
    judge = load_judge("tiny", device="cuda")
    pixels = torch.rand(3, 48, 48, device="cuda", requires_grad=True)
    judge.judge(
        [Comparison(PROMPT, Media.from_tensor(pixels), Media(torch.rand(1, 3, 48, 48)))]
    ).margin.sum().backward()
    assert torch.isfinite(pixels.grad).all()
    assert pixels.grad.norm() > 0


def test_the_generator_draws():
    found = load_generator("tiny", device="cuda").sample([PROMPT] * 2, num_steps=4, seed=0)
    assert len(found) == 2


def test_judge_and_generator_train_and_resume(tmp_path):
    data, judge, aligned = tmp_path / "data", tmp_path / "judge", tmp_path / "aligned"
    assert main(["data", "build", "--num-prompts", "24", "--num-held-out", "4", "--out", str(data)]) == 0
    train = ["train", "recipes/tiny/reward.yaml", "--data", str(data), "--prompts-per-step", "4"]
    align = ["align", "recipes/tiny/refl.yaml", "--judge", str(judge), "--num-prompts", "8", "--batch-size", "4"]
    for command, out in ((train, judge), ([*align, "--probe-prompts", "2"], aligned)):
        steps = ["--loop.num-steps", "2", "--loop.save-every", "1", "--out", str(out)]
        assert main([*command, *steps, "--loop.max-seconds", "1e-9"]) == 1  # stops after its first step
        assert main([*command, *steps, "--resume"]) == 0
        losses = [m["loss"] for m in RunFolder(out).metrics() if "loss" in m]
        assert len(losses) == 2
        assert torch.isfinite(torch.tensor(losses)).all()


SHARDED = """
import json, sys
from pathlib import Path
import torch
from rewarddance.core.parallel import process_group
from rewarddance.core.sharding import shard
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs import train
from rewarddance.reward.train_config import RewardConfig
from rewarddance.vlm.registry import load_backbone_folder

vlm, data, out = sys.argv[1:]
changes = {"prompts_per_step": 4, "precision": "bf16", "loop": {"num_steps": 3, "validate_every": 3, "save_every": 3}}
with process_group():
    records = RecordTable.open(Path(data) / "train.parquet")
    for name, size in (("whole", 1), ("sharded", 2)):
        config = RewardConfig.model_validate({**changes, "shard": size})
        # one process shares the weights with itself: all of FSDP's machinery on one GPU
        train.shard_judge.__globals__["shard"] = lambda modules, blocks, n, *rest: shard(modules, blocks, 1, *rest)
        backbone = load_backbone_folder(vlm)
        if size == 1:
            backbone.module.to("cuda")
        train.train_judge(config, backbone, records, {"id": records[:6]}, Path(out) / name)
"""


def test_sharded_weights_train_and_are_saved_as_whole_ones(vlm_folder, data_folder, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(program)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [str(vlm_folder), str(data_folder), str(tmp_path)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [RunFolder(tmp_path / n).metrics() for n in ("whole", "sharded")]
    losses = [[m["loss"] for m in rows] for rows in lines]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    kept = json.loads((tmp_path / "sharded" / "model" / "judge.json").read_text())
    assert kept["trained"]
    saved = [load_judge(tmp_path / n).engine.backbone.module.state_dict() for n in ("whole", "sharded")]
    assert saved[0].keys() == saved[1].keys()


def test_pretraining_begins_as_on_a_cpu(tmp_path, monkeypatch):
    """The same weights, batches and noise: losses of the first steps agree in fp32, and workers change nothing."""
    monkeypatch.setitem(SIZES, "test", Size(64, 2, 64, 2, 2))
    keys = {"loop": LoopConfig(num_steps=3), "optim": OptimConfig(name="muon", lr=1e-3, ema_decay=0.9)}
    losses: dict[str, list[list[float]]] = {"cpu": [], "cuda": []}
    for device, workers in (("cpu", 0), ("cuda", 2)):
        own, out = {**keys, "device": device, "workers": workers}, tmp_path / device
        vae = train_autoencoder(AutoencoderConfig(batch_size=4, precision="fp32", **own), out / "vae")
        train_generator(GeneratorConfig(batch_size=4, precision="fp32", **own), vae, out / "generator")
        vision = pretrain_vision(VisionConfig(size="test", batch_size=4, precision="fp32", **own), out / "vision")
        config = VlmConfig(size="test", batch_size=6, num_questions=2, precision="fp32", **own)
        train_vlm(config, vision, out / "vlm")
        for name, key in (("vae", "mse"), ("generator", "loss"), ("vision", "loss"), ("vlm", "loss")):
            losses[device].append([m[key] for m in RunFolder(out / name).metrics()])
    for a, b in zip(losses["cpu"], losses["cuda"], strict=True):
        assert a[0] == pytest.approx(b[0], rel=5e-3)  # convolutions compute in TF32
        # The updates of the two devices differ too, because of TF32 gradients and because Muon orthogonalises in bf16.
        assert a == pytest.approx(b, rel=1e-2)
