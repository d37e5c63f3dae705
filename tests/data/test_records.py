"""The record schema: votes, what is derived from them, migration, shards, manifest and data card."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import layouts
from support.layout_files import SIDE

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice
from rewarddance.data.derive import choices, likert, mean_ranks, mean_ratings, preferences, whole_ratings
from rewarddance.data.folder import check_manifest
from rewarddance.data.importers import import_preferences
from rewarddance.data.loading import by_content, reordered
from rewarddance.data.parquet import RecordTable, voted_records
from rewarddance.data.schema import hash_of, migrate, row_of_votes, voted
from rewarddance.data.shards import split_files, write_rows, write_shards
from rewarddance.data.votes import MediaRef, Vote, VotedRecord, check_votes, choice, iso_time


def record(*votes, num=3, **facts):
    media = tuple(MediaRef(sha256=str(i), path=f"{i}.png", data=layouts.png(i)) for i in range(num))
    return VotedRecord("r", "p", media, tuple(votes), **facts)


def test_choices_are_weighted_shares_of_the_votes():
    votes = [
        choice(1.0, 0, 1, annotator="x", strength=1.0),
        choice(1.0, 1, 0, annotator="y", strength=0.5),
        choice(0.5, 0, 1),
        choice(0.0, 2, 1, weight=3.0),
        Vote("ranking", (0, 1, 2), (1, 1, 2)),
    ]
    assert choices(votes) == (
        Choice(0, 1, (1 + 0 + 0.5 + 0.5) / 4, None, 0.75),
        Choice(2, 1, 0.0),
        Choice(0, 2, 1.0),
    )


def test_a_reason_counts_if_it_is_of_the_winning_side():
    votes = [choice(0.0, reason="worse"), choice(1.0, reason="better"), choice(1.0)]
    assert choices(votes)[0].rationale == "better"
    other_order = choice(0.0, 1, 0, reason="the candidate is blurred, the reference is sharp")
    assert choices([choice(1.0), other_order])[0].rationale == "the reference is blurred, the candidate is sharp"
    assert choices([choice(1.0), choice(1.0), choice(1.0, 1, 0, reason="better")])[0].rationale is None


def test_ratings_decide_pairs_by_annotator_where_there_is_no_choice():
    five, seven = (1.0, 5.0), (1.0, 7.0)
    votes = [
        Vote("rating", (0,), (5.0,), annotator="x", scale=five),
        Vote("rating", (1,), (3.0,), annotator="x", scale=five),
        Vote("rating", (0, 1), (1.0, 7.0), annotator="y", scale=seven),
    ]
    assert choices(votes) == (Choice(0, 1, 0.5),)
    assert mean_ratings(votes, 2) == (3.0, 4.0)
    assert mean_ratings(votes, 3) is None
    mixed = record(*votes, choice(1.0), Vote("rating", (0, 1), (2, 4), "style", scale=five), num=2)
    overall, style = preferences(mixed)
    assert (overall.choices, overall.ratings) == ((Choice(0, 1, 1.0),), (3.0, 4.0))
    assert (style.criterion, style.choices) == ("style", (Choice(0, 1, 0.0),))
    assert likert(mixed) == {"style": (2.0, 4.0)}


def test_single_ratings_are_merged_and_other_votes_are_as_they_were():
    five = (1.0, 5.0)
    first = Vote("rating", (1,), (5.0,), "style", "x", scale=five, seconds=3.0)
    second = Vote("rating", (0,), (4.0,), "style", "x", scale=five, seconds=3.0, created="2024")
    whole = Vote("rating", (0, 1), (1.0, 7.0), "style", "y", scale=(1.0, 7.0))
    merged = Vote("rating", (0, 1), (4.0, 5.0), "style", "x", scale=five, seconds=3.0)  # times differ
    assert whole_ratings([first, whole, choice(1.0), second]) == [whole, choice(1.0), merged]


def test_mean_ranks_share_ties():
    votes = Vote("ranking", (0, 1, 2), (5, 5, 9)), Vote("ranking", (2, 1, 0), (1, 2, 3))
    assert mean_ranks(record(*votes)) == ((1.5 + 3) / 2, (1.5 + 2) / 2, (3 + 1) / 2)
    assert mean_ranks(record(choice(1.0))) is None


def test_new_orders_keep_what_the_votes_say():
    original = record(
        choice(1.0, 0, 2, shown=(2, 0)), Vote("rating", (0, 1), (4, 2), scale=(1, 5)), truth=(0.1, 0.2, 0.3)
    )
    turned = reordered(original, [2, 0, 1])
    assert [m.sha256 for m in turned.media] == ["2", "0", "1"]
    assert turned.truth == (0.3, 0.1, 0.2)
    assert (turned.votes[0].media, turned.votes[0].values, turned.votes[0].shown) == ((0, 1), (0.0,), (0, 1))
    assert (turned.votes[1].media, turned.votes[1].values) == ((1, 2), (4, 2))
    assert by_content(turned) == original


@pytest.mark.parametrize(
    ("vote", "reason"),
    [
        (choice(1.0, 0, 3), "names candidate 4 of 3"),
        (choice(1.5), "label 1.5"),
        (choice(1.0, weight=0.0), "weight"),
        (choice(1.0, strength=2.0), "strength"),
        (Vote("rating", (0,), (6.0,), scale=(1, 5)), "not between 1 and 5"),
        (Vote("rating", (0,), (1.0,)), "scale"),
        (Vote("ranking", (0, 1), (1.0,)), "1 values for 2"),
        (Vote("ranking", (0, 0), (1.0, 2.0)), "twice"),
        (choice(float("nan")), "finite"),
    ],
)
def test_votes_that_cannot_be(vote, reason):
    with pytest.raises(InputError, match=reason):
        check_votes(record(vote))


def test_times_are_utc():
    assert iso_time("2024-05-01T14:00:00+02:00") == "2024-05-01T12:00:00+00:00"
    assert iso_time(None) is None
    with pytest.raises(InputError, match="not a time"):
        iso_time("yesterday")


OLD_CHOICE = pa.struct(
    [("first", pa.int32()), ("second", pa.int32()), ("label", pa.float32()), ("rationale", pa.string())]
)
OLD = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("criterion", pa.string()),
        ("source", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("choices", pa.list_(OLD_CHOICE)),
        ("truth", pa.list_(pa.float32())),
        ("ratings", pa.list_(pa.float32())),
        ("groups", pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))),
    ]
)


def old_file(path):
    """A file as version 1 wrote it."""
    row = {"id": "r", "prompt": "p", "criterion": "style", "source": "rendered", "truth": [0.25, 0.75]}
    row["images"] = [{"bytes": layouts.png(i), "path": None} for i in range(2)]
    row["choices"] = [{"first": 1, "second": 0, "label": 0.75, "rationale": "the candidate is red"}]
    row |= {"ratings": [2.0, 4.5], "groups": [{"name": "annotator", "value": "7"}]}
    second = {**row, "id": "s", "choices": [], "ratings": None, "groups": None, "truth": None}
    pq.write_table(pa.Table.from_pylist([row, second], OLD), path)


def test_files_of_version_1_are_read_and_migrated(tmp_path):
    old_file(tmp_path / "old.parquet")
    old = RecordTable.open(tmp_path / "old.parquet")
    write_rows(pq.read_table(tmp_path / "old.parquet").to_pylist(), tmp_path / "new.parquet")
    new = RecordTable.open(tmp_path / "new.parquet")
    for table in (old, new):
        first, second = table
        assert first.choices == (Choice(1, 0, 0.75, "the candidate is red"),)
        assert (first.criterion, first.source, first.truth, first.ratings) == (
            "style",
            "rendered",
            (0.25, 0.75),
            (2.0, 4.5),
        )
        assert (second.choices, second.ratings, second.groups) == ((), None, {})
        assert table.group("annotator") == ["7", None]
        assert np.array_equal(first.media[0].to_numpy()[0, 0], old[0].media[0].to_numpy()[0, 0])
    for name in ("old", "new"):
        first, _ = voted_records(tmp_path / f"{name}.parquet")
        assert [v.kind for v in first.votes] == ["choice", "rating"]
        assert first.votes[0] == Vote("choice", (1, 0), (0.75,), "style", "7", reason="the candidate is red")
        assert first.media[0].sha256 == hash_of(layouts.png(0))


def test_rows_of_a_newer_version_are_refused(tmp_path):
    row = row_of_votes(record(choice(1.0)))
    with pytest.raises(InputError, match="version 99"):
        migrate(row | {"version": 99})
    write_rows([row], tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    table = table.set_column(0, "version", pa.array([99], pa.int32()))
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="version 99"):
        RecordTable.open(tmp_path / "x.parquet")


def test_a_row_gives_its_record_back_and_training_sees_one_record_a_criterion(tmp_path):
    full = record(
        choice(1.0, annotator="x", created="2024-05-01T12:00:00+00:00", seconds=2.5, shown=(1, 0), both_bad=False),
        Vote("rating", (0, 1, 2), (1.0, 2.0, 3.0), "style", scale=(1, 7), weight=2.0),
        truth=(0.5, 0.25, 0.0),
        groups={"style": "flat"},
        source="somewhere",
    )
    open_row = record()
    write_rows(map(row_of_votes, [full, open_row, full]), tmp_path / "x.parquet")
    assert list(voted_records(tmp_path / "x.parquet")) == [full, open_row, full]
    assert voted(row_of_votes(full)) == full
    table = RecordTable.open(tmp_path / "x.parquet")
    assert table.criteria == ["overall", "style"] * 2
    assert table.rows == [0, 0, 2, 2]
    assert [len(r.media) for r in table] == [3] * 4
    assert table[3].ratings == pytest.approx((1, 1 + 4 / 6, 1 + 8 / 6))
    assert table.take([3, 0]).criteria == ["style", "overall"]


def test_conditions_are_no_candidates(tmp_path):
    media = (*record(num=2).media, MediaRef(sha256="9", role="condition", data=layouts.png(9)))
    write_rows([row_of_votes(VotedRecord("r", "p", media, (choice(1.0),)))], tmp_path / "x.parquet")
    assert len(RecordTable.open(tmp_path / "x.parquet")[0].media) == 2
    assert len(next(voted_records(tmp_path / "x.parquet")).conditions) == 1


def test_shards_read_as_one_split_and_replace_older_ones(tmp_path):
    def media(i):
        return tuple(MediaRef(sha256=f"{i}{k}", data=layouts.png(10 * i + k)) for k in (1, 2))

    records = [VotedRecord(f"r{i}", f"p{i}", media(i), (choice(i % 2),)) for i in range(7)]
    path = tmp_path / "train.parquet"
    size = sum(len(m.data) for m in records[0].media)
    files = write_shards(map(row_of_votes, records), path, shard_bytes=2 * size)
    assert [f.name for f in files] == [f"train-{i:05d}-of-00004.parquet" for i in range(4)]
    assert RecordTable.open(path).prompts == [f"p{i}" for i in range(7)]
    assert RecordTable.open(path)[6].choices == (Choice(0, 1, 0.0),)
    for stored, read in zip(records, RecordTable.open(path), strict=True):  # each record has its own pictures
        wanted = [Media.open(io.BytesIO(m.data)).frames for m in stored.media]
        assert all(torch.equal(a, b.frames) for a, b in zip(wanted, read.media, strict=True))
    files[1].rename(tmp_path / "away")
    with pytest.raises(InputError, match="not complete"):
        RecordTable.open(path)
    (tmp_path / "away").rename(files[1])

    def broken():
        yield row_of_votes(records[0])
        raise InputError("a bad row")

    with pytest.raises(InputError, match="a bad row"):
        write_shards(broken(), path, shard_bytes=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f.name for f in files)
    assert write_shards(map(row_of_votes, records), path) == [path] == split_files(path)
    assert [p.name for p in tmp_path.iterdir()] == ["train.parquet"]


def test_the_data_card_makes_a_folder_that_datasets_loads(tmp_path):
    source = layouts.own_jsonl(tmp_path, 6)
    out = tmp_path / "mine"
    import_preferences(source, "auto", tmp_path, out, shard_bytes=2000)
    manifest = json.loads((out / "manifest.json").read_text())
    train = manifest["splits"]["train"]
    assert len(train["files"]) > 1
    numbers = {k: train[k] for k in ("records", "media", "votes", "choices", "ties", "annotators", "prompts")}
    assert numbers == {
        "records": 6, "media": 12, "votes": 6, "choices": 6, "ties": 2, "annotators": 3, "prompts": 3,
    }  # fmt: skip
    assert check_manifest(out) == []
    from datasets import load_dataset

    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "hf"))
    assert list(loaded) == ["train"]
    assert len(loaded["train"]) == 6
    assert loaded["train"][0]["images"][0].size == (SIDE, SIDE)
    assert loaded["train"][0]["votes"][0]["annotator"] == "person-0"
    (out / train["files"][0]["name"]).write_bytes(b"")
    assert check_manifest(out) == [f"{train['files'][0]['name']} is not the file of the manifest"]
    (out / "README.md").write_text("my own words")
    import_preferences(source, "auto", tmp_path, out)
    assert (out / "README.md").read_text() == "my own words"
