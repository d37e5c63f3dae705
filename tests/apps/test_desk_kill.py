"""The server is killed (SIGKILL) under people who work at once: every judgement it acknowledged is there, once."""

import random
import signal
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

pytestmark = pytest.mark.slow
PEOPLE = ("ada", "ben", "cyd", "dan")


class Stubborn(Client):
    """A person whose page sends a request again until it is answered, as `desk.js` does."""

    def __init__(self, link):
        self.base, self.acknowledged = link.split("/join/")[0], {}
        super().__init__(httpx.Client(base_url=self.base, timeout=10), link)

    def until(self, ask):
        while True:
            try:
                answer = ask()
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if answer.status_code < 500:
                return answer
            time.sleep(0.1)

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
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/desk.db"
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="desk-pg-") as folder, postgres_server(f"{folder}/server") as new:
        yield new()


def test_every_acknowledged_judgement_is_there_exactly_once(url, tmp_path):
    data = new_data(tmp_path / "data", records=30)
    flags = ("--judgements", 4, "--checks", 0, "--repeats", 0, "--requests-per-minute", 100_000)
    seed = random.randrange(10_000)
    dice = random.Random(seed)
    print(f"kills drawn with seed {seed}")  # shown where the test fails
    kills, people, threads = 0, [], []
    with process(data, url, *flags, "--invite", *PEOPLE) as (server, base, links):
        port = int(base.rsplit(":", 1)[1])
        people = [Stubborn(links[name]) for name in PEOPLE]
        threads = [threading.Thread(target=p.run) for p in people]
        for thread in threads:
            thread.start()
        wait_for(people, dice.randint(10, 25))
        server.send_signal(signal.SIGKILL)
        server.wait()
        kills += 1
    for step in (30, 100):
        with process(data, url, *flags, port=port) as (server, _, _):
            if step == 100:
                for thread in threads:
                    thread.join(240)
                break
            wait_for(people, step + dice.randint(10, 30))
            server.send_signal(signal.SIGKILL)
            server.wait()
            kills += 1
    assert kills == 2
    assert not any(t.is_alive() for t in threads)
    for person in people:
        person.http.close()
    acknowledged = {key: a for person in people for key, a in person.acknowledged.items()}
    assert len(acknowledged) == 120
    database = open_database(url)
    with database.read() as session:
        stored = list(session.execute(select(Judgement.key, Assignment.token, Assignment.item_id).join(Assignment)))
    database.close()
    assert Counter(row.key for row in stored) == Counter(acknowledged.keys())
    assert all(acknowledged[row.key] == row.token for row in stored)
    assert set(Counter(row.item_id for row in stored).values()) == {4}


def wait_for(people, num):
    until = time.monotonic() + 240
    while sum(len(p.acknowledged) for p in people) < num:
        assert time.monotonic() < until, "people do not get on with their work"
        time.sleep(0.01)
