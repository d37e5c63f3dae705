"""Desks for the tests of the annotation desk, on SQLite and, with the marker `postgres`, on PostgreSQL."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium")
SERVER_ENDED = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
"""What Chromium prints if a page asks for media while the server ends, or after its end."""


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    import tempfile

    from desks import postgres_server

    with tempfile.TemporaryDirectory(prefix="desk-pg-") as folder, postgres_server(f"{folder}/server") as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/desk.db"
    return request.getfixturevalue("postgres").new()


@pytest.fixture
def new_desk(url, tmp_path):
    from desks import DeskServer, new_data

    from rewarddance.apps.annotate.config import DeskConfig

    opened = []

    def make(records=8, pictures=2, server=None, data=None, **settings):
        config = DeskConfig(**{"checks": 0, "repeats": 0, **settings})
        opened.append(DeskServer(data or new_data(tmp_path / "data", records, pictures), url, config, server))
        return opened[-1]

    yield make
    for desk in opened:
        desk.database.close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def new_page(browser):
    """Pages of people who are not logged in. An error of a script or a violation of the content security policy fails
    the test.

    A page that is still open when the server ends asks for its pictures again (`SERVER_ENDED`).
    """
    problems, contexts = [], []

    def note(message, ignored):
        if message.type == "error" and not any(part in message.text for part in ignored):
            problems.append(message.text)

    def make(width=1280, height=800, expected="favicon", **how):
        ignored = (expected, *SERVER_ENDED)
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **how))
        page = contexts[-1].new_page()
        page.set_default_timeout(240_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: note(m, ignored))
        return page

    yield make
    for context in contexts:
        context.close()
    assert not problems
