"""`evaluate --judge --data`: what is measured where hardly anything is held out, and what accuracies leave out."""

import json
import shutil

import numpy as np
import pytest

from rewarddance.apps.cli import main
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.data.parquet import row_of, write_rows
from rewarddance.jobs.evaluate import evaluate_judge_on_data
from rewarddance.jobs.load import load_judge
from rewarddance.reward.config import JudgeSpec

PROMPT = "flat drawing of a red circle on white"
WHY = "calibration is fitted on some prompts and reported on others; there is one prompt only"


def records_of(prompts, labels):
    """One record a prompt, each with two random pictures and these labels of their comparison."""
    rng = np.random.default_rng(0)
    for i, prompt in enumerate(prompts):
        media = tuple(Media.from_numpy(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(2))
        yield PreferenceRecord(f"r{i}", prompt, media, tuple(Choice(0, 1, x) for x in labels), "fidelity")


@pytest.fixture
def write(tmp_path):
    def records(prompts, labels):
        made = list(records_of(prompts, labels))
        write_rows((row_of(r) for r in made), tmp_path / "data" / "id.parquet")
        return tmp_path / "data", made

    return records


def test_a_judge_of_clips_without_data_is_told_to_name_some(vlm_folder, tmp_path, capsys):
    judge = shutil.copytree(vlm_folder, tmp_path / "clips")
    (judge / "judge.json").write_text(JudgeSpec(trained=True, kinds=("clip",), criteria=("overall",)).model_dump_json())
    assert main(["evaluate", "--judge", str(judge)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].endswith(
        "this judge was trained on clips, and the benchmark has pictures; name a folder of clips with --data, for "
        "example one of `rewarddance data build --task t2v`"
    )


def test_one_held_out_prompt_has_figures_and_the_reason_why_it_has_no_calibration(write, capsys):
    folder, made = write([PROMPT, PROMPT], [1.0, 0.0, 1.0, 0.5])
    assert main(["evaluate", "--judge", "tiny", "--data", str(folder)]) == 0
    figures = json.loads(capsys.readouterr().out)["id"]
    assert (figures["calibration"], figures["no_calibration"]) == (None, WHY)
    margins = load_judge("tiny").judge([r.comparisons()[0] for r in made]).margin.tolist()
    right = [(m > 0) == (x == 1.0) for m in margins for x in (1.0, 0.0, 1.0)]
    assert figures["label_accuracy"] == figures["accuracy"] == pytest.approx(np.mean(right))
    assert (figures["num_pairs"], figures["num_ties"], figures["num_trained_on"]) == (6, 2, 0)


def test_ties_are_left_out_of_accuracy_and_their_share_is_said(write):
    """Six of ten choices are ties in either half of the prompts."""
    folder, _ = write([f"{PROMPT}, {i}" for i in range(6)], [1.0] * 4 + [0.5] * 3 + [0.4] * 2 + [0.6])
    figures = evaluate_judge_on_data("tiny", folder)["id"]
    assert figures["num_ties"] == 6 * 3
    assert figures["num_pairs"] == 6 * 7  # 0.4 and 0.6 are near ties, and still have a side
    assert figures["calibration"]["share_of_ties"] == pytest.approx(0.6)
    assert "no_calibration" not in figures
