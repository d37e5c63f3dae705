"""`evaluate --metrics` on a run of the embedded world, with further extractors from local files, and `compare`."""

import json
import warnings

import numpy as np
import pytest
import torch

from rewarddance.apps.cli import main
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.statistics import paired_bootstrap
from rewarddance.jobs.align import align_from_names
from rewarddance.jobs.load import load_task
from rewarddance.jobs.metrics import ExtractorPaths, evaluate_metrics, load_extractors
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
