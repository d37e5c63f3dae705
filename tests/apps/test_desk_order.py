"""The order in which people see pairs: the rule of `data select`, by judges that are asked while people work."""

import time
from contextlib import closing

import pytest
import torch
from desks import new_data, new_record
from sqlalchemy import select

from rewarddance.apps.annotate.assignment import Load, choose
from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.database import open_database
from rewarddance.apps.annotate.models import Item, Record
from rewarddance.apps.annotate.ordering import kept_in_order, order
from rewarddance.apps.annotating import Annotate
from rewarddance.core.errors import InputError, UsageError
from rewarddance.core.types import Verdict
from rewarddance.data.schema import row_of_votes
from rewarddance.data.shards import write_rows

GAPS = (0.4, 0.1, 0.3, 0.2)
"""Differences of brightness; the judge below is least sure about the smallest."""


class Brightness:
    """Prefers the brighter picture if the difference is above `level`, otherwise the darker one."""

    def __init__(self, level=0.0):
        self.level = level

    def judge(self, comparisons):
        def bright(media):
            return media.frames.float().mean()

        gaps = torch.stack([bright(c.candidate) - bright(c.reference) for c in comparisons])
        return Verdict.from_margin(20 * gaps.sign() * (gaps.abs() - self.level))


@pytest.fixture
def gaps(new_desk, tmp_path):
    def make(**settings):
        rows = [row_of_votes(new_record(f"r{i}", [0.45 + g / 2, 0.45 - g / 2])) for i, g in enumerate(GAPS)]
        write_rows(rows, tmp_path / "data" / "train.parquet")
        return new_desk(data=tmp_path / "data", **settings)

    return make


def prompts(person, num):
    """Prompts of the next items, which the person judges."""
    seen = []
    for _ in range(num):
        item = person.next()["item"]
        seen.append(item["prompt"].removeprefix("a picture called "))
        person.judge(item)
    return seen


def test_what_the_judge_is_unsure_about_comes_first_and_a_new_judge_changes_the_rest(gaps):
    desk = gaps(judgements=2)
    assert order(desk.database, {"first": Brightness()}, "uncertainty") == 4
    ada, ben = desk.person("ada"), desk.person("ben")
    assert prompts(ada, 2) == ["r1", "r3"]  # gaps of 0.1 and 0.2
    assert order(desk.database, {"trained since": Brightness(0.4)}, "uncertainty") == 4
    assert prompts(ada, 2) == ["r0", "r2"]
    assert prompts(ben, 3) == ["r0", "r2", "r3"]
    assert order(desk.database, {"first": Brightness()}, "uncertainty") == 1  # three of four have their judgements
    assert prompts(ben, 1) == ["r1"]
    assert order(desk.database, {"first": Brightness()}, "uncertainty") == 0


def test_places_are_given_to_the_pairs_of_the_rule(gaps, monkeypatch):
    desk = gaps()
    monkeypatch.setattr("rewarddance.apps.annotate.ordering.PLACED", 2)
    judges = {"sure": Brightness(), "the opposite": Brightness(1.0)}
    assert order(desk.database, judges, "disagreement") == 2
    with desk.database.read() as session:
        rows = session.execute(select(Record.name, Item.place).join(Item, Item.record_id == Record.id))
        assert dict(map(tuple, rows)) == {"r0": 0, "r1": None, "r2": 1, "r3": None}
    assert order(desk.database, judges, "disagreement", stop=lambda: True) == 0
    with desk.database.read() as session:
        assert set(session.scalars(select(Item.place))) == {0, 1, None}  # an order that is stopped changes nothing


def test_judges_are_asked_about_a_random_part_of_many_pairs(gaps, monkeypatch):
    desk = gaps()
    monkeypatch.setattr("rewarddance.apps.annotate.ordering.ASKED", 2)
    seen = set()
    for hour in range(8):
        monkeypatch.setattr("time.time", lambda hour=hour: 1.8e9 + 3600 * hour)
        assert order(desk.database, {}, "random") == 2
        with desk.database.read() as session:
            query = select(Record.name).join(Item, Item.record_id == Record.id).where(Item.place.is_not(None))
            seen.add(frozenset(session.scalars(query)))
    assert len(seen) > 2


def test_items_without_a_place_come_afterwards():
    loads = [Load(1, 0), Load(2, 2, place=7), Load(3, 1, place=5), Load(4, 3, place=0)]
    assert choose(loads, DeskConfig(judgements=3), None) == 3
    assert choose(loads[:2], DeskConfig(judgements=3), None) == 2


def test_judges_are_loaded_again_and_asked_while_people_work(gaps):
    desk = gaps()
    loaded = []

    def load():
        loaded.append(len(loaded))
        if len(loaded) == 2:
            raise InputError("half a file")  # a run is being written; the earlier judges are used
        return {"judge": Brightness(0.4 * (len(loaded) > 2))}

    def first():
        with desk.database.read() as session:
            return session.scalar(select(Record.name).join(Item, Item.record_id == Record.id).where(Item.place == 0))

    with kept_in_order(desk.database, load, "uncertainty", 0.001):
        for name in ("r1", "r0"):
            until = time.monotonic() + 120
            while first() != name:
                assert time.monotonic() < until
                time.sleep(0.02)
    assert len(loaded) >= 3


def annotate(*words):
    return Annotate.read("rewarddance annotate", [str(w) for w in words])


def placed(database):
    with database.read() as session:
        return len(session.execute(select(Item).where(Item.place.is_not(None))).all())


def test_the_command_orders_pairs_of_a_desk_that_compares(url, tmp_path, monkeypatch, capfd):
    asked = []
    monkeypatch.setattr("rewarddance.jobs.load.load_judge", lambda name: asked.append(name) or Brightness())
    monkeypatch.setattr("uvicorn.run", lambda app, **_: time.sleep(0.01))
    start = (new_data(tmp_path / "data", 3), "--database", url)
    with pytest.raises(InputError, match="uncertainty needs 1 judges or more; name them with --judges"):
        annotate(*start, "--strategy", "uncertainty").run()
    with pytest.raises(InputError, match="mixed needs 1 judges or more"):
        annotate(*start, "--strategy", "mixed").run()
    with pytest.raises(InputError, match="disagreement needs 2 judges"):
        annotate(*start, "--judges", "tiny", "--strategy", "disagreement").run()
    annotate(*start, "--judges", "tiny", "runs/b", "--strategy", "disagreement").run()
    annotate(*start, "--strategy", "coverage").run()  # needs no judge
    assert asked == ["tiny", "runs/b"]
    with closing(open_database(url)) as database:
        order(database, {}, "random")
        assert placed(database) > 0
        annotate(*start).run()  # without judges pairs come at random; nobody owns the order
        assert placed(database) == 0
        annotate(*start, "--strategy", "coverage").run()
        assert placed(database) == 0  # the order ended with its server
    rating = ("--database", f"sqlite:///{tmp_path}/rating.db", "--task", "rating", "--judges", "tiny")
    with pytest.raises(UsageError, match="this desk asks for a rating, and ratings and rankings come in random order"):
        annotate(start[0], *rating).run()
    (tmp_path / "data" / "study.json").write_text('{"judgements": 1, "criteria": ["overall"]}')
    with pytest.raises(UsageError, match="a random order"):
        annotate(start[0], "--database", f"sqlite:///{tmp_path}/study.db", "--judges", "tiny").run()
