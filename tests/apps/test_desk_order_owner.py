"""Whose order of pairs holds where several servers share a database; and the order of clips."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from desks import clip, picture
from sqlalchemy import select, update
from test_desk_order import Brightness, placed

from rewarddance.apps.annotate.models import Desk, Item, Record
from rewarddance.apps.annotate.ordering import Owner, forget_order, kept_in_order, order
from rewarddance.core.clips import encode_clip
from rewarddance.data.schema import hash_of, row_of_votes
from rewarddance.data.shards import write_rows
from rewarddance.data.votes import MediaRef, VotedRecord
from rewarddance.jobs.data.select import Pair, features
from rewarddance.jobs.load import load_judge


def test_the_order_of_a_running_server_is_left_alone(new_desk):
    desk, owner = new_desk(records=3), Owner.new(10)
    assert order(desk.database, {}, "random", owner=owner) == 3
    assert not forget_order(desk.database)  # the start of a server without judges
    assert placed(desk.database) == 3
    other = Owner.new(10)
    assert not forget_order(desk.database, other)
    assert order(desk.database, {}, "random", owner=other) == 3
    assert not forget_order(desk.database, owner)  # a newer order is not the first server's
    assert forget_order(desk.database, other)
    assert placed(desk.database) == 0


def test_the_order_of_a_server_that_was_killed_ends(new_desk):
    desk, owner = new_desk(records=3), Owner.new(10)
    order(desk.database, {}, "random", owner=owner)
    with desk.database.write() as session:
        until = session.scalar(select(Desk.order_until))
        assert until - time.time() == pytest.approx(60 * 30, abs=60)  # two intervals of ten minutes, and ten
        session.execute(update(Desk).values(order_until=time.time() - 1))
    assert forget_order(desk.database)
    assert placed(desk.database) == 0


def test_a_server_renews_its_order_while_a_judge_fails_and_ends_it_when_it_stops(new_desk):
    desk = new_desk(records=3)

    class Failing:
        def judge(self, comparisons):
            raise RuntimeError("no memory")

    judges = [{"judge": Brightness()}, {"judge": Failing()}]

    def until():
        with desk.database.read() as session:
            return session.scalar(select(Desk.order_until)) or 0.0

    def wait_for_more_than(before):
        end = time.monotonic() + 120
        while until() <= before:
            assert time.monotonic() < end
            time.sleep(0.02)
        return until()

    with kept_in_order(desk.database, lambda: judges.pop(0) if len(judges) > 1 else judges[0], "uncertainty", 0.002):
        first = wait_for_more_than(0.0)
        wait_for_more_than(wait_for_more_than(first))
        assert placed(desk.database) == 3
    assert (placed(desk.database), until()) == (0, 0.0)


LEVELS = ((0.0, 2.4), (1.0, 1.3), (0.5, 2.0))
"""Brightness of the clips of each record; the judge is least sure about the second."""


@pytest.fixture
def clip_desk(new_desk, tmp_path):
    rows = []
    for i, levels in enumerate(LEVELS):
        media = []
        for place, level in enumerate(levels):
            content, path = clip(level), f"r{i}-{place}.mp4"
            (tmp_path / "data").mkdir(exist_ok=True)
            (tmp_path / "data" / path).write_bytes(content)
            media.append(MediaRef("video", path, hash_of(content)))
        rows.append(row_of_votes(VotedRecord(f"r{i}", f"a clip called r{i}", tuple(media))))
    write_rows(rows, tmp_path / "data" / "train.parquet")
    return new_desk(data=tmp_path / "data", judgements=1)


def places(desk):
    with desk.database.read() as session:
        rows = session.execute(select(Record.name, Item.place).join(Item, Item.record_id == Record.id))
        return dict(map(tuple, rows))


def test_clips_about_which_the_judge_is_unsure_come_first(clip_desk):
    assert order(clip_desk.database, {"judge": Brightness()}, "uncertainty") == 3
    assert places(clip_desk) == {"r1": 0, "r2": 1, "r0": 2}
    ada = clip_desk.person("ada")
    assert ada.next()["item"]["prompt"] == "a clip called r1"
    for strategy in ("coverage", "mixed"):
        assert order(clip_desk.database, {"judge": Brightness()}, strategy) == 3


def test_the_shipped_judge_of_clips_orders_them_and_that_of_pictures_does_not(clip_desk):
    assert order(clip_desk.database, {"tiny-clips": load_judge("tiny-clips")}, "uncertainty") == 3
    assert sorted(places(clip_desk).values()) == [0, 1, 2]
    assert order(clip_desk.database, {"tiny": load_judge("tiny")}, "uncertainty") == 0
    assert set(places(clip_desk).values()) == {None}


def test_features_of_a_clip_that_stands_still_are_those_of_its_frame():
    still = np.zeros((4, 32, 32, 3), np.uint8)
    still[:, 8:24, :16] = (200, 60, 20)
    frame = torch.from_numpy(still[0]).permute(2, 0, 1).float() / 255
    content = encode_clip(still, 8.0, Path("still.gif"))
    media = (MediaRef("video", "a.gif", hash_of(content), data=content), MediaRef(sha256="b", data=picture(0.5)))
    made = features([Pair(VotedRecord("r", "a clip", media), 0, 1)])[0]
    small = torch.nn.functional.avg_pool2d(frame, 8).permute(1, 2, 0).reshape(-1) / 4
    assert made[64 : 64 + 48] == pytest.approx(small.numpy(), abs=0.01)
