"""Pictures of several prompts to a folder, and what the judge said of those that were not kept."""

import json
import math
from dataclasses import replace

import pytest

from rewarddance.align.config import AlignConfig
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.runs import RunFolder
from rewarddance.data.prompts import read_prompts
from rewarddance.jobs.sample import Sampling, Searching, sample_to_folder
from rewarddance.search.config import PathsConfig, VerifierConfig


@pytest.fixture
def sampling(pipeline_folder):
    return Sampling(str(pipeline_folder), num_steps=2, sample_batch=4)


def test_winners_and_margins_of_every_prompt(sampling, tmp_path):
    prompts = ["flat drawing of a red circle on white", "flat drawing of a blue square on grey"]
    found = sample_to_folder(prompts, tmp_path, sampling, num=2, best_of=3, criterion="fidelity")["samples"]
    assert found == json.loads((tmp_path / "samples.json").read_text())
    assert [x["prompt"] for x in found] == [p for p in prompts for _ in range(2)]
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [x["file"] for x in found]
    for x in found:
        assert len(x["margins"]) == 3
        assert x["kept"] == max(range(3), key=x["margins"].__getitem__)
        assert Media.open(tmp_path / x["file"]).size == (48, 48)


def test_a_prompts_pictures_do_not_depend_on_its_company(sampling, tmp_path):
    prompts = ["flat drawing of a red circle on white", "flat drawing of a blue square on grey", "a dog"]
    sample_to_folder(prompts, tmp_path / "all", replace(sampling, sample_batch=100), num=2)
    sample_to_folder(prompts[1:2], tmp_path / "one", replace(sampling, sample_batch=1), num=2)
    for i in range(2):
        found, alone = (Media.open(tmp_path / n / f"{k:03d}.png") for n, k in (("all", 2 + i), ("one", i)))
        assert float((found.frames - alone.frames).abs().max()) <= 1 / 255 + 1e-6


def test_layouts_are_those_that_scorers_read(sampling, tmp_path):
    row = {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "a photo of two cups"}
    (tmp_path / "evaluation_metadata.jsonl").write_text(json.dumps(row) + '\n{"tag": "x", "prompt": "one v1.5 cup"}\n')
    asked = read_prompts(tmp_path / "evaluation_metadata.jsonl")[0]
    found = sample_to_folder(asked, tmp_path / "geneval", sampling, num=2, layout="geneval")["samples"]
    assert [x["file"] for x in found] == [f"0000{i}/samples/000{j}.png" for i in range(2) for j in range(2)]
    assert json.loads((tmp_path / "geneval" / "00000" / "metadata.jsonl").read_text()) == row
    found = sample_to_folder(asked, tmp_path / "compbench", sampling, num=2, layout="compbench")["samples"]
    names = [f"{p.text}_00000{2 * i + j}.png" for i, p in enumerate(asked) for j in range(2)]
    assert [x["file"] for x in found] == [f"samples/{name}" for name in names]
    assert sorted(p.name for p in (tmp_path / "compbench" / "samples").iterdir()) == sorted(names)
    for layout, prompt, why in (
        ("vbench", "a dog", "is for clips"),
        ("compbench", "a snake_case", "holds '_'"),
        ("compbench", "and/or", "holds '/'"),
    ):
        with pytest.raises(ConfigError, match=why):
            sample_to_folder([prompt], tmp_path / "no", sampling, num=1, layout=layout)


def test_without_best_of_no_judge_is_asked(sampling, tmp_path):
    found = sample_to_folder(["a dog"], tmp_path, sampling, num=3, judge="nowhere")["samples"]
    assert [set(x) for x in found] == [{"file", "prompt"}] * 3


def test_an_aligned_generator_draws_as_it_was_aligned(tmp_path):
    config = AlignConfig(
        generator="/models/sd3", guidance=4.5, resolution=512, sample_batch=4, generator_dtype="bf16", precision="fp32"
    )
    RunFolder(tmp_path / "run").start("align", config)
    found = Sampling.of_run(tmp_path / "run")
    assert found == Sampling("/models/sd3", config.refl.num_steps, 4.5, 4, "bf16", 512, "fp32", 256)
    assert Sampling.of_run(tmp_path / "run" / "adapter") == found
    assert Sampling.of_run(tmp_path / "elsewhere" / "adapter") == Sampling.of_run(None) == Sampling()


def test_a_search_writes_what_it_cost_beside_its_pictures(sampling, tmp_path):
    prompts = ["flat drawing of a red circle on white", "flat drawing of a blue square on grey"]
    settings = PathsConfig(keep=1, branches=2, start=0.5, up=0.3, down=0.8)
    searching = Searching(settings, 9, VerifierConfig(ask="anchor"))
    how = {"num": 2, "searching": searching, "criterion": "fidelity"}
    found = sample_to_folder(prompts, tmp_path / "all", sampling, **how)["samples"]
    assert found == json.loads((tmp_path / "all" / "samples.json").read_text())
    for x in found:  # an anchor of 2 steps; 1 to 0.5; two branches from 0.8 to 0.5 and 0
        assert (x["nfe"], x["decodes"], x["judge_calls"], x["refused"]) == (2 + 1 + 2 * 2, 3, 2, 0)
        assert math.isfinite(x["score"])
    alone = sample_to_folder(prompts[1:], tmp_path / "one", replace(sampling, sample_batch=1), **how)["samples"]
    for a, b in zip(found[2:], alone, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-3)
        pictures = [Media.open(tmp_path / n / x["file"]).frames for n, x in (("all", a), ("one", b))]
        assert float((pictures[0] - pictures[1]).abs().max()) <= 1 / 255 + 1e-6
