"""The embedded models of clips: their names, and the way of a trained one into the package, on random models."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_wan import tiny_wan

from rewarddance.apps.cli import main
from rewarddance.core.config import Config
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.generator.wan import CLIP_FILE, WanGenerator, WanImageToVideoGenerator
from rewarddance.jobs.load import find, is_embedded, load_backbone, load_generator, load_judge
from rewarddance.lab.assets import bytes_in_bf16, ship_clip_model
from rewarddance.reward.config import JudgeSpec


@pytest.fixture
def assets(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", tmp_path / "assets")
    return tmp_path / "assets"


def finished(folder, kind):
    """A run folder as training leaves it, without its model."""
    run = RunFolder(folder)
    run.start(kind, Config(), resume=False)
    run.log(7, {"seconds": 3.5})
    return folder


def video_run(folder, from_picture):
    finished(folder, "image-to-video" if from_picture else "text-to-video")
    pipeline = tiny_wan(from_picture).pipeline
    pipeline.save_pretrained(folder / "model")
    shape = {"num_frames": 9, "fps": 8.0, "side": 48, "max_sequence_length": 24}
    write_json(folder / "model" / CLIP_FILE, shape)
    return folder


def clip_judge_run(folder, vlm_folder, kinds):
    finished(folder, "judge")
    shutil.copytree(vlm_folder, folder / "model")
    (folder / "model" / "judge.json").write_text(JudgeSpec(trained=True, kinds=kinds).model_dump_json())
    return folder


@pytest.mark.parametrize(("name", "kind", "how"), [
    ("tiny-video", "generator", "`rewarddance build video` trains it"),
    ("tiny-image-to-video", "generator", "`rewarddance build video` trains it"),
    ("tiny-clips", "judge", "`rewarddance train recipes/tiny/reward-clips.yaml` trains it"),
    ("tiny", "vlm", "`make assets` builds it"),
])  # fmt: skip
def test_a_model_that_is_not_there_says_what_builds_it(assets, name, kind, how):
    with pytest.raises(ConfigError, match=f"embedded {kind} '{name}' is not in this installation; {how}"):
        find(name, kind)
    assert is_embedded(name, kind)
    assert not is_embedded("tiny-2m", "generator")


@pytest.mark.parametrize(("name", "cls"), [
    ("tiny-video", WanGenerator), ("tiny-image-to-video", WanImageToVideoGenerator),
])  # fmt: skip
def test_a_shipped_generator_draws_as_the_trained_one_rounded_to_bf16(assets, tmp_path, name, cls):
    run = video_run(tmp_path / "run", cls is WanImageToVideoGenerator)
    assert main(["build", "ship", str(run), "--name", name]) == 0
    generator = load_generator(name, device="cpu")
    assert type(generator) is cls
    assert (generator.drawn.num_frames, generator.drawn.side, generator.drawn.fps) == (9, 48, 8.0)
    trained = tiny_wan(cls is WanImageToVideoGenerator).pipeline
    for part in ("transformer", "text_encoder", "vae"):
        expected = trained.components[part].state_dict()
        for key, value in generator.pipeline.components[part].state_dict().items():
            assert torch.equal(value, expected[key].to(torch.bfloat16).float()), key
    folder = find(name, "generator")
    assert {v.dtype for f in folder.rglob("*.safetensors") for v in load_file(f).values()} == {torch.bfloat16}
    facts = json.loads((folder / "training.json").read_text())
    assert (facts["kind"], facts["trained"]) == (json.loads((run / "run.json").read_text())["kind"], {
        "steps": 7, "seconds": 3.5,
    })  # fmt: skip
    stored = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    headers = 64_000  # of the safetensors files
    assert stored - headers < bytes_in_bf16(folder) <= stored


def test_a_shipped_judge_of_clips_is_a_judge_and_a_beginning(assets, tmp_path, vlm_folder):
    run = clip_judge_run(tmp_path / "run", vlm_folder, ("clip",))
    ship_clip_model(run, "tiny-clips")
    assert load_judge("tiny-clips").spec.kinds == ("clip",)
    weight = load_backbone("judge-tiny-clips", "cpu").module.state_dict()["lm_head.weight"]
    expected = load_file(run / "model" / "model.safetensors")
    key = next(k for k in expected if k.endswith(("lm_head.weight", "embed_tokens.weight")))
    assert torch.equal(weight, expected[key].to(torch.bfloat16).float())


def test_a_run_of_another_kind_is_not_shipped(assets, tmp_path, vlm_folder):
    run = clip_judge_run(tmp_path / "run", vlm_folder, ("picture", "clip"))
    with pytest.raises(RunError, match="a judge run; tiny-video is the model of a text-to-video run"):
        ship_clip_model(run, "tiny-video")
    with pytest.raises(RunError, match="was not trained on clips alone"):
        ship_clip_model(run, "tiny-clips")
    assert not assets.exists()


def test_models_that_are_too_large_together_are_not_shipped(assets, tmp_path, vlm_folder, monkeypatch):
    first = clip_judge_run(tmp_path / "judge", vlm_folder, ("clip",))
    ship_clip_model(first, "tiny-clips")
    second = video_run(tmp_path / "video", False)
    most = bytes_in_bf16(first / "model") + bytes_in_bf16(second / "model")
    monkeypatch.setattr("rewarddance.lab.assets.MAX_BYTES", most - 1)
    with pytest.raises(RunError, match=r"the models of clips would take [\d.]+ MB, above"):
        ship_clip_model(second, "tiny-video")
    assert not (assets / "generator-tiny-video").exists()
