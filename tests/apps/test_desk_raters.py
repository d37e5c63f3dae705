"""The model of raters by criterion: on the admin page, in its JSON, and in exports."""

import io
import json
import zipfile

import pytest
from desks import brightness, export, new_record

from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.export import write_format, write_records
from rewarddance.apps.annotate.quality import CLASSES, PairLabel, RaterFit, rater_models
from rewarddance.apps.annotate.reading import judgements
from rewarddance.data.raters import dawid_skene, majority
from rewarddance.data.schema import row_of_votes
from rewarddance.data.shards import write_rows

PEOPLE = {
    "ada": ("bright", "bright"),
    "ben": ("bright", "dark"),
    "cyd": ("bright", "bright"),
    "dan": ("left", "bright"),
    "eve": ("bright", "bright"),
}
"""What each person chooses by `fidelity` and by `style`."""


def answer(rule, pictures):
    first = brightness(pictures[0]) > brightness(pictures[1])
    return {"choice": "first" if rule == "left" or first == (rule == "bright") else "second"}


@pytest.fixture
def judged(new_desk, tmp_path):
    """In records with an odd number the first picture is the brighter one."""
    levels = [[0.5 + 0.01 * i, 0.8][:: -1 if i % 2 else 1] for i in range(20)]
    write_rows([row_of_votes(new_record(f"r{i}", v)) for i, v in enumerate(levels)], tmp_path / "data/train.parquet")
    desk = new_desk(data=tmp_path / "data", judgements=5, criteria=("fidelity", "style"))
    for name, rules in PEOPLE.items():
        person = desk.person(name)
        while (item := person.next()["item"]) is not None:
            pictures = person.seen(item)
            said = {c: answer(rule, pictures) for c, rule in zip(("fidelity", "style"), rules, strict=True)}
            assert person.say(item, said).status_code == 200
    return desk


def test_each_criterion_has_a_model_of_its_own(judged):
    overview = judged.admin().http.get("/admin/overview.json").json()
    assert {name: m["pairs"] for name, m in overview["models"].items()} == {"fidelity": 20, "style": 20}
    by_name = {p["name"]: p["reliability"] for p in overview["people"]}
    for name, (fidelity, style) in PEOPLE.items():
        wanted = {"bright": (0.9, 1.0), "dark": (-1.0, 0.1), "left": (-0.3, 0.6)}
        for criterion, rule in (("fidelity", fidelity), ("style", style)):
            low, high = wanted[rule]
            assert low <= by_name[name][criterion] <= high, (name, criterion, by_name)
    page = judged.admin().http.get("/admin").text
    for criterion in ("fidelity", "style"):
        assert f"Reliability, {criterion}" in page
        assert f"of 20 pairs by {criterion}" in page


def test_the_models_are_those_of_the_votes_of_each_criterion(judged):
    with judged.database.read() as session:
        fits = rater_models(list(judgements(session)), DeskConfig(criteria=("fidelity", "style")))
    for criterion, fit in fits.items():
        items = [
            {v.annotator: {1.0: 0, 0.0: 1, 0.5: 2}[v.values[0]] for v in record.votes if v.criterion == criterion}
            for record in export(judged)
        ]
        model = dawid_skene(items, len(CLASSES))
        assert fit.reliability == pytest.approx({name: model.reliability(name) for name in model.confusion})
        by_item = sorted(fit.pairs, key=lambda p: p.unit)
        for pair, votes, posterior in zip(by_item, items, model.posterior, strict=True):
            assert pair.posterior == pytest.approx(tuple(posterior), abs=1e-6)
            assert pair.majority == majority(votes, len(CLASSES))


def test_exports_hold_the_models(judged, tmp_path):
    with judged.database.read() as session:
        write_records(session, tmp_path / "records")
        write_format(session, "label-studio", tmp_path / "label-studio")
    made = [json.loads((tmp_path / name / "raters.json").read_text()) for name in ("records", "label-studio")]
    answer = judged.admin().http.get("/admin/export/records").content
    made.append(json.loads(zipfile.ZipFile(io.BytesIO(answer)).read("raters.json")))
    assert made[0] == made[1] == made[2]
    assert set(made[0]) == {"fidelity", "style"}
    votes = {r.record_id: r for r in export(judged)}
    for model in made[0].values():
        assert set(model["reliability"]) == {v.annotator for r in votes.values() for v in r.votes}
        for pair in model["pairs"]:
            assert pair["record"] in votes
            assert pair["candidates"] == [0, 1]
            assert pair["model"] == pair["majority"] == ("second", "first")[int(pair["record"][1:]) % 2]
            assert sum(pair["posterior"].values()) == pytest.approx(1.0)


def test_ratings_have_no_model(new_desk, tmp_path):
    desk = new_desk(records=2, task="rating", judgements=2, criteria=("style",))
    for name in ("ada", "ben"):
        desk.person(name).work(lambda pictures: {"rating": 3})
    with desk.database.read() as session:
        write_records(session, tmp_path / "out")
    assert not (tmp_path / "out" / "raters.json").exists()
    page = desk.admin().http.get("/admin").text
    assert "Ratings have no model of raters" in page
    assert "Reliability" not in page


def test_pairs_on_which_model_and_majority_differ():
    pairs = (
        PairLabel((4, 0, 1), 0, (0.9, 0.1, 0.0)),
        PairLabel((5, 0, 1), 1, (0.8, 0.2, 0.0)),
        PairLabel((6, 0, 1), None, (0.3, 0.1, 0.6)),
    )
    assert RaterFit({}, pairs).differ == [
        {"item": 5, "majority": "second", "model": "first", "p": 0.8},
        {"item": 6, "majority": "no majority", "model": "tie", "p": 0.6},
    ]
