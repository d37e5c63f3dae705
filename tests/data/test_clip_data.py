"""Records of clips in Parquet, from the moving world and from imported files, and their way to a judge's questions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_wan import tiny_wan

from rewarddance.apps.cli import main
from rewarddance.core.errors import ConfigError, InputError, RunError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.runs import write_json
from rewarddance.data.export import export
from rewarddance.data.importers import import_preferences
from rewarddance.data.parquet import RecordTable, row_of, voted_records, write_rows
from rewarddance.jobs.data.build import build_clips
from rewarddance.jobs.data.rationales import OracleTeacher, add_rationales
from rewarddance.jobs.train import held_out_sets, load_sets
from rewarddance.world.build.clip_preferences import CHANGES, ClipPreferencesConfig, change_records, clip_records
from rewarddance.world.motion.grammar import parse
from rewarddance.world.motion.oracle import judge
from rewarddance.world.motion.raters import utility
from rewarddance.world.motion.scene import FPS


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_clips_come_back_from_parquet_to_the_byte(task, tmp_path):
    config = ClipPreferencesConfig(task=task, num_prompts=3, clips=3, rate_share=0.5)
    records = list(clip_records(config))
    assert {m.fps for r in records for m in r.media} > {FPS}
    write_rows(map(row_of, records), tmp_path / "train.parquet")
    table = RecordTable.open(tmp_path / "train.parquet")
    assert table.are_clips == [True] * 3
    for again, record in zip(table, records, strict=True):
        assert [m.key for m in again.media] == [m.key for m in record.media]  # pixels and rate
        assert (again.prompt, again.criterion) == (record.prompt, "overall")
        for stored, made in zip(again.choices, record.choices, strict=True):
            assert (stored.first, stored.second, stored.label) == (made.first, made.second, pytest.approx(made.label))
        assert (again.condition is None) == (task == "t2v")
        if record.condition is not None:
            assert again.condition.key == record.condition.key
            assert not again.condition.is_clip


def test_a_folder_of_clips_is_built_once_and_its_sets_are_known(tmp_path):
    config = ClipPreferencesConfig(num_prompts=4, clips=2)
    build_clips(config, 2, tmp_path, changes=1)
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.parquet")}
    assert sorted(times) == ["changes.parquet", "id.parquet", "ood.parquet", "train.parquet"]
    build_clips(config, 2, tmp_path, changes=1)
    assert times == {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.parquet")}
    train, validation = load_sets(tmp_path, 0)
    assert len(train) == 4
    assert set(validation) == {"id", "ood"}
    sets = held_out_sets(tmp_path, frozenset(), 0, 100)
    assert [r.source for r in sets["changes"][0]] == list(CHANGES)


def test_a_generators_clips_lie_beside_renders(tmp_path, monkeypatch):
    """Half of the prompts show clips of a random Wan; with another task it is an error before anything is drawn."""
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", tmp_path / "assets")
    pipeline = tiny_wan().pipeline
    pipeline.save_pretrained(tmp_path / "assets" / "generator-tiny-video")
    shape = {"num_frames": 9, "fps": 8.0, "side": 48, "max_sequence_length": 24}
    write_json(tmp_path / "assets" / "generator-tiny-video" / "clip.json", shape)
    config = ClipPreferencesConfig(num_prompts=4, clips=2, generator_share=0.5, preview_share=1.0, mixed_share=1.0)
    build_clips(config, 2, tmp_path / "clips", 0, "tiny-video", num_steps=4)
    built = {n: list(RecordTable.open(tmp_path / "clips" / f"{n}.parquet")) for n in ("train", "id")}
    assert [r.source for r in built["train"]] == ["mixed", "mixed", "rendered", "rendered"]
    assert [r.source for r in built["id"]] == ["generator", "rendered"]
    alone = list(clip_records(ClipPreferencesConfig(num_prompts=4, clips=2)))
    assert [m.key for r in alone[2:] for m in r.media] == [m.key for r in built["train"][2:] for m in r.media]
    for record in built["train"] + built["id"]:
        assert {m.frames.shape for m in record.media} == {(9, 3, 48, 48)}
        spec = parse(record.prompt)
        values = [utility(judge(m.to_numpy(), spec, m.fps), "overall") for m in record.media]
        assert values == pytest.approx(list(record.truth))
    with pytest.raises(RunError, match=r"other settings \(num_steps\)"):
        build_clips(config, 2, tmp_path / "clips", 0, "tiny-video", num_steps=5)
    with pytest.raises(RunError, match=r"other settings \(generator\)"):
        build_clips(config, 2, tmp_path / "clips", 0)
    with pytest.raises(ConfigError, match="this generator is text-to-video"):
        build_clips(config.model_copy(update={"task": "i2v"}), 2, tmp_path / "i2v", 0, "tiny-video")
    assert not (tmp_path / "i2v").exists()


def test_data_of_an_earlier_version_goes_on_without_a_generator_and_not_with_one(tmp_path):
    config, file = ClipPreferencesConfig(num_prompts=1, clips=2), tmp_path / "data.json"
    build_clips(config, 1, tmp_path, changes=0)
    settings = json.loads(file.read_text())
    assert settings.pop("generator") == "none"
    del settings["num_steps"]
    file.write_text(json.dumps(settings))  # as an earlier version wrote it
    with pytest.raises(RunError, match=r"other settings \(generator\)"):
        build_clips(config, 1, tmp_path, 0, "tiny-video")
    build_clips(config, 1, tmp_path, changes=0)
    assert json.loads(file.read_text())["generator"] == "none"
    with pytest.raises(RunError, match=r"other settings \(generator\)"):
        build_clips(config, 1, tmp_path, 0, "tiny-video")


def test_a_change_is_the_only_thing_wrong(tmp_path):
    """By the oracle, which judged the pair, and by what differs."""
    for record in change_records(ClipPreferencesConfig(split="held_out"), 2):
        right, wrong = record.media
        spec = parse(record.prompt)
        values = [utility(judge(m.to_numpy(), spec, m.fps), "overall") for m in record.media]
        assert values == pytest.approx(list(record.truth))
        assert values[0] - values[1] >= 0.1
        assert values[0] > 0.9
        assert record.choices == (Choice(0, 1, 1.0),)
        same = [bool((a == b).all()) for a, b in zip(right.frames, wrong.frames, strict=True)]
        if record.source == "rate":
            assert all(same)
            assert wrong.fps / right.fps == (2 if spec.acts[0].speed == "slow" else 0.5)
        else:
            assert wrong.fps == right.fps == FPS
            assert not all(same)
        if record.source == "reversed":
            assert np.array_equal(right.to_numpy()[::-1], wrong.to_numpy())
        if record.source == "frozen":
            assert same[:4] == [True] * 4


def test_clips_without_a_rate_cannot_be_stored():
    clip = Media.from_numpy(np.zeros((3, 8, 8, 3), np.uint8), origin="x")
    with pytest.raises(InputError, match="x: a clip is stored with its frames per second"):
        row_of(PreferenceRecord("a", "p", (clip, clip), ()))


@pytest.fixture
def own(tmp_path):
    """A CSV of two pairs of clips, with their files."""
    rng = np.random.default_rng(0)
    for name in ("a.mp4", "b.mp4", "c.webm", "d.gif"):
        pixels = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        Media.from_numpy(pixels, fps=10.0).save(tmp_path / name)
    with open(tmp_path / "votes.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path_A", "path_B", "A_model", "B_model", "prompt", "VQ", "MQ", "TA", "Overall"])
        rows.writerow(["a.mp4", "b.mp4", "m", "n", "a dog runs", "A", "same", "", "B"])
        rows.writerow(["c.webm", "d.gif", "m", "n", "a cat sleeps", "", "", "", "A"])
    return tmp_path / "votes.csv"


def test_imported_clips_are_references_or_files(own, tmp_path):
    known = ("overall",)
    report = import_preferences(own, "videogen", tmp_path, tmp_path / "refs", criteria=known)
    assert any("2 records are of clips" in m and "--store-clips" in m for m in report.messages())
    with pytest.raises(InputError, match=r"2 of 2 records are of clips or of systems.*--store-clips"):
        RecordTable.open(tmp_path / "refs" / "train.parquet")
    report = import_preferences(own, "videogen", tmp_path, tmp_path / "kept", criteria=known, store_clips=True)
    assert not any("clips" in m for m in report.messages())
    table = RecordTable.open(tmp_path / "kept" / "train.parquet")
    assert table.criteria == ["visual quality", "motion quality", "overall", "overall"]
    assert {m.fps for r in table for m in r.media} == {10.0}
    assert table[0].media[0].key == Media.open(tmp_path / "a.mp4").key
    assert table[3].media[1].key == Media.open(tmp_path / "d.gif").key
    assert all(m.data for r in voted_records(tmp_path / "kept" / "train.parquet") for m in r.media)
    export(tmp_path / "kept" / "train.parquet", "jsonl", tmp_path / "out")
    assert len([p for p in (tmp_path / "out").rglob("*") if p.suffix in (".mp4", ".webm", ".gif")]) == 4


def test_own_rows_of_image_to_video_keep_their_clips_and_first_frame(own, tmp_path):
    first = Media.from_numpy(np.random.default_rng(9).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    first.save(tmp_path / "first.png")
    rows = ["prompt,image_a,image_b,label,condition", "a dog runs,a.mp4,b.mp4,b,first.png", "a dog runs,b.mp4,d.gif,a,"]
    (tmp_path / "own.csv").write_text("\n".join(rows) + "\n")
    assert main(["data", "import", str(tmp_path / "own.csv"), "--store-clips", "--out", str(tmp_path / "kept")]) == 0
    with_first, without = RecordTable.open(tmp_path / "kept" / "train.parquet")
    assert [m.key for m in with_first.media] == [Media.open(tmp_path / n).key for n in ("a.mp4", "b.mp4")]
    assert with_first.choices == (Choice(0, 1, 0.0),)
    assert {m.fps for m in (*with_first.media, *without.media)} == {10.0}
    (comparison,) = with_first.comparisons()
    assert comparison.condition.key == first.key
    assert not comparison.condition.is_clip
    assert without.condition is None
    for name in ("jsonl", "csv"):
        written = Path(export(tmp_path / "kept" / "train.parquet", name, tmp_path / name)["file"])
        import_preferences(written, name, tmp_path / name, tmp_path / f"{name}-again", store_clips=True)
        both = RecordTable.open(tmp_path / f"{name}-again" / "train.parquet")
        assert [r.condition and r.condition.key for r in both] == [first.key, None]


def test_broken_clips_are_rows_that_are_listed(own, tmp_path):
    (tmp_path / "b.mp4").write_bytes((tmp_path / "b.mp4").read_bytes()[:700])
    report = import_preferences(own, "videogen", tmp_path, tmp_path / "kept", "skip", store_clips=True)
    assert [place for place, _ in report.rejected] == [1]
    assert "b.mp4" in report.rejected[0][1]


@pytest.mark.parametrize(("flags", "message"), [
    (["--task", "t2v", "--generator-share", "0.5"], "renders alone without --generator; leave --generator-share out"),
    (["--task", "t2v", "--criterion", "style"], "--task t2v has no criterion style"),
    (["--task", "t2v", "--criterion", "first_frame"], "first_frame needs --task i2v"),
    (["--criterion", "motion"], "--task t2i has no criterion motion"),
    (["--task", "t2v", "--prompts", "p.txt"], "--task cannot be used in a build with --prompts"),
])  # fmt: skip
def test_flags_of_a_build_that_do_not_fit_are_one_line(flags, message, tmp_path, capsys):
    assert main(["data", "build", "--out", str(tmp_path / "x"), *flags]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_teachers_of_reasons_refuse_clips(tmp_path):
    build_clips(ClipPreferencesConfig(num_prompts=1, clips=2), 1, tmp_path, changes=0)
    with pytest.raises(InputError, match="holds clips, and teachers are shown pictures"):
        add_rationales(tmp_path, OracleTeacher(), tmp_path / "out")
