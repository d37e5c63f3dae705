"""The demo in its fast form, on stand-ins for the shipped weights, and its page in a real browser."""

import json
import shutil

import pytest
from browser_pages import CHROMIUM, opened

from rewarddance.apps.cli import main
from rewarddance.apps.report import write_report
from rewarddance.core.errors import RunError
from rewarddance.core.runs import RunFolder


@pytest.fixture(scope="module")
def demo(vlm_folder, pipeline_folder, tmp_path_factory):
    assets = tmp_path_factory.mktemp("assets")
    shutil.copytree(vlm_folder, assets / "vlm-tiny")
    shutil.copytree(vlm_folder, assets / "judge-tiny")
    shutil.copytree(pipeline_folder, assets / "generator-tiny")
    out = tmp_path_factory.mktemp("runs") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rewarddance.jobs.load.ASSETS", assets)
        patch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)  # six steps do not teach yes and no
        assert main(["demo", "--fast", "--out", str(out)]) == 0
    return out


def test_the_summary_holds_the_promised_figures(demo):
    found = json.loads((demo / "summary.json").read_text())
    assert {"mean", "ci_low", "ci_high"} <= set(found["gain"])
    assert {"accuracy_id", "accuracy_ood", "before_id"} <= set(found["judge"])
    alarms = [{"step": m["step"], "text": m["alarm"]} for m in RunFolder(demo / "align").metrics() if "alarm" in m]
    assert found["alarms"] == alarms
    shown = f"alarms during training: {len(alarms) or 'none'}"
    assert shown in (demo / "report.html").read_text()
    assert found["seconds"] > 0
    assert 100 < found["peak_memory_mib"] < 16_384


def test_its_runs_are_what_they_say(demo, capsys):
    """What the run folders name is there, so that they can be evaluated and run again."""
    config = json.loads((demo / "judge" / "run.json").read_text())["config"]
    assert config["data"] == str(demo / "preferences")
    assert config["backbone"].endswith("judge-tiny")
    assert main(["rerun", str(demo / "judge"), "--out", str(demo.parent / "again")]) == 0
    first, second = (
        [m["loss"] for m in RunFolder(f).metrics() if "loss" in m] for f in (demo / "judge", demo.parent / "again")
    )
    assert first == second
    assert len(first) > 1


def test_the_page_is_one_file_without_links_out(demo):
    page = (demo / "report.html").read_text()
    body = page.split("</script>", 1)[1]
    assert "http://" not in body
    assert "https://" not in body
    assert body.count("data:image/png;base64") >= 8
    assert body.count("judge: right one better") >= 4
    assert "Its figures mean nothing" in body
    assert "mean margin" in body  # the unit of the scores that DiffusionNFT learns from


def test_single_runs_have_pages_too(demo):
    for name in ("judge", "align"):
        assert write_report(demo / name).stat().st_size > 100_000


def test_a_folder_that_is_not_a_demo_is_not_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.lab.demo.find", lambda name, kind: tmp_path)
    (tmp_path / "precious.txt").write_text("x")
    from rewarddance.lab.demo import run_demo

    with pytest.raises(RunError, match="not a demo"):
        run_demo(tmp_path, fast=True)
    assert (tmp_path / "precious.txt").exists()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_the_page_in_a_browser(demo):
    with opened(demo / "report.html") as page:
        assert page.locator(".js-plotly-plot").count() >= 5
        assert page.locator("img.px").evaluate_all("xs => xs.every(x => x.naturalWidth > 0)")
