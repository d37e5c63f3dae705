"""Running a desk: admin, export, restarts, migrations, two servers. One suite for SQLite and PostgreSQL."""

import io
import json
import threading
import zipfile
from contextlib import closing
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from alembic import command
from desks import export, new_data, new_record
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.database import Database, open_database
from rewarddance.apps.annotate.filling import fill, settings_of
from rewarddance.apps.annotate.models import Base, Desk, Item
from rewarddance.apps.annotate.ordering import forget_order
from rewarddance.apps.annotating import Annotate
from rewarddance.core.errors import ConfigError, InputError, RunError
from rewarddance.data.schema import row_of_votes
from rewarddance.data.shards import write_rows


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
    with pytest.raises(ConfigError, match="--invite admin: choose another name"):
        annotate(*start, "--invite", "admin").run()


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


def test_a_database_of_the_schema_before_keeps_its_rows_and_its_order_is_nobodys(url, monkeypatch):
    with monkeypatch.context() as patch:
        upgrade = command.upgrade
        patch.setattr("alembic.command.upgrade", lambda settings, _: upgrade(settings, "0002"))
        database = open_database(url)
        with database.write() as session:
            session.execute(text("INSERT INTO desk (id, settings, source, created) VALUES (1, '{}', '[]', 7)"))
            session.execute(
                text("INSERT INTO record (id, name, prompt, media, facts) VALUES (1, 'r', 'p', '[]', '{}')")
            )
            session.execute(
                text("INSERT INTO item (id, record_id, members, pictures, place) VALUES (1, 1, '[]', '[]', 5)")
            )
        database.close()
    with closing(open_database(url)) as opened:
        with opened.read() as session:
            desk = session.scalars(select(Desk)).one()
            assert (desk.created, desk.order_owner, desk.order_until) == (7.0, None, None)
            assert session.scalars(select(Item.place)).all() == [5]
        assert forget_order(opened)
        with opened.read() as session:
            assert session.scalars(select(Item.place)).all() == [None]


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
