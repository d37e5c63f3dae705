"""People at the desk over HTTP: items, sides, leases, undo, checks. One suite for SQLite and PostgreSQL."""

import io
import json
import threading
from collections import Counter

import pytest
from desks import brightness, export
from PIL import Image
from sqlalchemy import select

from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.models import Assignment, Item, Judgement, Picture


def test_two_people_judge_everything_once_and_it_is_exported(new_desk):
    desk = new_desk(records=6, judgements=2)
    ada, ben = desk.person("ada"), desk.person("ben")
    assert (ada.work(), ben.work()) == (6, 6)
    assert desk.person("cyd").next()["item"] is None  # every item has its two judgements
    records = export(desk)
    assert len(records) == 6
    for record in records:
        assert {v.annotator for v in record.votes} == {"person-1", "person-2"}
        assert all(v.values == (1.0,) and v.media == (0, 1) for v in record.votes)  # candidate 0 is the brighter one
        assert all(sorted(v.shown) == [0, 1] and v.strength == 0.5 and v.seconds >= 0 for v in record.votes)
        assert record.candidates[0].model == "secret-model-a"


def test_sides_are_drawn_and_recorded(new_desk):
    desk = new_desk(records=40, judgements=1)
    ada = desk.person()
    left = Counter()
    for _ in range(40):
        item = ada.next()["item"]
        pictures = ada.seen(item)
        left[brightness(pictures[0]) > brightness(pictures[1])] += 1
        ada.judge(item)
    assert 8 <= left[True] <= 32  # 40 fair coins lie outside in one run of 20,000
    shown = Counter(v.shown for record in export(desk) for v in record.votes)
    assert shown[0, 1] == left[True]


def test_pictures_are_blind(new_desk):
    desk = new_desk()
    ada, ben = desk.person("ada"), desk.person("ben")
    work = ada.next()
    assert "secret" not in json.dumps(work)
    assert set(work["item"]) == {"assignment", "task", "criteria", "prompt", "media", "given", "fps"}
    content = ada.http.get(f"/media/{work['item']['media'][0]}")
    assert content.headers["content-type"] == "image/png"
    assert b"secret" not in content.content
    with Image.open(io.BytesIO(content.content)) as image:
        image.load()
        assert image.info == {}
        seen = image.tobytes()
    with desk.database.read() as session:
        originals = [Image.open(io.BytesIO(c)).tobytes() for c in session.scalars(select(Picture.content))]
    assert seen in originals  # the pixels are those of the file
    assert ben.http.get(f"/media/{work['item']['media'][0]}").status_code == 404  # somebody else's


def test_a_reload_gives_the_same_item_and_leases_expire(new_desk):
    desk = new_desk(records=1, judgements=1, lease_minutes=10)
    ada, ben = desk.person("ada"), desk.person("ben")
    item = ada.next()["item"]
    assert ada.next()["item"] == item
    assert ben.next()["item"] is None
    desk.clock.now += 11 * 60
    other = ben.next()["item"]
    assert other is not None
    assert ada.next()["item"] is None  # her lease is over and his runs
    assert ada.say(item, {"overall": {"choice": "tie"}}).status_code == 200  # late work is kept
    ben.judge(other)
    assert sorted(len(r.votes) for r in export(desk)) == [2]


def test_undo_brings_the_answer_back(new_desk):
    desk = new_desk(records=4)
    ada = desk.person()
    first = ada.next()["item"]
    ada.say(first, {"overall": {"choice": "tie"}})
    ada.next()
    undone = ada.post("/api/undo").json()
    assert undone["item"]["assignment"] == first["assignment"]
    assert undone["item"]["answers"] == {"overall": {"choice": "tie"}}
    assert (undone["done"], undone["remaining"]) == (0, 4)
    ada.say(first, {"overall": {"choice": "both_bad"}})
    votes = [v for r in export(desk) for v in r.votes]
    assert [(v.values, v.both_bad) for v in votes] == [((0.5,), True)]
    with desk.database.read() as session:
        kept = [(j.answers["overall"]["choice"], j.withdrawn is None) for j in session.scalars(select(Judgement))]
    assert sorted(kept) == [("both_bad", True), ("tie", False)]  # nothing is deleted


def test_the_same_request_twice_is_stored_once(new_desk):
    desk = new_desk()
    ada = desk.person()
    item = ada.next()["item"]
    answers = {"overall": {"choice": "tie"}}
    assert ada.say(item, answers, "key-0000-1").json() == {"saved": True, "new": True}
    assert ada.say(item, answers, "key-0000-1").json() == {"saved": True, "new": False}
    assert ada.say(item, {"overall": {"choice": "first"}}, "key-0000-1").status_code == 409
    assert ada.say(item, answers, "key-0000-2").status_code == 409
    assert sum(len(r.votes) for r in export(desk)) == 1


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"overall": {"choice": "left"}}, "choice"),
        ({"style": {"choice": "tie"}}, "'overall' has no answer"),
        ({"overall": {"choice": "tie", "strength": 1}}, "a tie has no strength"),
        ({"overall": {"rating": 3}}, "takes choice only"),
        ({"overall": {"choice": "first", "strength": 2}}, "strength"),
    ],
)
def test_answers_that_do_not_fit_are_refused(new_desk, answers, message):
    ada = new_desk().person()
    answer = ada.say(ada.next()["item"], answers)
    assert answer.status_code == 422
    assert message in answer.text


def test_checks_and_repeats(new_desk):
    desk = new_desk(records=60, judgements=2, checks=0.1, repeats=0.1)
    careful, careless = desk.person("careful"), desk.person("careless")
    assert careful.work(noise_loses, most=40) == 40
    assert careless.work(lambda p: {"choice": "first"}, most=40) == 40
    people = {p["name"]: p["work"] for p in desk.admin().http.get("/admin/overview.json").json()["people"]}
    assert people["careful"]["checks"]["failed"] == 0
    assert people["careful"]["checks"]["seen"] == people["careless"]["checks"]["seen"] == 4  # one in every ten
    assert people["careful"]["repeats"]["equal"] == people["careful"]["repeats"]["seen"] > 0
    assert people["careless"]["left"]["share"] == 1.0
    assert people["careless"]["left"]["low"] > 0.5
    assert people["careless"]["repeats"]["equal"] == 0  # the sides are exchanged, so that "left" contradicts itself
    with desk.database.read() as session:
        again = list(session.scalars(select(Assignment).where(Assignment.again == 1)))
        for repeat in again:
            first = session.scalar(
                select(Assignment).where(
                    Assignment.item_id == repeat.item_id,
                    Assignment.person_id == repeat.person_id,
                    Assignment.again == 0,
                )
            )
            assert repeat.order == first.order[::-1]
    assert again
    counted = people["careful"]["judged"] + people["careless"]["judged"]
    assert sum(len(r.votes) for r in export(desk)) == counted


def test_the_counter_does_not_tell_checks_and_repeats_from_others(new_desk):
    """It moves by one at every answer, the sum stays, and at the end it was right from the beginning."""
    desk = new_desk(records=60, judgements=2, checks=0.1, repeats=0.1)
    ada = desk.person()
    work = ada.next()
    total = work["remaining"]
    assert total > 66  # 60 items, and a check and a repeat in every ten
    given, undone = 0, False
    while work["item"] is not None:
        assert (work["done"], work["remaining"]) == (given, total - given)
        ada.judge(work["item"], noise_loses)
        given += 1
        work = ada.next()
        if given == 20 and not undone:
            undone = True
            work = ada.post("/api/undo").json()
            given -= 1
            assert (work["done"], work["remaining"]) == (given, total - given)
    assert (given, work["remaining"]) == (total, 0)
    with desk.database.read() as session:
        rows = session.execute(select(Assignment.again, Item.noise).join(Item)).all()
    kinds = Counter("check" if r.noise is not None else "repeat" if r.again else "item" for r in rows)
    assert kinds["item"] == 60
    assert kinds["check"] > 3
    assert kinds["repeat"] > 3


def noise_loses(pictures):
    """The choice of a careful person. The noise is made of the darker picture, so its mean brightness is that one's."""
    left, right = map(brightness, pictures)
    return {"choice": "first" if left >= right else "second"}


def test_likert_ratings_by_four_criteria(new_desk):
    desk = new_desk(records=3, pictures=2, task="rating", judgements=1)
    ada = desk.person()

    def rate(pictures):
        return {"rating": 5 if brightness(pictures[0]) > 0.75 else 2}

    assert ada.work(rate) == 6
    record = export(desk)[0]
    assert {v.criterion for v in record.votes} == {"fidelity", "style", "composition", "novelty"}
    assert {(v.media[0], v.values[0]) for v in record.votes} == {(0, 5.0), (1, 2.0)}
    assert all(v.scale == (1.0, 5.0) for v in record.votes)


def test_noise_may_be_novel(new_desk):
    """An honest person rates noise 1 by all criteria but novelty, and fails no check."""
    desk = new_desk(records=30, pictures=1, task="rating", judgements=1, checks=0.1)
    people = {"honest": {"novelty": 4}, "careless": {"style": 4}}
    for name, high in people.items():
        person = desk.person(name)
        for _ in range(15):
            item = person.next()["item"]
            assert person.say(item, {c: {"rating": high.get(c, 1)} for c in item["criteria"]}).status_code == 200
    table = {p["name"]: p["work"]["checks"] for p in desk.admin().http.get("/admin/overview.json").json()["people"]}
    assert table["honest"]["failed"] == 0
    assert table["careless"]["failed"] == table["careless"]["seen"] > 0
    assert DeskConfig(task="rating").checked == ("fidelity", "style", "composition")


def test_a_desk_that_asks_for_novelty_only_has_no_checks(new_desk):
    assert new_desk(records=30, checks=0.1, criteria=("novelty",)).filled.checks == 0


def test_rankings(new_desk):
    desk = new_desk(records=2, pictures=4, task="ranking", judgements=1, criteria=("overall", "style"))

    def by_brightness(pictures):
        order = sorted(range(4), key=lambda i: -brightness(pictures[i]))
        return {"ranks": [order.index(i) + 1 for i in range(4)]}

    assert desk.person().work(by_brightness) == 2
    for record in export(desk):
        assert [(v.kind, v.criterion, v.media, v.values) for v in record.votes] == [
            ("ranking", c, (0, 1, 2, 3), (1.0, 2.0, 3.0, 4.0)) for c in ("overall", "style")
        ]


def test_all_pairs_or_some(new_desk):
    assert new_desk(records=3, pictures=4).filled.items == 18


def test_some_pairs(new_desk):
    assert new_desk(records=3, pictures=4, most_pairs=2).filled.items == 6


def test_concurrent_people_never_overfill_an_item(new_desk):
    desk = new_desk(records=12, judgements=2)
    people = [desk.person(f"p{i}") for i in range(5)]
    errors = []

    def work(person):
        try:
            person.work()
        except AssertionError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(p,)) for p in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    votes = [[v.annotator for v in r.votes] for r in export(desk)]
    assert [len(v) for v in votes] == [2] * 12
    assert all(len(set(v)) == 2 for v in votes)
