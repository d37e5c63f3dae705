import json
import struct

import numpy as np
import pytest
from PIL import Image

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.data.importers import import_preferences
from rewarddance.data.parquet import RecordTable, row_of, voted_records, write_rows
from rewarddance.jobs.train import load_sets


@pytest.fixture
def media_root(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    root.mkdir()
    for name, size in (("a.png", (30, 20)), ("b.jpg", (64, 48)), ("c.webp", (17, 90))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(root / name)
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:100])
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    return root


def pair(**changes):
    return {"prompt": "a red circle", "image_a": "a.png", "image_b": "b.jpg", "label": "a", **changes}


def write_jsonl(path, rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


def test_records_round_trip(tmp_path):
    media = tuple(Media.from_numpy(np.full((6, 5, 3), v, np.uint8)) for v in (10, 200))
    record = PreferenceRecord("r", "p", media, (Choice(0, 1, 0.5),), "fidelity", "rendered", (0.25, 0.75))
    write_rows([row_of(record)] * 3, tmp_path / "x.parquet")
    table = RecordTable.open(tmp_path / "x.parquet")
    assert len(table) == 3
    assert table[1].choices == record.choices
    assert table[-1].truth == record.truth
    assert np.array_equal(table[0].media[1].to_numpy(), media[1].to_numpy())


def test_tables_of_some_rows_read_their_own_pictures_group_by_group(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.data.shards.GROUP_ROWS", 4)
    monkeypatch.setattr("rewarddance.data.parquet.KEEP_GROUPS", 2)
    records = [
        PreferenceRecord(
            f"r{i}", f"p{i}", (Media.from_numpy(np.full((4, 4, 3), i, np.uint8)),) * 2, (Choice(0, 1, 1.0),)
        )
        for i in range(23)
    ]
    write_rows((row_of(r) for r in records), tmp_path / "x.parquet")
    table = RecordTable.open(tmp_path / "x.parquet", keep_bytes=4 * 4 * 3 * 4 * 2 * 3)  # three records
    some = table.take([21, 3, 3, 8]).take([3, 0, 1])
    assert some.prompts == ["p8", "p21", "p3"]
    assert [r.prompt for r in some] == ["p8", "p21", "p3"]
    for rows in (range(23), np.random.default_rng(0).permutation(23)):
        for i in map(int, rows):
            assert table[i].record_id == f"r{i}"
            assert (table[i].media[1].to_numpy() == i).all()
    assert [int(r.media[0].to_numpy()[0, 0, 0]) for r in some] == [8, 21, 3]
    assert len(table.pictures._kept) == 3


@pytest.mark.slow
def test_more_than_two_gigabytes_of_pictures(tmp_path):
    """What one 32-bit column of offsets cannot hold: splitting such a file used to fail."""
    row = row_of(PreferenceRecord("r", "p", (), (Choice(0, 1, 1.0),)))
    big = [{"bytes": bytes(2 << 20), "path": None}] * 2
    rows = ({**row, "id": str(i), "prompt": str(i % 100), "images": big} for i in range(600))
    assert write_rows(rows, tmp_path / "train.parquet") == 600
    train, held = load_sets(tmp_path, 0)
    assert (len(train), len(held["id"])) == (540, 60)
    assert len(train.pictures._encoded(train.rows[-1])["images"][1]["bytes"]) == 2 << 20


def test_import_reads_every_format_and_datasets_loads_it(tmp_path, media_root):
    rows = [
        pair(annotator=7, generator="sd3", style=None),
        pair(label="tie", image_b="c.webp"),
        {"prompt": "x", "chosen": "b.jpg", "rejected": "a.png"},
        {"prompt": "y", "images": ["a.png", "b.jpg", "c.webp"], "ranking": [2, 1, 2]},
    ]
    report = import_preferences(write_jsonl(tmp_path / "v.jsonl", rows), "jsonl", media_root, tmp_path / "out")
    assert (report.rows, report.accepted, report.rejected) == (4, 4, [])
    table = RecordTable.open(tmp_path / "out" / "train.parquet")
    assert [c.label for c in table[3].choices] == [0.0, 0.5, 1.0]
    assert table[0].media[1].size == (48, 64)
    assert table[0].groups == {"generator": "sd3", "annotator": "7"}
    assert table.group("annotator") == ["7", None, None, None]
    assert table.group("source") == ["import"] * 4
    from datasets import load_dataset

    loaded = load_dataset("parquet", data_files=str(tmp_path / "out" / "train.parquet"), cache_dir=str(tmp_path / "hf"))
    assert loaded["train"][1]["images"][1].size == (17, 90)
    assert loaded["train"][1]["preferences"][0]["choices"][0]["label"] == 0.5
    assert loaded["train"][0]["groups"] == [
        {"name": "generator", "value": "sd3"},
        {"name": "annotator", "value": "7"},
    ]


def test_csv_and_imagereward(tmp_path, media_root):
    (tmp_path / "v.csv").write_text("prompt,image_a,image_b,label\nhello,a.png,b.jpg,b\n")
    assert import_preferences(tmp_path / "v.csv", "csv", media_root, tmp_path / "c").accepted == 1
    rows = [{"id": "1", "prompt": "p", "generations": ["a.png", "b.jpg"], "ranking": [1, 2]}]
    (tmp_path / "v.json").write_text(json.dumps(rows))
    assert import_preferences(tmp_path / "v.json", "imagereward", media_root, tmp_path / "i").accepted == 1


BROKEN = [
    (pair(prompt=" "), "empty or missing 'prompt'"),
    (pair(label="maybe"), "unknown label 'maybe'"),
    (pair(image_a="none.png"), "no such file"),
    (pair(image_a="cut.png"), "truncated"),
    (pair(image_a="../secret.png"), "outside the media root"),
    (pair(image_a="/etc/passwd"), "outside the media root"),
    ({"prompt": "p"}, "no preference"),
    ({"prompt": "p", "images": ["a.png"], "ranking": [1]}, "two or more"),
    ({"prompt": "p", "images": ["a.png", "b.jpg"], "ranking": [1]}, "the same number"),
    ({"prompt": "p", "images": ["a.png", "b.jpg"], "ranking": [1, float("nan")]}, "finite"),
    ("{not json", "not JSON"),
    ("[1, 2]", "not a JSON object"),
]


def test_every_broken_row_is_listed_and_stops_the_import(tmp_path, media_root):
    source = write_jsonl(tmp_path / "v.jsonl", [pair(), *(row for row, _ in BROKEN)])
    with pytest.raises(InputError, match=r"12 of 13 rows are broken .*first: row 2"):
        import_preferences(source, "jsonl", media_root, tmp_path / "out")
    assert not (tmp_path / "out" / "train.parquet").exists()
    listed = json.loads((tmp_path / "out" / "import.json").read_text())
    assert (listed["rows"], listed["accepted"], len(listed["rejected"])) == (13, 1, 12)
    for (_, reason), entry, number in zip(BROKEN, listed["rejected"], range(2, 14), strict=True):
        assert entry["row"] == number
        assert reason in entry["reason"], entry


def save_gif(path, num, first=0):
    frames = [Image.new("RGB", (30, 20), (40 * (k + first), 0, 0)) for k in range(num)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def test_clips_under_the_name_of_a_picture_are_broken_rows(tmp_path, media_root):
    save_gif(media_root / "moving.gif", 3)
    (media_root / "cut.gif").write_bytes((media_root / "moving.gif").read_bytes()[:20])
    (media_root / "clip.png").write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    (media_root / "bomb.gif").write_bytes(b"GIF89a" + struct.pack("<HH", 60000, 60000) + bytes(20))
    (media_root / "named.gif").write_bytes((media_root / "c.webp").read_bytes())  # read by its content
    rows = [
        pair(),
        pair(image_a="moving.gif"),
        pair(image_b="clip.png"),
        pair(condition="moving.gif"),
        pair(image_a="cut.gif"),
        pair(image_a="bomb.gif"),
        pair(image_a="named.gif"),
    ]
    report = import_preferences(write_jsonl(tmp_path / "v.jsonl", rows), "jsonl", media_root, tmp_path / "out", "skip")
    assert report.accepted == 2
    assert [reason.split("/")[-1].partition(" (")[0] for _, reason in report.rejected] == [
        "moving.gif is a clip, b.jpg is a picture; give candidates of one kind",
        "clip.png: a clip, not a picture",
        "moving.gif: an animation of 3 frames, not a picture",
        "cut.gif: unreadable or truncated picture",
        "bomb.gif: unreadable or truncated picture",
    ]


@pytest.mark.parametrize("store_clips", [False, True])
def test_a_gif_of_several_frames_is_a_clip_and_one_of_one_frame_a_picture(store_clips, tmp_path, media_root):
    for name, num in (("a.gif", 3), ("b.gif", 4), ("still.gif", 1)):
        save_gif(media_root / name, num, num)
    source = write_jsonl(tmp_path / "v.jsonl", [pair(image_a="a.gif", image_b="b.gif"), pair(image_a="still.gif")])
    import_preferences(source, "jsonl", media_root, tmp_path / "out", store_clips=store_clips)
    moving, still = voted_records(tmp_path / "out" / "train.parquet")
    assert [(m.kind, m.num_frames, m.fps) for m in moving.media] == [
        ("video", 3 if store_clips else None, 10.0 if store_clips else None),
        ("video", 4 if store_clips else None, 10.0 if store_clips else None),
    ]
    assert [(m.kind, bool(m.data)) for m in still.media] == [("image", True)] * 2


def test_reasons_do_not_keep_the_chosen_picture_first(tmp_path, media_root):
    rng = np.random.default_rng(1)
    rows = []
    for k in range(24):
        for side in "cr":
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(media_root / f"{side}{k}.png")
        reason = "The candidate is red, the reference is not"
        rows.append({"prompt": f"p{k}", "chosen": f"c{k}.png", "rejected": f"r{k}.png", "rationale": reason})
    import_preferences(write_jsonl(tmp_path / "v.jsonl", rows), "jsonl", media_root, tmp_path / "out")
    table = RecordTable.open(tmp_path / "out" / "train.parquet")
    assert 4 < sum(table.labels) < 20
    for k, record in enumerate(table):
        (made,) = record.choices
        chosen = Media.open(media_root / f"c{k}.png")
        assert record.media[0 if made.label == 1 else 1].key == chosen.key
        turned = "The reference is red, the candidate is not"
        assert made.rationale == ("The candidate is red, the reference is not" if made.label == 1 else turned)


UNJUDGED = [
    {"prompt": "p", "images": ["a.png", "b.jpg", "c.webp"]},
    {"prompt": "p", "image_a": "a.png", "image_b": "b.jpg"},
    pair(label=None),
    pair(label=""),
]


def test_rows_that_state_no_preference_are_records_without_votes(tmp_path, media_root):
    source = write_jsonl(tmp_path / "v.jsonl", UNJUDGED)
    report = import_preferences(source, "auto", media_root, tmp_path / "out")
    assert (report.format, report.accepted, report.without_votes) == ("jsonl", 4, 4)
    assert any("no row states a preference" in line for line in report.messages())
    records = list(voted_records(tmp_path / "out" / "train.parquet"))
    assert [(len(r.candidates), r.votes) for r in records] == [(3, ()), (2, ()), (2, ()), (2, ())]
    source = write_jsonl(tmp_path / "v.jsonl", [*UNJUDGED, pair()])
    report = import_preferences(source, "auto", media_root, tmp_path / "mixed")
    assert any(line.startswith("4 records have no votes") for line in report.messages())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair(label=None, strength=0.5), "a strength without a preference"),
        (pair(label=None, rationale="sharper"), "a rationale without a preference"),
        (pair(label=None, votes_b=3), "votes_a"),
        (pair(label=None, rating_b=3), "rating"),
        ({"prompt": "p", "images": ["a.png"]}, "needs two or more"),
        ({"prompt": "p", "images": ["a.png", "b.jpg"], "ranking": "1, 2"}, "must be a list"),
    ],
)
def test_half_a_preference_is_a_broken_row(tmp_path, media_root, row, reason):
    source = write_jsonl(tmp_path / "v.jsonl", [row])
    with pytest.raises(InputError, match=reason):
        import_preferences(source, "jsonl", media_root, tmp_path / "out")


def test_broken_rows_can_be_skipped(tmp_path, media_root):
    source = write_jsonl(tmp_path / "v.jsonl", [pair(label="x"), pair(), pair()])
    report = import_preferences(source, "jsonl", media_root, tmp_path / "out", "skip")
    assert (report.rows, report.accepted, [n for n, _ in report.rejected]) == (3, 2, [1])
    assert len(RecordTable.open(tmp_path / "out" / "train.parquet")) == 2


def test_bombs_are_rejected_by_row(tmp_path, media_root, monkeypatch):
    monkeypatch.setattr("rewarddance.core.media.MAX_PIXELS", 1000)
    source = write_jsonl(tmp_path / "v.jsonl", [pair()])
    with pytest.raises(InputError, match="over the limit"):
        import_preferences(source, "jsonl", media_root, tmp_path / "out")


def test_links_out_of_the_media_root_are_refused(tmp_path, media_root):
    (media_root / "link.png").symlink_to(tmp_path / "secret.png")
    source = write_jsonl(tmp_path / "v.jsonl", [pair(image_a="link.png")])
    with pytest.raises(InputError, match="outside the media root"):
        import_preferences(source, "jsonl", media_root, tmp_path / "out")


def test_missing_things_are_named(tmp_path, media_root):
    with pytest.raises(InputError, match="no such file"):
        import_preferences(tmp_path / "none", "jsonl", media_root, tmp_path / "o")
    with pytest.raises(InputError, match="not a folder"):
        import_preferences(write_jsonl(tmp_path / "v", [pair()]), "jsonl", tmp_path / "none", tmp_path / "o")
    with pytest.raises(InputError, match="data import"):
        RecordTable.open(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(InputError, match="not a Parquet file"):
        RecordTable.open(tmp_path / "text.parquet")


def test_soft_labels_and_what_a_choice_is_about(tmp_path, media_root):
    rows = [
        pair(label=None, probability=0.75),
        pair(label=None, votes_a=1, votes_b=3, criterion="style"),
        pair(label=None, probability=1.5),
        pair(label=None, votes_a=0, votes_b=0),
        pair(criterion="glamour"),
    ]
    source = write_jsonl(tmp_path / "v.jsonl", rows)
    report = import_preferences(source, "jsonl", media_root, tmp_path / "out", "skip", ("overall", "style"))
    assert [n for n, _ in report.rejected] == [3, 4, 5]
    assert "unknown criterion 'glamour'; known: overall, style" in report.rejected[2][1]
    table = RecordTable.open(tmp_path / "out" / "train.parquet")
    assert table.labels == [0.75, 0.25]
    assert [r.criterion for r in table] == ["overall", "style"]


def test_pictures_that_no_judge_can_look_at_are_broken_rows(tmp_path, media_root):
    Image.new("RGB", (1, 1)).save(media_root / "dot.png")
    Image.new("RGB", (900, 3)).save(media_root / "line.png")
    rows = [pair(image_a="dot.png"), pair(image_b="line.png"), pair()]
    report = import_preferences(write_jsonl(tmp_path / "v.jsonl", rows), "jsonl", media_root, tmp_path / "out", "skip")
    reasons = dict(report.rejected)
    assert set(reasons) == {1, 2}
    assert "dot.png: 1x1 pixels is too small" in reasons[1]
    assert "line.png: 900x3 pixels is too small or too narrow" in reasons[2]


def test_ratings_are_kept_and_imply_choices(tmp_path, media_root):
    listed = {"prompt": "p", "images": ["a.png", "b.jpg", "c.webp"]}
    rows = [
        {**listed, "ratings": [4.5, 2, 2]},
        pair(label=None, rating_a=1, rating_b="3.5"),
        {**listed, "ratings": [0, 2, 5]},
        pair(label="a", rating_a=1, rating_b=2),
        pair(label=None, rating_a=1),
        {**listed, "ratings": [1, 2]},
        pair(label=None, rating_a=1, rating_b=2, votes_a=3),
        {**listed, "ratings": [1, 2, 3], "ranking": [1, 2, 3]},
        {**listed, "ratings": None, "ranking": [1, 2, 3]},
    ]
    source = write_jsonl(tmp_path / "v.jsonl", rows)
    report = import_preferences(source, "jsonl", media_root, tmp_path / "out", "skip")
    reasons = dict(report.rejected)
    assert list(reasons) == [3, 4, 5, 6, 7, 8]
    assert "rating 0 is not between 1 and 5" in reasons[3]
    assert [reasons[n] for n in (4, 7, 8)] == [
        f"both ratings and {other}: keep one of them" for other in ("label", "votes_a", "ranking")
    ]
    assert "not a number" in reasons[5]
    assert "3 images and 2 ratings" in reasons[6]
    table = RecordTable.open(tmp_path / "out" / "train.parquet")
    first, second, ranked = table
    assert ranked.ratings is None
    assert first.ratings == (4.5, 2.0, 2.0)
    assert [c.label for c in first.choices] == [1.0, 1.0, 0.5]
    assert (second.ratings, second.choices[0].label) == ((1.0, 3.5), 0.0)


def test_labels_that_count_from_nought_stop_the_import(tmp_path, media_root):
    """Left out one by one, every 0 would be gone and every 1 would mean the first picture."""
    source = write_jsonl(tmp_path / "v.jsonl", [pair(label=1), pair(label=0)])
    with pytest.raises(InputError, match="row 2: label 0"):
        import_preferences(source, "jsonl", media_root, tmp_path / "out", "skip")
    assert not (tmp_path / "out" / "train.parquet").exists()
