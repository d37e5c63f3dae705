"""The study of searches on the shipped models, in its smallest form."""

import json
import shutil

import numpy as np
import pytest
from clip_assets import write_clip_assets
from tiny_wan import tiny_wan

from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.media import Media
from rewarddance.generator.trace import draw
from rewarddance.jobs.load import load_generator, load_task
from rewarddance.lab.study_search import (
    ONE,
    SearchStudyConfig,
    _verifiers,
    study_search,
    summarise,
)
from rewarddance.search.config import BestOfNConfig
from rewarddance.search.run import rngs_of
from rewarddance.world.benchmark import benchmark_prompts
from rewarddance.world.grammar import parse
from rewarddance.world.splits import meaning


@pytest.fixture(scope="module")
def config():
    searches = {
        "best_of_n": {"kind": "best_of_n"},
        "paths": {"kind": "paths", "keep": 1, "start": 0.5, "up": 0.3, "down": 0.8},
    }
    return SearchStudyConfig(
        searches=searches, verifiers=("anchor", "oracle"), nfe=(4, 12), num_steps=2, every=120, prompts_at_once=1
    )


@pytest.fixture(scope="module")
def study(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, study_search(config, out)


def test_every_cell_is_measured_and_kept(config, study):
    out, figures = study
    cells = {(r["verifier"], r["search"], r["budget"]): r for r in figures["rows"]}
    assert set(cells) == {(v, s, b) for v in ("anchor", "oracle") for s in ("best_of_n", "paths") for b in (4, 12)} - {
        ("anchor", "paths", 4), ("oracle", "paths", 4)
    }  # fmt: skip
    assert "these settings need 7" in figures["left_out"]["anchor-paths-4"]
    best = cells["oracle", "best_of_n", 12]
    assert (best["nfe"], best["decodes"], best["judge_calls"]) == (12, 6, 6)
    assert best["score"]["mean"] == pytest.approx(best["gold"]["mean"], abs=0.02)  # files hold bytes
    assert best["gold"]["mean"] >= figures["one_sample"]["mean"]
    assert cells["anchor", "best_of_n", 12]["nfe"] == 12
    assert cells["anchor", "best_of_n", 12]["decodes"] == 6
    assert cells["anchor", "best_of_n", 12]["judge_calls"] == 5
    assert cells["anchor", "paths", 12]["minus_best_of_n"]["mean"] == pytest.approx(
        cells["anchor", "paths", 12]["gold"]["mean"] - cells["anchor", "best_of_n", 12]["gold"]["mean"]
    )
    assert best["diversity"]["feature"] > 0
    before = {f: f.stat().st_mtime_ns for f in (out / "cells").rglob("*.json")}
    again = study_search(config, out)
    assert again["rows"] == figures["rows"]
    assert {f: f.stat().st_mtime_ns for f in (out / "cells").rglob("*.json")} == before
    assert "| anchor | paths | – |" in (out / "table.md").read_text()


def test_one_sample_is_the_first_noise_of_every_search(study):
    out, figures = study
    values, task = [], load_task("embedded")
    for seed in (0, 1):
        prompts = [p.text for p in task.benchmark()[::120]]
        generator = load_generator("tiny")
        for prompt in prompts:
            noise = generator.noise(1, rngs_of(seed, "search", [prompt])[0])
            picture = Media.from_bytes(next(draw(generator, [prompt], noise, 2)).to_bytes())
            values.append(task.gold([prompt], [picture], [picture])[0])
    assert figures["one_sample"]["mean"] == pytest.approx(np.mean(values), abs=0.01)
    assert json.loads(next((out / "cells").glob(f"oracle-{ONE.replace(' ', '_')}-2-0/000.json")).read_text())[
        "nfe"
    ] == [2]


def test_cells_of_which_a_part_is_missing_have_no_figure(config, study, tmp_path):
    """Another process may be at work on them."""
    out, figures = study
    shutil.copytree(out, tmp_path / "copy")
    next((tmp_path / "copy" / "cells" / "anchor-best_of_n-12-1").glob("*.json")).unlink()
    rest = summarise(tmp_path / "copy", config)
    assert rest["left_out"]["anchor-best_of_n-12"] == "not finished"
    assert len(rest["rows"]) == len(figures["rows"]) - 1
    assert not any("minus_best_of_n" in r for r in rest["rows"] if (r["verifier"], r["budget"]) == ("anchor", 12))


def test_a_folder_keeps_its_settings(config, study):
    out, _ = study
    with pytest.raises(RunError, match=r"other settings \(every\)"):
        study_search(config.model_copy(update={"every": 60}), out)


def test_a_judge_that_only_compares_is_not_asked_about_single_pictures(config):
    class Comparing:
        criterion = "fidelity"

        def problem(self, comparison):
            return "only compares" if comparison.reference is None else None

    assert _verifiers(config.model_copy(update={"verifiers": ()}), Comparing()) == ("anchor", "oracle")
    with pytest.raises(ConfigError, match="tiny does not answer the pointwise question"):
        _verifiers(config.model_copy(update={"verifiers": ("pointwise",)}), Comparing())


def test_development_prompts_share_no_meaning_with_the_benchmark():
    prompts = load_task("embedded").development()
    meanings = {meaning(parse(p.text)) for p in prompts}
    assert len(prompts) == len(meanings) == 100
    assert not meanings & {meaning(parse(text)) for _, text in benchmark_prompts()}
    assert {sum(p.category == c for p in prompts) for c in {p.category for p in prompts}} == {20}


def test_clips_are_searched_and_measured_by_the_motion_oracle(config, tmp_path, vlm_folder, monkeypatch):
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", write_clip_assets(tmp_path / "assets", vlm_folder))
    changes = {"task": "embedded-video", "generator": "tiny-video", "judge": "tiny-clips", "every": 24, "nfe": (4,)}
    figures = study_search(config.model_copy(update=changes), tmp_path / "study")
    cells = {(r["verifier"], r["search"]): r for r in figures["rows"]}
    assert cells["oracle", "best_of_n"]["gold"]["mean"] >= figures["one_sample"]["mean"]
    assert cells["oracle", "best_of_n"]["diversity"]["feature"] > 0
    assert json.loads((tmp_path / "study" / "setting.json").read_text())["fps"] == 8.0
    with pytest.raises(RunError, match=r"other settings \(guidance\)"):
        study_search(config.model_copy(update={**changes, "guidance": 3.0}), tmp_path / "study")


def test_image_to_video_is_searched_with_the_first_frames_of_its_prompts(config, tmp_path, vlm_folder, monkeypatch):
    """The oracle's winners are the best of the noises that best-of-N draws with the prompts' pictures."""
    assets = write_clip_assets(tmp_path / "assets", vlm_folder)
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", assets)
    folder = assets / "generator-tiny-image-to-video"
    tiny_wan(from_picture=True).pipeline.save_pretrained(folder)
    shutil.copy(assets / "generator-tiny-video" / "clip.json", folder)
    changes = {"task": "embedded-image-to-video", "generator": "tiny-image-to-video", "judge": "tiny-clips"}
    changes |= {"every": 24, "nfe": (4,), "seeds": (0,), "searches": {"best_of_n": BestOfNConfig()}}
    figures = study_search(config.model_copy(update=changes), tmp_path / "study")
    cells = {r["verifier"]: r for r in figures["rows"]}
    task, generator, best = load_task("embedded-image-to-video"), load_generator("tiny-image-to-video"), []
    for prompt in task.benchmark()[::24]:
        noise = generator.noise(2, rngs_of(0, "search", [prompt])[0])
        clips = [Media.from_bytes(m.to_bytes(), fps=m.fps) for m in draw(generator, [prompt] * 2, noise, 2)]
        best.append(max(task.gold([prompt] * 2, clips, clips)))
    assert cells["oracle"]["gold"]["mean"] == pytest.approx(np.mean(best), abs=0.01)
    assert cells["anchor"]["judge_calls"] == 1
    assert figures["gold_name"] == "oracle value (fidelity, motion, consistency, first frame)"


def test_a_study_with_guidance_counts_both_passes(config, tmp_path):
    few = {
        "guidance": 3.0,
        "nfe": (8,),
        "verifiers": ("oracle",),
        "seeds": (0,),
        "searches": {"best_of_n": BestOfNConfig()},
    }
    figures = study_search(config.model_copy(update=few), tmp_path)
    [row] = figures["rows"]
    assert (row["nfe"], row["decodes"]) == (8, 2)  # two samples of two steps with two passes
    one = json.loads(next((tmp_path / "cells" / f"oracle-{ONE.replace(' ', '_')}-2-0").glob("*.json")).read_text())
    assert (one["nfe"], one["decodes"]) == ([4], [1])


def test_tasks_of_pictures_and_clips_need_their_generators(config, tmp_path):
    with pytest.raises(ConfigError, match="needs a generator of clips"):
        study_search(config.model_copy(update={"task": "embedded-video"}), tmp_path / "other")
