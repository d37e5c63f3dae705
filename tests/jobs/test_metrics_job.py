"""`evaluate --metrics` on a run of the embedded world, with further extractors from local files, and `compare`."""

import json
import warnings

import numpy as np
import pytest
import torch
from clip_assets import write_clip_assets
from PIL import Image
from tiny_wan import tiny_wan

from rewarddance.align.config import AlignConfig
from rewarddance.apps.cli import main
from rewarddance.core.dynamics import dynamic_degree, flicker
from rewarddance.core.errors import ConfigError, InputError, RunError
from rewarddance.core.loop_config import LoopConfig
from rewarddance.core.statistics import paired_bootstrap
from rewarddance.core.task import Drawn
from rewarddance.evaluate.clips import clip_distance, dynamics
from rewarddance.evaluate.generator import diversity, fixed_samples, right_media
from rewarddance.evaluate.metrics.table import embed
from rewarddance.jobs.align import align_from_names, align_generator
from rewarddance.jobs.evaluate import task_features
from rewarddance.jobs.load import load_generator, load_task
from rewarddance.jobs.metrics import ExtractorPaths, ReferenceSet, _drawn, _right_set, evaluate_metrics, load_extractors
from rewarddance.world.oracle import fidelity


class Inception(torch.nn.Module):
    def forward(self, x, return_features: bool = False):
        assert x.dtype == torch.uint8
        if return_features:
            return x.float().mean((2, 3)) / 255
        return x.float().flatten(1)


class Lpips(torch.nn.Module):
    def forward(self, x, y):
        return (x - y).abs().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def scripts(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Inception()).save(str(tmp_path / "inception.pt"))
        torch.jit.script(Lpips()).save(str(tmp_path / "lpips.pt"))
    return ExtractorPaths(inception=tmp_path / "inception.pt", lpips=tmp_path / "lpips.pt")


def test_reference_pictures_are_right():
    task = load_task("embedded")
    prompts = [p.text for p in task.benchmark()[::60]]
    pictures = task.reference_pictures(prompts, 2, seed=3)
    assert pictures.shape == (8, 3, 48, 48)
    images = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert [fidelity(images[2 * i + j], p) for i, p in enumerate(prompts) for j in range(2)] == [1.0] * 8
    assert torch.equal(pictures, task.reference_pictures(prompts, 2, seed=3))
    assert not torch.equal(pictures[0], pictures[1])


def test_a_set_of_pictures_is_a_reference(tmp_path):
    for style, level in (("Cubism", 60), ("Realism", 200)):
        (tmp_path / style).mkdir()
        wide = np.zeros((20, 40, 3), np.uint8)
        wide[:, 10:30] = level  # the middle square
        Image.fromarray(wide).save(tmp_path / style / "someone_picture.png")
    both = ReferenceSet(tmp_path).pictures(48)
    assert (len(both), both[0].size) == (2, (48, 48))
    (one,) = ReferenceSet(tmp_path, "Realism").pictures(20)
    assert (one.to_numpy() == 200).all()
    assert len(ReferenceSet(tmp_path, most=1).pictures(8)) == 1
    drawn, num = _drawn(iter(range(1000)), 50)  # the set is in order, and the draw is from all of it
    assert (num, len(set(drawn))) == (1000, 50)
    assert 400 < sum(drawn) / 50 < 600
    with pytest.raises(InputError, match="no pictures of style 'Fauvism'"):
        ReferenceSet(tmp_path, "Fauvism").pictures(8)


def test_the_embedded_clip_measures_the_world_where_no_other_is_named():
    extractors = load_extractors(load_task("embedded"), ExtractorPaths())
    assert set(extractors.features) == {"world", "clip"}
    assert len(extractors.clip.texts(["flat drawing of a red circle on white"])[0]) == 96


def test_a_run_has_one_table_and_two_runs_are_compared(quick_align, scripts, tmp_path, capsys):
    runs = [tmp_path / name for name in ("first", "second")]
    for seed, run in enumerate(runs):
        align_from_names(quick_align("tiny", algorithm="sft", seed=seed), run)
        found = evaluate_metrics(run, scripts, num_noises=2, num_steps=2, every=24)
    table = found["metrics"]
    for metric in ("fid", "kid", "cmmd", "precision", "recall", "vendi"):
        assert {f"{metric}/world", f"{metric}/inception"} <= table.keys()
    assert found["reference"]["pictures"] == 20
    assert table["lpips_among/lpips"]["before"] > 0
    assert table["fid/world"]["change"]["mean"] == pytest.approx(
        table["fid/world"]["after"] - table["fid/world"]["before"]
    )
    assert all(np.isfinite(v["after"]) for v in table.values() if "after" in v)
    assert json.loads((runs[1] / "evaluation_metrics.json").read_text()) == found
    capsys.readouterr()
    assert main(["compare", *map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "evaluation_metrics.json"
    row = next(line for line in lines if line.startswith("metrics.fid/world.after"))
    assert row.split()[-1] == f"{table['fid/world']['after']:.4g}"
    first = json.loads((runs[0] / "evaluation_metrics.json").read_text())["per_prompt"]["vendi/world/after"]
    paired = paired_bootstrap(found["per_prompt"]["vendi/world/after"], first)
    row = next(line for line in lines if line.startswith("vendi/world/after"))
    assert str(paired) in row
    assert not any("measured differently" in line for line in lines)
    found["per_prompt"]["prompts"][0] = "another prompt"
    (runs[1] / "evaluation_metrics.json").write_text(json.dumps(found))
    assert main(["compare", *map(str, runs)]) == 0
    assert "the two were measured differently (other prompts): compare with care" in capsys.readouterr().out
    (runs[1] / "evaluation_metrics.json").unlink()
    assert main(["compare", *map(str, runs)]) == 1
    assert "have no evaluation in common" in capsys.readouterr().err


def test_clips_have_their_own_table_against_right_clips(vlm_folder, tmp_path, monkeypatch, capsys):
    assets = tmp_path / "assets"
    assets.mkdir()
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", write_clip_assets(assets, vlm_folder))
    config = AlignConfig(
        generator="tiny-video", task="embedded-video", algorithm="sft", precision="fp32", num_prompts=2, batch_size=2,
        lora_rank=2, loop=LoopConfig(num_steps=1),
    )  # fmt: skip
    run = tmp_path / "run"
    align_generator(config, tiny_wan(), None, run)
    few = {"num_noises": 2, "num_steps": 2, "every": 12}
    capsys.readouterr()
    found = evaluate_metrics(run, **few)
    said = "".join(capsys.readouterr())
    assert all(f"{metric}: not measured for clips, because" in said for metric in ("CLIPScore", "LPIPS"))
    table, task = found["metrics"], load_task("embedded-video")
    of_features = {f"{m}/world" for m in ("fid", "kid", "cmmd", "precision", "recall", "vendi", "diversity")}
    assert table.keys() == of_features | {"dynamic_degree", "moving", "flicker"}
    assert found["reference"]["name"] == "right clips of the benchmark of task embedded-video"
    assert found["reference"]["pictures"] == 8
    prompts = task.benchmark()[::12]
    right, before = right_media(task, prompts, 2, 0, 8.0), fixed_samples(load_generator("tiny-video"), prompts, 2, 2)
    features = task_features(task)
    of_the_study = clip_distance(before, embed(features, right), features)
    assert table["fid/world"]["before"] == pytest.approx(of_the_study)
    assert table["diversity/world"]["before"] == pytest.approx(diversity(before, features)["feature"], rel=1e-5)
    assert table["dynamic_degree"]["before"] == pytest.approx(dynamics(before).mean())
    assert table["dynamic_degree"]["reference"] == pytest.approx(np.mean([dynamic_degree(m.frames) for m in right]))
    assert table["flicker"]["before"] == pytest.approx(np.mean([flicker(m.frames) for r in before.media for m in r]))
    assert table["moving"]["reference"] > 0.5
    assert len(found["per_prompt"]["flicker/after"]) == len(found["per_prompt"]["prompts"]) == 4
    assert not list((run / "clips").glob("evaluation-*"))
    paths, folder = ExtractorPaths(lpips=tmp_path / "lpips.pt", dino=tmp_path), ReferenceSet(tmp_path)
    with pytest.raises(ConfigError, match=r"draws clips; --lpips, --dino, --reference: for pictures only$"):
        evaluate_metrics(run, paths, folder, **few)


def test_the_right_clips_of_a_first_frame_count_once():
    task = load_task("embedded-image-to-video")
    name, right = _right_set(task, task.benchmark()[:3], 4, 0, Drawn(48, 9, 8.0, from_picture=True))
    assert (len(right), right[0].fps) == (3, 8.0)
    assert name == "right clips of the benchmark of task embedded-image-to-video"


def test_what_is_no_extractor_is_said_by_name(tmp_path):
    task = load_task("embedded")
    (tmp_path / "broken.pt").write_text("no")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for paths, message in (
        (ExtractorPaths(inception=tmp_path / "absent.pt"), "absent.pt: no such TorchScript file"),
        (ExtractorPaths(lpips=tmp_path / "broken.pt"), "broken.pt: not a TorchScript file"),
        (ExtractorPaths(clip=tmp_path), "holds a model of type 'bert', not 'clip'"),
        (ExtractorPaths(dino=tmp_path / "absent"), "not a local dinov2 folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_extractors(task, paths)
    with pytest.raises(RunError):
        evaluate_metrics(tmp_path)
