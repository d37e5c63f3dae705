"""Every public format: what its labels come to, what is no judgement, and that an export imports as the same."""

import json
from dataclasses import replace

import pytest
from support import layouts
from support.layouts import LAYOUTS

from rewarddance.core.errors import InputError
from rewarddance.data import writers
from rewarddance.data.derive import preferences
from rewarddance.data.export import WRITERS, export
from rewarddance.data.importers import import_preferences
from rewarddance.data.names import FORMATS
from rewarddance.data.parquet import RecordTable, voted_records
from rewarddance.data.readers import READERS, detect
from rewarddance.data.schema import hash_of, row_of_votes
from rewarddance.data.shards import write_rows
from rewarddance.data.votes import MediaRef, Vote, VotedRecord, choice

CRITERIA = ("overall", "style", "fidelity")


def imported(source, out, format="auto", root=None, **how):
    report = import_preferences(source, format, root or source.parent, out, criteria=CRITERIA, **how)
    return report, list(voted_records(out / "train.parquet"))


def labels(record, criterion="overall"):
    """Label of every pair by the seeds of its pictures, whatever their order: {(lower seed, higher seed): label}."""
    names = {hash_of(layouts.png(seed)): seed for seed in range(60)}
    seeds = [names[m.sha256] for m in record.candidates]
    made = next(p for p in preferences(record) if p.criterion == criterion).choices
    label_of_pair = {}
    for c in made:
        a, b = seeds[c.first], seeds[c.second]
        label_of_pair[(min(a, b), max(a, b))] = c.label if a < b else 1 - c.label
    return label_of_pair


def comparable(record, ids):
    """A record without what an export changes: the paths of pictures, and ids where the format has none."""
    media = tuple(replace(m, path=None, data=None) if m.kind == "image" else m for m in record.media)
    return replace(record, media=media, record_id=record.record_id if ids else "", source="")


def test_every_format_has_a_reader_a_writer_and_a_layout():
    assert set(READERS) == set(WRITERS) == set(LAYOUTS) == set(FORMATS)


WITHOUT_IDS = {"hpdv2", "hpdv3", "richhf", "trl", "videogen"}


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_is_recognised_and_its_export_gives_the_same_records(tmp_path, format):
    source = LAYOUTS[format](tmp_path, 9)
    taken = detect(source)
    assert taken.format == format
    assert "rows have" in taken.reason
    report, records = imported(source, tmp_path / "first")
    assert report.accepted == len(records) == {"imagerewarddb": 3, "fastchat": 8}.get(format, 9)
    written = export(tmp_path / "first" / "train.parquet", format, tmp_path / "export")
    assert (written["records"], written["left_out"]) == (len(records), {})
    root = tmp_path if format in ("videogen", "videofeedback") else None  # clips stay where they are
    again, others = imported(tmp_path / "export" / WRITERS[format].file, tmp_path / "second", root=root)
    assert again.format == format
    ids = format not in WITHOUT_IDS
    if format == "fastchat":  # an address is a hash, which is not written
        records = [replace(r, votes=tuple(replace(v, annotator=None) for v in r.votes)) for r in records]
    if format == "csv":
        records = [replace(r, groups=r.groups | {"annotator": v.annotator}) for r in records for v in r.votes]
    assert [comparable(r, ids) for r in others] == [comparable(r, ids) for r in records]


def test_jsonl_keeps_whole_records_of_every_format(tmp_path):
    for format in FORMATS:
        folder = tmp_path / format
        folder.mkdir()
        _, records = imported(LAYOUTS[format](folder, 6), folder / "first")
        export(folder / "first" / "train.parquet", "jsonl", folder)
        known = {v.criterion for r in records for v in r.votes}
        import_preferences(folder / "records.jsonl", "auto", folder, folder / "second", criteria=known)
        others = list(voted_records(folder / "second" / "train.parquet"))
        assert [comparable(r, True) for r in others] == [comparable(r, True) for r in records], format


def test_labels_of_the_sets_of_pictures(tmp_path):
    def records(name, num=3):
        folder = tmp_path / name
        folder.mkdir()
        return imported(getattr(layouts, name)(folder, num), folder / "out")[1]

    assert labels(records("imagereward")[1]) == {(3, 4): 0.0, (3, 5): 0.5, (4, 5): 1.0}
    first, second, tie = records("pickapic")
    assert [labels(first), labels(second), labels(tie)] == [{(0, 1): 1.0}, {(2, 3): 0.0}, {(4, 5): 0.5}]
    assert (first.votes[0].annotator, first.votes[0].created) == ("0", "2023-01-02T03:04:05.000678+00:00")
    assert first.candidates[1].model == "dreamlike-art/dreamlike-photoreal-2.0"
    assert [labels(r) for r in records("hpdv2", 2)] == [{(0, 1): 1.0}, {(2, 3): 0.0}]
    assert labels(records("hpdv2_test")[0]) == {(0, 1): 2 / 3, (0, 2): 1.0, (1, 2): 2 / 3}
    dist = records("hpdv3")
    assert labels(dist[0])[(0, 1)] == pytest.approx(12 / 19)
    assert dist[0].groups == {"confidence": "0.75"}
    assert all(label == 1.0 for r in records("mj_bench", 8) for label in labels(r).values())
    assert all(label == 1.0 for r in records("trl", 8) for label in labels(r).values())
    rated = records("imagerewarddb", 3)[0]
    by_name = {p.criterion: p for p in preferences(rated)}
    assert labels(rated) == {(0, 1): 1.0, (0, 2): 0.5, (1, 2): 0.0}
    assert by_name["fidelity"].ratings == pytest.approx([5.0, 1 + 4 * 5 / 6, 1 + 4 * 4 / 6])
    one = {p.criterion: p.ratings for p in preferences(records("richhf", 3)[1])}
    assert one == {"overall": (5.0,), "aesthetics": (2.0,), "plausibility": (4.0,), "fidelity": (3.0,)}


def test_the_better_picture_of_files_that_put_it_first_can_be_on_either_side(tmp_path):
    for name in ("mj_bench", "hpdv3", "trl"):
        folder = tmp_path / name
        folder.mkdir()
        imported(getattr(layouts, name)(folder, 24), folder / "out")
        sides = [label > 0.5 for label in RecordTable.open(folder / "out" / "train.parquet").labels]
        assert 4 < sum(sides) < 20, name


def test_arena_votes_know_the_side_and_both_bad(tmp_path):
    _, records = imported(layouts.genai_bench(tmp_path, 4), tmp_path / "out")
    votes = [r.votes[0] for r in records]
    assert [(v.values[0], v.both_bad) for v in votes] == [(1.0, False), (0.0, False), (0.5, False), (0.5, True)]
    assert all(v.shown == (0, 1) for v in votes)
    assert votes[0].created == "2024-04-24T23:06:40.250000+00:00"
    report, systems = imported(layouts.fastchat(tmp_path, 5), tmp_path / "chat")
    assert report.skipped == {"a line of type 'chat'": 1}
    assert [m.model for m in systems[1].candidates] == ["vicuna-13b", "dolly"]
    assert (systems[0].prompt, len(systems[0].votes[0].annotator)) == ("prompt 0", 12)
    with pytest.raises(InputError, match="4 of 4 records are of clips or of systems"):
        RecordTable.open(tmp_path / "chat" / "train.parquet")


def test_tools_keep_people_times_and_ties(tmp_path):
    _, records = imported(layouts.label_studio(tmp_path, 3), tmp_path / "ls")
    choices = [v for v in records[1].votes if v.kind == "choice"]
    assert [(v.annotator, v.values[0], v.seconds) for v in choices] == [("1", 0.5, 7.25), ("2", 1.0, 7.25)]
    ratings = [v for v in records[1].votes if v.kind == "rating"]
    assert [(v.media, v.values, v.criterion) for v in ratings] == [((0,), (4.0,), "fidelity")] * 2
    _, records = imported(layouts.argilla(tmp_path, 4), tmp_path / "ar")
    assert [(v.annotator, v.values[0], v.both_bad) for v in records[3].votes[:2]] == [
        ("u1", 0.5, True),
        ("u2", 1.0, False),
    ]
    flat = [
        {
            **json.loads((tmp_path / "records.json").read_text())[0]["fields"],
            "preference.responses": ["image_b", "image_a"],
            "preference.responses.users": ["u1", "u2"],
            "preference.responses.status": ["submitted", "discarded"],
            "preference.suggestion": "image_a",
        }
    ]
    report, (record,) = imported(layouts.as_json(tmp_path, "flat.json", flat), tmp_path / "fl")
    assert (report.format, [v.values for v in record.votes]) == ("argilla", [(0.0,)])


def test_clips_are_references_and_the_import_says_so(tmp_path):
    report, records = imported(layouts.videogen(tmp_path, 3), tmp_path / "vg")
    assert any("3 records are of clips" in line for line in report.messages())
    assert {v.criterion: v.values[0] for v in records[1].votes} == {
        "visual quality": 0.0,
        "motion quality": 0.5,
        "text alignment": 1.0,
        "overall": 0.0,
    }
    one = records[0].candidates[0]
    assert (one.path, one.fps, one.num_frames, one.model) == ("videos/00000.mp4", 24.0, 120, "sora")
    assert one.sha256 == hash_of((tmp_path / one.path).read_bytes())
    assert labels_by_rating(imported(layouts.videofeedback(tmp_path, 2), tmp_path / "vf")[1][1]) == 2.0
    source = layouts.as_json(tmp_path, "under.json", [underscored(tmp_path)])
    assert labels_by_rating(imported(source, tmp_path / "us")[1][0]) == 2.0
    _, linked = imported(layouts.genai_bench_video(tmp_path, 1), tmp_path / "gv")
    assert [m.path for m in linked[0].candidates] == ["https://example.org/l0.mp4", "https://example.org/r0.mp4"]
    (tmp_path / "videos" / "00001.mp4").unlink()
    report = import_preferences(layouts.videogen(tmp_path, 1), "auto", tmp_path, tmp_path / "x")
    (tmp_path / "videos" / "00001.mp4").unlink()
    with pytest.raises(InputError, match=r"00001\.mp4: no such file"):
        import_preferences(tmp_path / "videogen-rewardbench.csv", "auto", tmp_path, tmp_path / "x")


def labels_by_rating(record):
    return next(v.values[0] for v in record.votes if v.criterion == "visual quality")


def underscored(folder):
    row = json.loads((folder / "data_annotated.json").read_text())[1]
    return {k.replace(" ", "_"): v for k, v in row.items()}


BROKEN = [
    ("hpdv3", {"choice_dist": [1, 3]}, "prefers path2"),
    ("hpdv3", {"path2": "none.png"}, "no such file"),
    ("imagereward", {"ranking": [1, 2]}, "3 generations and 2 ranks"),
    ("hpdv2", {"human_preference": [1, 1]}, "add up to 1"),
    ("mmrb2", {"chosen": "C"}, "needs A or B"),
    ("label-studio", {"data": {"prompt": "p", "x": "a.png"}}, "cannot tell the two candidates"),
    ("fastchat", {"models": ["a", ""]}, "needs two models"),
    ("videofeedback", {"visual quality": 5}, "rating 5 is not between 1 and 4"),
    ("trl", {"images": ["images/00000.png"]}, "'images' must be a list of 2 or more"),
    ("argilla", {"responses": {"preference": [{"value": "image_z"}]}}, "names neither"),
]


@pytest.mark.parametrize(("format", "change", "reason"), BROKEN)
def test_a_broken_row_says_what_is_wrong(tmp_path, format, change, reason):
    path = LAYOUTS[format](tmp_path, 3)
    lines = path.suffix == ".jsonl"
    content = [json.loads(x) for x in path.read_text().splitlines()] if lines else json.loads(path.read_text())
    rows = content["pairs"] if isinstance(content, dict) else content
    rows[1] |= change
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(content))
    report, records = imported(path, tmp_path / "out", on_error="skip")
    assert [n for n, _ in report.rejected] == [2]
    assert reason in report.rejected[0][1]
    assert len(records) == 2


def test_rows_without_a_judgement_are_passed_over(tmp_path):
    rows = [{"caption": "p", "label_0": 0.0, "label_1": 0.0, "has_label": False, "jpg_0": b"", "jpg_1": b""}]
    source = layouts.as_parquet(tmp_path, "x.parquet", rows)
    with pytest.raises(InputError, match="no judgements \\(has_label is false\\)"):
        imported(source, tmp_path / "out")
    picky = [{**json.loads(layouts.trl(tmp_path, 1).read_text()), "chosen": [{"role": "assistant", "content": "yes"}]}]
    with pytest.raises(InputError, match="not one picture each"):
        imported(layouts.as_lines(tmp_path, "y.jsonl", picky), tmp_path / "out")


def test_an_unknown_file_says_its_keys(tmp_path):
    source = layouts.as_lines(tmp_path, "x.jsonl", [{"question": "?", "answer": 3}])
    with pytest.raises(InputError, match="its keys are 'question', 'answer'"):
        imported(source, tmp_path / "out")


def test_fidelity_of_imagerewarddb_is_that_to_the_prompt_and_its_fidelity_is_quality(tmp_path):
    columns = {"overall_rating": 4, "image_text_alignment_rating": 7, "fidelity_rating": 1}
    rows = [
        {"prompt_id": "p", "prompt": "a cup", "image": f"{i}.png", "rank": i + 1, "image_amount_in_total": 2} | columns
        for i in range(2)
    ]
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(layouts.png(i))
    _, (record,) = imported(layouts.as_json(tmp_path, "db.json", rows), tmp_path / "out", "imagerewarddb")
    ratings = {v.criterion: v.values for v in record.votes if v.kind == "rating"}
    assert ratings == {"overall": (4, 4), "fidelity": (7, 7), "quality": (1, 1)}
    row = writers.imagerewarddb(record, lambda m: m.path)[0]
    assert {name: row[name] for name in columns} == columns


def studio_task(folder, *results):
    """A Label Studio task with one annotation by one person."""
    for i in range(2):
        (folder / f"{i}.png").write_bytes(layouts.png(i))
    data = {"prompt": "a cup", "image_a": "0.png", "image_b": "1.png"}
    annotation = {"completed_by": 7, "was_cancelled": False, "result": list(results)}
    return layouts.as_json(folder, "tasks.json", [{"id": 1, "data": data, "annotations": [annotation]}])


def side(name, word):
    return {"from_name": name, "type": "pairwise", "value": {"selected": word}}


def tie(name, word="tie"):
    return {"from_name": name, "type": "choices", "value": {"choices": [word]}}


def test_ties_of_label_studio_keep_their_criterion(tmp_path):
    source = studio_task(tmp_path, side("pw", "left"), tie("style"), tie("fidelity_tie", "both bad"))
    _, (record,) = imported(source, tmp_path / "out")
    votes = {v.criterion: (v.values[0], v.both_bad, v.annotator) for v in record.votes}
    assert votes == {"overall": (1.0, False, "7"), "style": (0.5, False, "7"), "fidelity": (0.5, True, "7")}
    export(tmp_path / "out" / "train.parquet", "label-studio", tmp_path / "export")
    _, (again,) = imported(tmp_path / "export" / WRITERS["label-studio"].file, tmp_path / "again")
    assert {v.criterion: (v.values[0], v.both_bad, v.annotator) for v in again.votes} == votes


def test_a_condition_is_no_side_of_a_label_studio_task(tmp_path):
    """Also if the sides have names of their own."""
    source = studio_task(tmp_path, side("pw", "left"))
    tasks = json.loads(source.read_text())
    data = tasks[0]["data"]
    names = [k for k, v in data.items() if str(v).endswith(".png")]
    tasks[0]["data"] = {f"my_{k}" if k in names else k: v for k, v in data.items()} | {"condition": data[names[0]]}
    source.write_text(json.dumps(tasks))
    _, (record,) = imported(source, tmp_path / "out")
    assert (len(record.candidates), len(record.conditions)) == (2, 1)


def test_a_record_of_several_candidates_without_votes_is_left_out_with_its_reason(tmp_path):
    media = [MediaRef(path=f"{i}.png", sha256=hash_of(layouts.png(i)), data=layouts.png(i)) for i in range(3)]
    write_rows([row_of_votes(VotedRecord("r", "p", tuple(media)))], tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"no record fits .* \(1 x more than two candidates and no votes\)"):
        export(tmp_path / "train.parquet", "label-studio", tmp_path / "export")


def test_a_record_of_several_candidates_becomes_tasks_of_label_studio_for_pairs(tmp_path):
    """Choices, a ranking, and ratings of three candidates come back, and so does the picture they were made from."""
    media = [MediaRef(path=f"{i}.png", sha256=hash_of(layouts.png(i)), data=layouts.png(i)) for i in range(4)]
    media[3] = replace(media[3], role="condition")
    votes = (
        Vote("choice", (2, 0), (1.0,), "overall", "x", shown=(2, 0)),
        Vote("choice", (1, 2), (0.5,), "overall", "y", both_bad=True),
        Vote("ranking", (0, 1, 2), (2.0, 1.0, 3.0), "style", "x"),
        *(Vote("rating", (i,), (float(i + 2),), "fidelity", "z", scale=(1.0, 5.0)) for i in range(3)),
    )
    write_rows([row_of_votes(VotedRecord("r", "p", tuple(media), votes))], tmp_path / "train.parquet")
    made = export(tmp_path / "train.parquet", "label-studio", tmp_path / "export")
    assert (made["records"], made["rows"], made["left_out"]) == (1, 3, {})
    _, records = imported(tmp_path / "export" / "label_studio.json", tmp_path / "again")
    again = {r.record_id: r for r in records}
    assert sorted(again) == ["r/0-1", "r/0-2", "r/1-2"]
    for name, record in again.items():
        assert [m.sha256 for m in record.candidates] == [media[int(i)].sha256 for i in name[2:].split("-")]
        assert [m.sha256 for m in record.conditions] == [media[3].sha256]
    found = sorted((n, v.kind, v.criterion, v.media, v.values, v.both_bad) for n, r in again.items() for v in r.votes)
    assert found == [
        ("r/0-1", "choice", "style", (0, 1), (0.0,), False),
        ("r/0-1", "rating", "fidelity", (0,), (2.0,), False),
        ("r/0-1", "rating", "fidelity", (1,), (3.0,), False),
        ("r/0-2", "choice", "overall", (0, 1), (0.0,), False),
        ("r/0-2", "choice", "style", (0, 1), (1.0,), False),
        ("r/1-2", "choice", "overall", (0, 1), (0.5,), True),
        ("r/1-2", "choice", "style", (0, 1), (1.0,), False),
        ("r/1-2", "rating", "fidelity", (1,), (4.0,), False),
    ]


def test_a_side_and_a_tie_contradict_each_other_by_one_criterion_only(tmp_path):
    source = studio_task(tmp_path, side("style", "left"), tie("style_tie"))
    with pytest.raises(InputError, match="a side and a tie for style"):
        imported(source, tmp_path / "out")
    source = studio_task(tmp_path, side("preference", "right"), tie("tie"))
    with pytest.raises(InputError, match="a side and a tie for overall"):
        imported(source, tmp_path / "out")


def test_ratings_of_single_candidates_become_pairs_of_a_csv_file_and_of_votes(tmp_path):
    five = (1.0, 5.0)
    media = tuple(MediaRef(path=f"{i}.png", sha256=str(i), data=layouts.png(i)) for i in range(3))
    votes = (
        Vote("rating", (0,), (4.0,), "style", "x", scale=five),
        choice(1.0, criterion="style", annotator="y"),
        Vote("rating", (1,), (2.0,), "style", "x", scale=five),
        Vote("rating", (2,), (5.0,), "style", "z", scale=five),  # has no partner
    )
    pair = VotedRecord("r", "p", media[:2], votes[:3])
    rows = writers.csv(pair, lambda m: m.path)
    stated = [(r["annotator"], r["criterion"], r["label"], r["rating_a"], r["rating_b"]) for r in rows]
    assert stated == [("y", "style", "a", "", ""), ("x", "style", "", 4.0, 2.0)]
    three = writers.csv(VotedRecord("r", "p", media, votes), lambda m: m.path)
    assert [(r["annotator"], r["image_a"], r["image_b"], r["label"]) for r in three] == [
        ("y", "0.png", "1.png", "a"),
        ("x", "0.png", "1.png", "a"),
    ]
    assert "a rating without a pair" in WRITERS["csv"].loses
    assert [(v.annotator, v.media, v.values) for v in writers.pair_votes(pair)] == [
        ("y", (0, 1), (1.0,)),
        ("x", (0, 1), (1.0,)),
    ]
    with pytest.raises(writers.Unfit, match="no votes between candidates"):
        writers.csv(VotedRecord("r", "p", media, votes[3:]), lambda m: m.path)


def test_a_turned_vote_keeps_its_reason_with_the_roles_exchanged():
    turned = writers.turned(choice(1.0, 1, 0, reason="the candidate is a cup", strength=0.5))
    assert (turned.media, turned.values, turned.reason) == ((0, 1), (0.0,), "the reference is a cup")
