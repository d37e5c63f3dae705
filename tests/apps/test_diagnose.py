"""The page of `rewarddance diagnose`, from logs of runs."""

import json

import pytest

from rewarddance.apps.diagnose import diagnosis, write_diagnosis
from rewarddance.core.errors import RunError


@pytest.fixture
def logged(tmp_path):
    def make(name, rows, kind="align"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"kind": kind, "config": {}}))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return make


def probe(step, gold, **more):
    return {"step": step, "probe/gold": gold, "probe/proxy": 0.5, "probe/kl": 0.001 * step, **more}


def test_runs_stand_side_by_side_with_their_alarms(logged, tmp_path):
    good = logged("good", [probe(0, 0.6), probe(10, 0.65)])
    bad = logged("bad", [probe(0, 0.6), probe(10, 0.62), probe(20, 0.5, alarm="hacking: <gold> fell", stopped="x")])
    found = diagnosis([good, bad])
    assert [f["title"] for f in found["figures"]][:2] == ["Gold standard", "Judge's P(better than the start)"]
    assert found["alarms"] == [{"run": "bad", "step": 20, "text": "hacking: <gold> fell"}]
    assert found["ends"][0] == {
        "run": "good",
        "stopped": None,
        "first": (0, 0.6),
        "best": (10, 0.65),
        "last": (10, 0.65),
    }
    page = write_diagnosis([good, bad], tmp_path / "page" / "d.html").read_text()
    assert "hacking: &lt;gold&gt; fell" in page
    assert "0.500 (step 20)" in page


def test_folders_of_one_name_keep_their_paths(logged):
    runs = [logged("a/run", [probe(0, 0.6)]), logged("b/run", [probe(0, 0.5)])]
    assert [end["run"] for end in diagnosis(runs)["ends"]] == [str(r) for r in runs]


def test_what_is_no_alignment_is_said(logged):
    with pytest.raises(RunError, match="a judge run; diagnose reads alignment runs"):
        diagnosis([logged("judge", [], kind="judge")])
    with pytest.raises(RunError, match="no probes logged yet"):
        diagnosis([logged("new", [])])
