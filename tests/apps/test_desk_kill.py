"""Server and database are killed (SIGKILL) while 50 people work: every acknowledged judgement is stored once."""

import random
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter

import httpx
import pytest
from desks import Client, brighter, new_data, postgres_server, process
from sqlalchemy import select

from rewarddance.apps.annotate.database import open_database
from rewarddance.apps.annotate.models import Assignment, Judgement

pytestmark = [pytest.mark.slow, pytest.mark.timeout(800)]
PEOPLE = tuple(f"p{i}" for i in range(50))
RECORDS, JUDGEMENTS = 30, 10
PATIENCE = 600
"""Seconds within which people must make progress."""


class Stubborn(Client):
    """A person whose page sends a request again until it is answered, as `desk.js` does."""

    def __init__(self, link):
        self.base, self.acknowledged, self.again = link.split("/join/")[0], {}, 0
        super().__init__(httpx.Client(base_url=self.base, timeout=30), link)

    def until(self, ask):
        while True:
            try:
                answer = ask()
                if answer.status_code < 500:
                    return answer
            except httpx.TransportError:
                pass
            self.again += 1
            time.sleep(0.2)

    def run(self):
        while True:
            item = self.until(lambda: self.post("/api/next")).json()["item"]
            if item is None:
                return
            seen = [self.until(lambda t=t: self.http.get(f"/media/{t}")).content for t in item["media"]]
            key, answers = str(uuid.uuid4()), {"overall": brighter(seen)}
            answer = self.until(lambda: self.say(item, answers, key))  # noqa: B023
            assert answer.status_code == 200, answer.text
            self.acknowledged[key] = item["assignment"]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def place(request, tmp_path):
    """The address of a database, and its server where it is a process of its own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/desk.db", None
        return
    with tempfile.TemporaryDirectory(prefix="desk-pg-") as folder, postgres_server(f"{folder}/server", True) as server:
        yield server.new(), server


def test_every_acknowledged_judgement_is_there_exactly_once(place, tmp_path, capsys):
    url, database = place
    data = new_data(tmp_path / "data", records=RECORDS)
    flags = ("--judgements", JUDGEMENTS, "--checks", 0, "--repeats", 0, "--requests-per-minute", 100_000)
    seed = random.randrange(10_000)
    dice = random.Random(seed)
    print(f"kills drawn with seed {seed}")  # shown where the test fails
    with process(data, url, *flags, "--invite", *PEOPLE) as (server, base, links):
        port = int(base.rsplit(":", 1)[1])
        people = [Stubborn(links[name]) for name in PEOPLE]
        threads = [threading.Thread(target=p.run) for p in people]
        for thread in threads:
            thread.start()
        wait_for(people, dice.randint(20, 60))
        end(server)
    with process(data, url, *flags, port=port) as (server, _, _):
        wait_for(people, 80 + dice.randint(10, 40))
        if database:
            database.kill()  # the server lives on without it
            time.sleep(1)
            database.start()
            wait_for(people, 140 + dice.randint(10, 40))
            database.kill()
        end(server)
    if database:
        database.start()
    with process(data, url, *flags, port=port):
        for thread in threads:
            thread.join(PATIENCE)
    assert not any(t.is_alive() for t in threads)
    for person in people:
        person.http.close()
    acknowledged = {key: a for person in people for key, a in person.acknowledged.items()}
    stored = judgements(url)
    with capsys.disabled():
        kills = "2 kills of the server" + (", 2 of the database" if database else "")
        sent = f"{sum(p.again for p in people)} requests sent again"
        print(f"\n{len(PEOPLE)} people, {kills}, {sent}: {len(acknowledged)} acknowledged, {len(stored)} stored")
    assert len(acknowledged) == RECORDS * JUDGEMENTS
    assert Counter(row.key for row in stored) == Counter(acknowledged.keys())
    assert all(acknowledged[row.key] == row.token for row in stored)
    assert set(Counter(row.item_id for row in stored).values()) == {JUDGEMENTS}
    assert max(Counter((row.item_id, row.person_id) for row in stored).values()) == 1


def end(server):
    server.send_signal(signal.SIGKILL)
    server.wait()


def judgements(url):
    database = open_database(url)
    with database.read() as session:
        columns = Judgement.key, Judgement.person_id, Assignment.token, Assignment.item_id
        rows = list(session.execute(select(*columns).join(Assignment)))
    database.close()
    return rows


def wait_for(people, num):
    until = time.monotonic() + PATIENCE
    while sum(len(p.acknowledged) for p in people) < num:
        assert time.monotonic() < until, "people do not get on with their work"
        time.sleep(0.01)
