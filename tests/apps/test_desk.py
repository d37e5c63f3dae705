"""The desk over HTTP: items, sides, leases, undo, idempotency, admin, export. One suite for SQLite and PostgreSQL."""

import io
import json
import threading
import zipfile
from collections import Counter
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from desks import DeskServer, brightness, new_data, new_record, postgres_server
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import select

from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.database import Database, open_database
from rewarddance.apps.annotate.export import voted_records
from rewarddance.apps.annotate.filling import fill, settings_of
from rewarddance.apps.annotate.models import Assignment, Base, Item, Judgement, Picture
from rewarddance.apps.annotating import Annotate
from rewarddance.core.errors import InputError, RunError
from rewarddance.data.schema import row_of_votes
from rewarddance.data.shards import write_rows


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    import tempfile

    with tempfile.TemporaryDirectory(prefix="desk-pg-") as folder, postgres_server(f"{folder}/server") as new:
        yield new


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/desk.db"
    return request.getfixturevalue("postgres")()


@pytest.fixture
def new_desk(url, tmp_path):
    opened = []

    def make(records=8, pictures=2, server=None, **settings):
        config = DeskConfig(**{"checks": 0, "repeats": 0, **settings})
        opened.append(DeskServer(new_data(tmp_path / "data", records, pictures), url, config, server))
        return opened[-1]

    yield make
    for desk in opened:
        desk.database.close()


def export(desk):
    with desk.database.read() as session:
        return list(voted_records(session))


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
    assert set(work["item"]) == {"assignment", "task", "criteria", "prompt", "media"}
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


def test_exclusion_needs_a_reason_and_gives_the_items_to_others(new_desk):
    desk = new_desk(records=3, judgements=1)
    ada = desk.person("ada")
    ada.work()
    admin = desk.admin()
    assert admin.form("/admin/exclude", person=1, reason=" ").status_code == 422
    page = admin.form("/admin/exclude", person=1, reason="answers before the pictures are loaded").text
    assert "answers before the pictures are loaded" in page
    assert export(desk) == []
    assert ada.post("/api/next").status_code == 403
    assert desk.person("ben").work() == 3
    admin.form("/admin/include", person=1)
    assert {v.annotator for r in export(desk) for v in r.votes} == {"person-1", "person-3"}


def test_admin_invites_and_ends_links(new_desk):
    import re

    desk = new_desk()
    admin = desk.admin()
    page = admin.form("/admin/invite", name="Grace <b>").text
    assert "Grace &lt;b&gt;" in page
    link = re.search(r'value="http://desk.test(/join/[^"]+)"', page)[1]
    assert link not in admin.http.get("/admin").text  # it is shown once
    assert admin.form("/admin/invite", name=" Grace <b>").status_code == 409  # a form that is sent again
    grace = desk.http()
    assert grace.post(link).status_code == 200
    assert grace.get("/").status_code == 200
    assert link not in admin.form("/admin/link", person=2).text
    assert grace.get("/").status_code == 401  # the session ended with the old link
    assert grace.post(link).status_code == 404


def test_exports_from_the_admin_page(new_desk, tmp_path):
    from rewarddance.data.importers import import_preferences
    from rewarddance.data.parquet import RecordTable

    desk = new_desk(records=4, judgements=1)
    admin = desk.admin()
    assert admin.http.get("/admin/export/records").status_code == 409  # nothing yet
    desk.person().work(most=3)
    answer = admin.http.get("/admin/export/records")
    assert answer.headers["content-disposition"].endswith('.zip"')
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path / "records")
    assert pq.read_table(tmp_path / "records" / "train.parquet").num_rows == 3
    table = RecordTable.open(tmp_path / "records" / "train.parquet")  # what training reads
    assert [c.label for record in table for c in record.choices] == [1.0] * 3
    answer = admin.http.get("/admin/export/label-studio")
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path / "ls")
    tasks = json.loads((tmp_path / "ls" / "label_studio.json").read_text())
    assert [t["annotations"][0]["result"][0]["value"] for t in tasks] == [{"selected": "left"}] * 3
    report = import_preferences(tmp_path / "ls" / "label_studio.json", "auto", tmp_path / "ls", tmp_path / "back")
    assert (report.format, report.accepted) == ("label-studio", 3)


def test_new_records_join_an_old_desk(new_desk, url, tmp_path):
    desk = new_desk(records=3)
    desk.person().work()
    again = fill(desk.database, new_data(tmp_path / "data", 5), DeskConfig(checks=0, repeats=0, judgements=4))
    assert (again.records, again.items) == (2, 2)
    with pytest.raises(RunError, match="other settings \\(task\\)"):
        fill(desk.database, tmp_path / "data", DeskConfig(checks=0, repeats=0, task="ranking"))
    write_rows([row_of_votes(new_record("r0", [0.1, 0.2]))], tmp_path / "other" / "train.parquet")
    with pytest.raises(InputError, match="r0: the desk has it with other pictures"):
        fill(desk.database, tmp_path / "other", DeskConfig(checks=0, repeats=0))


def settings(desk):
    with desk.database.read() as session:
        return settings_of(session)


def test_a_restart_changes_only_the_settings_that_are_given(new_desk, tmp_path):
    desk = new_desk(records=3, judgements=2, checks=0.2, task="ranking", lease_minutes=40)
    made = settings(desk)
    assert fill(desk.database, tmp_path / "data", DeskConfig()).changed == {}
    assert settings(desk) == made
    filled = fill(desk.database, tmp_path / "data", DeskConfig(judgements=5, lease_minutes=40))
    assert filled.changed == {"judgements": (2, 5)}
    assert settings(desk) == made.model_copy(update={"judgements": 5})


def annotate(*words):
    return Annotate.read("rewarddance annotate", [str(w) for w in words])


def test_the_command_knows_which_settings_were_given(new_desk, url, tmp_path, monkeypatch, capfd):
    """Also a flag with its default value changes the desk; flags that are not given change nothing."""
    served = []
    monkeypatch.setattr("uvicorn.run", lambda app, **_: served.append(app.state.desk.settings()))
    data = new_data(tmp_path / "data", 3)
    start = (data, "--database", url)
    annotate(*start, "--judgements", 5, "--checks", 0.1, "--whole-items-first", "True").run()
    annotate(*start).run()
    assert served[0] == served[1]
    assert (served[0].judgements, served[0].checks, served[0].whole_items_first) == (5, 0.1, True)
    capfd.readouterr()
    annotate(*start, "--checks", 0.05, "--whole-items-first", "False").run()
    assert served[2] == served[0].model_copy(update={"checks": 0.05, "whole_items_first": False})
    assert "changed checks of the desk from 0.1 to 0.05" in capfd.readouterr().err
    with pytest.raises(RunError, match="other settings \\(task\\)"):
        annotate(*start, "--task", "rating").run()


def test_a_restart_ends_the_earlier_admin_links(url, tmp_path, monkeypatch, capsys):
    links, cookies = [], []

    def serve(app, **_):
        printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
        links.append({name: urlsplit(link).path for name, link in printed.items()})
        http = TestClient(app, base_url="http://desk.test", cookies=cookies[0] if cookies else None)
        if not cookies:
            assert http.post(links[0]["admin"]).status_code == 200
            assert http.get("/admin").status_code == 200
            cookies.append(dict(http.cookies))
            return
        assert http.get("/admin").status_code == 401  # the session of the first link ended too
        assert http.get(links[0]["admin"]).status_code == 404
        assert http.post(links[0]["ada"]).status_code == 200  # people's links stay
        assert http.post(links[1]["admin"]).status_code == 200
        assert http.get("/admin").status_code == 200

    monkeypatch.setattr("uvicorn.run", serve)
    start = (new_data(tmp_path / "data", 3), "--database", url, "--invite", "ada")
    for _ in range(2):
        annotate(*start).run()
    assert len(links) == 2


def test_migrations_make_the_tables_of_the_models(url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database: Database = open_database(url)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    database.close()
    open_database(url).close()  # a second start changes nothing


def test_two_servers_on_one_database(new_desk, url, tmp_path):
    first = new_desk(records=10, judgements=2)
    second = new_desk(records=10, judgements=2)
    assert second.filled.records == 0
    people = [first.person("ada"), second.person("ben")]
    threads = [threading.Thread(target=p.work) for p in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(r.votes) for r in export(second)] == [2] * 10
    link = first.link("cyd")
    cyd = second.http()
    assert cyd.post(link, follow_redirects=False).status_code == 303  # a link of one server opens the other


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("desk.db", "not a database"),
        ("mysql://x/y", "not supported"),
        ("sqlite://", "needs a file"),
        ("postgresql://nobody@127.0.0.1:1/x", "cannot open the database"),
    ],
)
def test_wrong_databases_are_one_clear_line(address, message):
    with pytest.raises(InputError, match=message):
        open_database(address)
