"""The demo of clips in its fast form, on stand-ins for the shipped weights, and its page in a real browser."""

import json
import sys

import pytest
from browser_pages import CHROMIUM, opened
from clip_assets import write_clip_assets

from rewarddance.apps.cli import main
from rewarddance.core.runs import RunFolder
from rewarddance.data.parquet import RecordTable
from rewarddance.lab.demo_config import CLIPS, DEMOS
from rewarddance.world.motion.task import EmbeddedVideoTask


@pytest.fixture(scope="module")
def assets(vlm_folder, tmp_path_factory):
    return write_clip_assets(tmp_path_factory.mktemp("assets"), vlm_folder)


@pytest.fixture(scope="module")
def demo(assets, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rewarddance.jobs.load.ASSETS", assets)
        patch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)  # few steps do not teach yes and no
        assert main(["demo", "--task", "t2v", "--fast", "--out", str(out)]) == 0
    return out


def test_the_summary_holds_the_figures_of_clips(demo):
    summary = json.loads((demo / "summary.json").read_text())
    assert summary["task"] == "t2v"
    assert summary["gold"] == "oracle value (fidelity, motion, consistency)"
    assert {"mean", "ci_low", "ci_high", "verdict"} == set(summary["gain"])
    shares = summary["clips"]["good_same_bad"]
    assert shares["good"] + shares["same"] + shares["bad"] == pytest.approx(1)
    assert shares["gsb"]["mean"] == pytest.approx(shares["good"] - shares["bad"])
    assert {"before", "after", "gain"} <= set(summary["clips"]["moving"])
    assert 0 < summary["diversity_kept"] < 10
    entries = json.loads((demo / "best_of_n" / "best_of_n.json").read_text())
    assert summary["best_of_n"]["candidates"] == CLIPS.fast.candidates
    assert {len(x["oracle"]) for x in entries} == {CLIPS.fast.candidates}
    best = [x["oracle"][x["best"]] for x in entries]
    assert summary["best_of_n"]["winner"] == pytest.approx(sum(best) / len(best))


def test_its_parts_are_made_of_clips(demo):
    records = list(RecordTable.open(demo / "preferences" / "train.parquet"))
    assert {r.source for r in records} == {"generator", "rendered"}
    assert {r.criterion for r in records} == {"overall"}
    judge = RunFolder(demo / "judge").read()["config"]
    assert judge["clips"]["fps"] == 4.0
    align = RunFolder(demo / "align").read()["config"]
    assert (align["task"], align["generator"], align["judge"]) == (
        "embedded-video", "tiny-video", str(demo / "judge"),
    )  # fmt: skip
    assert (align["micro_batch"], align["sample_batch"]) == (12, 32)  # of the recipe
    assert len(list((demo / "best_of_n").glob("*.webp"))) == 2 * CLIPS.fast.candidates


def test_the_page_shows_clips_and_no_word_about_pictures_in_its_lead(demo):
    page = (demo / "report.html").read_text()
    body = page.split("</script>", 1)[1]
    assert "http://" not in body
    assert "https://" not in body
    assert "answers yes-or-no questions about clips" in body
    assert "Better, same, worse by the oracle" in body
    assert "share of moving clips" in body
    assert "Best of 3 by the judge" in body
    assert body.count("data:image/webp;base64") >= 4 + 2 * CLIPS.fast.candidates
    assert "recipes/wan2.1-t2v-1.3b.yaml" in body


def test_missing_weights_are_an_error_before_anything_is_deleted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", tmp_path / "assets")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "demo.json").write_text("{}")
    assert main(["demo", "--task", "t2v", "--out", str(tmp_path / "demo")]) == 1
    assert "embedded generator 'tiny-video' is not in this installation" in capsys.readouterr().err
    assert (tmp_path / "demo" / "demo.json").exists()


@pytest.mark.parametrize("task", list(DEMOS))
def test_the_fast_form_does_no_more_than_the_full_one(task):
    demo = DEMOS[task]
    for name, count in vars(demo.fast).items():
        full = getattr(demo.full, name)
        assert count >= full if name in ("every", "best_of_every") else count <= full


@pytest.mark.parametrize("sizes", [CLIPS.full, CLIPS.fast])
def test_the_chosen_prompts_show_different_actions(sizes):
    prompts = EmbeddedVideoTask().benchmark()
    for every in (sizes.every, sizes.best_of_every):
        chosen = prompts[::every]
        assert len({p.category for p in chosen}) == min(12, len(chosen))
    chosen = prompts[:: sizes.every]
    few = chosen[:: max(1, len(chosen) // sizes.diversity_prompts)][: sizes.diversity_prompts]
    assert len({p.category for p in few}) == sizes.diversity_prompts


def test_a_missing_pyav_is_an_error_before_anything_is_drawn(assets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", assets)
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["demo", "--task", "t2v", "--fast", "--out", str(tmp_path / "demo")]) == 1
    assert "clips need PyAV; pip install 'rewarddance[video]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_the_page_in_a_browser(demo):
    with opened(demo / "report.html") as page:
        assert page.locator("img.clips").count() == 5
        assert page.locator("img").evaluate_all("xs => xs.every(x => x.naturalWidth > 0)")
