"""Training of learned rewards: data, resume, folds, commands; and the loop of the composite guide."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_runs import same, trajectory

from rewarddance.apps.cli import main
from rewarddance.apps.report import write_report
from rewarddance.core.errors import InputError, RunError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.evaluate.ratings import measure_ratings
from rewarddance.jobs.cross_validate import folds_by_group, folds_by_prompt
from rewarddance.jobs.evaluate import evaluate_judge_on_data
from rewarddance.jobs.learned import cross_validate_learned, measure_learned, train_learned_from_data
from rewarddance.jobs.load import load_judge
from rewarddance.reward.learned_config import LearnedConfig
from rewarddance.reward.learned_training import RatedSet
from rewarddance.world.build.preferences import PreferencesConfig, embedded_records
from rewarddance.world.raters import OVERALL_WEIGHTS

ROOT = Path(__file__).parents[2]
COLUMNS = (*sorted(OVERALL_WEIGHTS), "overall")


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rated")
    for split, name, num in (("train", "train", 10), ("held_out", "id", 4)):
        records = embedded_records(PreferencesConfig(num_prompts=num, split=split, pictures=3, criterion="each"))
        write_rows(map(row_of, records), folder / f"{name}.parquet")
    return folder


@pytest.fixture
def config(vlm_folder, rated):
    return LearnedConfig(
        backbone=str(vlm_folder),
        data=str(rated),
        shape={"width": 16, "layers": 1, "heads": 2, "dropout": 0.1},
        prompts_per_step=4,
        optim=OptimConfig(lr=3e-3, ema_decay=0.9),
        loop=LoopConfig(num_steps=5, validate_every=5, save_every=1),
    )


def test_every_criterion_has_a_record_of_the_same_pictures(rated):
    table = RecordTable.open(rated / "train.parquet")
    assert len(table) == 50
    assert table.criteria[:5] == [*OVERALL_WEIGHTS, "overall"]
    assert len(set(table.contents[:5])) == 1
    truth = {r.criterion: np.array(r.truth) for r in table[:5]}
    assert truth["overall"] == pytest.approx(sum(w * truth[c] for c, w in OVERALL_WEIGHTS.items()), abs=1e-5)
    found = RatedSet.of(table)
    assert (len(found), found.columns) == (10, COLUMNS)
    for k, name in enumerate(COLUMNS):
        record = next(r for r in table[:5] if r.criterion == name)
        assert found.entries[0].ratings[:, k] == pytest.approx(record.ratings)


def test_a_missing_overall_rating_is_the_mean_of_the_criteria(rated):
    table = RecordTable.open(rated / "train.parquet")
    rows = [i for i, c in enumerate(table.criteria) if c in ("fidelity", "style")]
    found = RatedSet.of(table.take(rows))
    assert found.columns == ("fidelity", "style", "overall")
    for entry in found.entries:
        assert entry.ratings[:, 2] == pytest.approx(entry.ratings[:, :2].mean(1))


def test_ratings_of_the_same_pictures_by_the_same_criterion_are_averaged(rated, tmp_path):
    row = row_of(RecordTable.open(rated / "train.parquet")[0])
    first = np.array(row["preferences"][0]["ratings"])
    rows = [row]
    for k, change in enumerate((0.0, 0.6)):
        own = [{**p, "ratings": list(first + change)} for p in row["preferences"]]
        rows.append({**row, "id": f"again-{k}", "preferences": own})
    write_rows(iter(rows), tmp_path / "train.parquet")
    (entry,) = RatedSet.of(RecordTable.open(tmp_path / "train.parquet")).entries
    assert entry.ratings[:, 0] == pytest.approx(first + 0.2)


def test_data_without_ratings_is_one_line(rated, tmp_path):
    records = RecordTable.open(rated / "train.parquet")[:5]
    write_rows(({**row_of(r), "preferences": _unrated(row_of(r))} for r in records), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="no ratings, and a learned reward learns from them"):
        RatedSet.of(RecordTable.open(tmp_path / "train.parquet"))


def _unrated(row):
    return [{**p, "ratings": None} for p in row["preferences"]]


def test_resumed_training_equals_unbroken_training(config, tmp_path):
    train_learned_from_data(config, tmp_path / "whole")
    stopped = config.model_copy(update={"loop": config.loop.model_copy(update={"max_seconds": 1e-9})})
    for i in range(4):
        with pytest.raises(RunError, match="out of time"):
            train_learned_from_data(stopped, tmp_path / "parts", resume=i > 0)
    train_learned_from_data(config, tmp_path / "parts", resume=True)
    keys = ("loss", "grad_norm", "accuracy", "id/rating_spearman")
    same(trajectory(tmp_path / "whole", *keys), trajectory(tmp_path / "parts", *keys), rel=1e-4, abs=1e-6)
    figures = json.loads((tmp_path / "whole" / "ratings.json").read_text())["id"]
    assert figures["by_criterion"].keys() == set(COLUMNS)
    # the saved judge has the figures of the last validation
    table = RecordTable.open(Path(config.data) / "id.parquet")
    again = measure_learned(load_judge(tmp_path / "whole"), table)
    assert again["rating_spearman"] == pytest.approx(figures["rating_spearman"])


@pytest.mark.parametrize("loss", ["mse", "ranking"])
def test_the_loss_falls(config, tmp_path, loss):
    changes = {"loss": loss, "prompts_per_step": 10, "optim": OptimConfig(lr=2e-2)}
    loop = LoopConfig(num_steps=8, validate_every=100)
    shape = config.shape.model_copy(update={"dropout": 0.0})
    train_learned_from_data(config.model_copy(update={**changes, "loop": loop, "shape": shape}), tmp_path)
    losses = trajectory(tmp_path, "loss", "scalar_loss")
    assert losses["loss"][-1] < 0.9 * losses["loss"][0]
    if loss == "ranking":  # scores of 0 have the loss of a coin
        assert losses["scalar_loss"][0] == pytest.approx(np.log(2), abs=1e-4)


def test_folds_are_disjoint_kept_and_have_a_page(config, rated, tmp_path):
    table = RecordTable.open(rated / "train.parquet")
    short = config.model_copy(update={"loop": config.loop.model_copy(update={"num_steps": 1})})
    folds = folds_by_prompt(table.prompts, 2, 0)
    prompts = [[{table.prompts[i] for i in rows} for rows in (f.train, f.held_out)] for f in folds]
    assert all(not train & held for train, held in prompts)
    assert not prompts[0][1] & prompts[1][1]
    found = cross_validate_learned(short, folds, table, tmp_path)
    values = [f["rating_spearman"] for f in found["folds"].values()]
    assert found["mean"]["rating_spearman"]["mean"] == pytest.approx(np.mean(values))
    # a fold knows what it was trained on
    known = evaluate_judge_on_data(tmp_path / "fold-1", rated)["id"]
    assert known["num_trained_on"] == 0
    assert known["num_pictures"] == 12
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")}
    assert cross_validate_learned(short, folds, table, tmp_path)["folds"] == found["folds"]
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")} == before
    assert "rank correlation with ratings, over all pictures" in write_report(tmp_path).read_text()
    styles = folds_by_group(table.group("style"), "style")
    assert len({i for f in styles for i in f.held_out}) == sum(len(f.held_out) for f in styles) == len(table)


def test_correlations_by_column_and_prompt():
    given = [np.array([[1.0, 1], [2, 2], [3, 3]]), np.array([[4.0, 4], [5, np.nan], [1, 2]]), np.ones((3, 2))]
    predicted = [g.copy() for g in given]
    predicted[0] = -predicted[0]
    out = measure_ratings(["a", "b", "c"], predicted, given, ["style", "overall"])
    assert out["rating_spearman_within"] == pytest.approx(-1.0)  # b has two ratings, those of c are equal
    assert out["num_pictures"] == 9
    perfect = measure_ratings(["a", "b", "c"], given, given, ["style", "overall"])
    assert perfect["rating_spearman"] == pytest.approx(1)
    assert perfect["by_criterion"]["style"]["mean"] == pytest.approx(1)
    low, high = out["rating_spearman_ci"]
    assert low <= out["rating_spearman"] <= high


SMALL = {
    "data build": {"--num-prompts": "12", "--num-held-out": "8", "--pictures": "3", "--generator": "none"},
    "train learned": {"--loop.num-steps": "2", "--shape.width": "16", "--shape.layers": "1"},
    "align": {
        "--loop.num-steps": "1",
        "--loop.validate-every": "1",
        "--batch-size": "4",
        "--lora-rank": "2",
        "--num-prompts": "4",
        "--probe-prompts": "2",
        "--probe-steps": "2",
        "--rollout.group-size": "2",
        "--rollout.num-steps": "2",
    },
    "evaluate": {"--every": "60", "--num-noises": "2", "--num-steps": "2"},
}


def loop_commands():
    """The files and the commands of the guide's loop, in order."""
    text = (ROOT / "docs/guides/composite.md").read_text().split("## The loop")[1]
    files = re.findall(r"`(reward-\d\.yaml)`.*?```yaml\n(.*?)```", text, re.DOTALL)
    lines = [s for b in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for s in b.replace("\\\n", " ").splitlines()]
    return dict(files), [shlex.split(line)[1:] for line in lines]


def test_every_command_of_the_loop_runs(tmp_path, monkeypatch, pipeline_folder, vlm_folder, capsys):
    for name, source in (("vlm-tiny", vlm_folder), ("judge-tiny", vlm_folder), ("generator-tiny", pipeline_folder)):
        shutil.copytree(source, tmp_path / "assets" / name)
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", tmp_path / "assets")
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    monkeypatch.chdir(tmp_path)
    files, commands = loop_commands()
    assert set(files) == {"reward-1.yaml", "reward-2.yaml"}
    for name, content in files.items():
        assert yaml.safe_load(content)["parts"]
        Path(name).write_text(content)
    for words in commands:
        name = next(n for n in (" ".join(words[:2]), words[0]) if n in SMALL or n == words[0])
        flags = {f: v for f, v in SMALL.get(name, {}).items() if f not in words}
        words = [SMALL.get(name, {}).get(words[i - 1], w) for i, w in enumerate(words)]
        assert main([*words, *(x for pair in flags.items() for x in pair)]) == 0, (words, capsys.readouterr().err)
    study = json.loads(Path("runs/weights/study.json").read_text())
    assert study["goal"] == "flat drawings that show what the prompt says"
    assert study["rationale"][-1] == "Constraints: no weight above 0.7."
    assert sum(study["suggestion"].values()) == pytest.approx(1, abs=0.01)
    assert study["num_choices"] == 8 * 3
    page = Path("runs/weights/report.html").read_text()
    assert "Study of weights" in page
    assert "flat drawings that show what the prompt says" in page
    assert json.loads(Path("runs/round-2/run.json").read_text())["config"]["judge"] == "reward-2.yaml"
    assert "paired over prompts" in capsys.readouterr().out
