"""`score`, `rank`, `evaluate` and `sample` take --precision, and say what passes really computed in."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import reward_config

from rewarddance.apps.cli import main
from rewarddance.core import device
from rewarddance.core.media import Media
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.jobs.load import load_judge
from rewarddance.jobs.train import train_from_data
from rewarddance.reward.rank import rank


@pytest.fixture(params=[False, True], ids=["without bf16", "with bf16"])
def native(request, monkeypatch):
    """Whether the hardware multiplies in bf16."""
    monkeypatch.setattr(device, "native_bf16", lambda kind: request.param)
    return request.param


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for seed, name in enumerate("cab"):
        pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def result_of(capsys, *args):
    """What the command printed to standard output, as JSON."""
    assert main([str(a) for a in args]) == 0
    return json.loads(capsys.readouterr().out)


def computed(precision, native):
    """`auto` and no flag: the embedded models are small, so they compute in fp32 on a CPU."""
    return "bf16" if precision == "bf16" and native else "fp32"


def flags(precision):
    return [] if precision is None else ["--precision", precision]


PRECISIONS = pytest.mark.parametrize("precision", [None, "auto", "fp32", "bf16"])


@PRECISIONS
def test_score_and_rank_say_what_they_computed_in(precision, native, pictures, capsys):
    asked = ["--prompt", "flat drawing of a red circle on white", *flags(precision)]
    one = result_of(capsys, "score", "--candidate", pictures[0], "--reference", pictures[1], *asked)
    ranked = result_of(capsys, "rank", *pictures, *asked)
    assert one["computes_in"] == ranked["computes_in"] == computed(precision, native)


def test_bf16_moves_a_margin_a_little(monkeypatch, pictures, capsys):
    asked = ["score", "--candidate", pictures[0], "--reference", pictures[1], "--prompt", "a red circle"]
    monkeypatch.setattr(device, "native_bf16", lambda kind: True)
    exact, rounded = (result_of(capsys, *asked, "--precision", p)["margin"] for p in ("fp32", "bf16"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.3)


def test_score_and_evaluate_of_a_folder_say_it(native, data_folder, tmp_path, capsys):
    records = list(RecordTable.open(data_folder / "id.parquet"))[:2]
    write_rows((row_of(r) for r in records), tmp_path / "data" / "id.parquet")
    scored = result_of(capsys, "score", tmp_path / "data", "--precision", "bf16")
    assert (scored["computes_in"], scored["file"]) == (computed("bf16", native), str(tmp_path / "data" / "id.parquet"))
    measured = result_of(capsys, "evaluate", "--judge", "tiny", "--data", tmp_path / "data", "--precision", "bf16")
    assert measured["computes_in"] == {"judge": computed("bf16", native)}


def test_sample_says_it(native, pipeline_folder, tmp_path, capsys):
    drawn = ["--generator", pipeline_folder, "--num-steps", 1, "--num", 1, "--best-of", 2, "--out", tmp_path / "out"]
    found = result_of(capsys, "sample", "--prompt", "a red circle", *drawn, "--precision", "bf16")
    assert found["computes_in"] == dict.fromkeys(("generator", "judge"), computed("bf16", native))


def test_a_run_folder_says_it(native, vlm_folder, data_folder, quick, tmp_path):
    config = reward_config(vlm_folder, data_folder, quick, num_steps=0).model_copy(update={"precision": "bf16"})
    train_from_data(config, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["computes_in"] == {"judge": computed("bf16", native)}
    assert written["config"]["precision"] == "bf16"


def test_an_unknown_precision_is_wrong_usage(capsys):
    assert main(["rank", "a.png", "--prompt", "a", "--precision", "fp16"]) == 2
    assert "fp16" in capsys.readouterr().err


def test_wins_are_in_the_order_of_the_input_and_say_of_which_files(pictures, capsys):
    prompt = "flat drawing of a red circle on white"
    found = result_of(capsys, "rank", *pictures, "--prompt", prompt)
    assert found["wins_are_of"] == list(map(str, pictures))
    ranking = rank(load_judge("tiny"), prompt, [Media.open(p) for p in pictures])
    torch.testing.assert_close(torch.tensor(found["wins"]), ranking.wins, atol=1e-4, rtol=0)
    assert [entry["path"] for entry in found["order"]] == [str(pictures[i]) for i in ranking.order]
    margins = [entry["margin"] for entry in found["order"]]
    assert margins == sorted(margins, reverse=True)


def test_a_path_that_is_given_twice_is_wrong_usage(pictures, capsys):
    assert main(["rank", *map(str, [*pictures, pictures[1]]), "--prompt", "a"]) == 2
    assert capsys.readouterr().err == f"rewarddance: rank: {pictures[1]} is given twice\n"


def test_the_help_of_rank_says_what_order_wins_have(capsys):
    with pytest.raises(SystemExit):
        main(["rank", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "`wins` is P(row is better than column), in the order in which the pictures were given" in text
