"""Each promise about security, tried: CSRF, sessions, limits, headers, roles, errors; and a run of schemathesis."""

import contextlib
import json
import re
from collections import Counter

import pytest
import schemathesis
from desks import Client, DeskServer, new_data
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import select, text

from rewarddance.apps.annotate import auth
from rewarddance.apps.annotate.auth import RateLimiter
from rewarddance.apps.annotate.config import DeskConfig, ServerConfig
from rewarddance.apps.annotate.models import Invitation, Login


@pytest.fixture
def desk(tmp_path):
    made = DeskServer(new_data(tmp_path / "data"), f"sqlite:///{tmp_path}/desk.db")
    yield made
    made.database.close()


def test_tokens_are_kept_as_hashes_only(desk):
    link = desk.link()
    ada = Client(desk.http(), link)
    cookie = ada.http.cookies[auth.COOKIE]
    with desk.database.read() as session:
        stored = [*session.scalars(select(Invitation.token_hash)), *session.scalars(select(Login.token_hash))]
    assert len(stored) == 2
    assert all(token not in stored for token in (link.rsplit("/")[-1], cookie))


def test_opening_a_link_changes_nothing(desk):
    link = desk.link()
    http = desk.http()
    assert http.get(link).status_code == 200
    assert not http.cookies
    with desk.database.read() as session:
        assert not list(session.scalars(select(Login)))


def test_the_cookie_is_out_of_reach_of_scripts(desk):
    answer = desk.http().post(desk.link(), follow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    secure = DeskServer.http(desk)
    secure.base_url = "https://desk.test"
    assert "secure" in secure.post(desk.link(), follow_redirects=False).headers["set-cookie"].lower()


def test_behind_a_proxy_with_tls_the_cookie_is_secure(tmp_path):
    """The proxy speaks plain HTTP to the server; `url` says how people reach it."""
    server = ServerConfig(url="https://desk.example.org")
    behind = DeskServer(new_data(tmp_path / "data"), f"sqlite:///{tmp_path}/desk.db", server=server)
    http = behind.http()
    assert "; secure" in http.post(behind.link(), follow_redirects=False).headers["set-cookie"].lower()
    behind.database.close()


def test_without_tls_the_cookie_is_not_secure_so_that_it_works(desk):
    assert "secure" not in desk.http().post(desk.link(), follow_redirects=False).headers["set-cookie"].lower()


def test_links_and_sessions_expire(desk):
    link = desk.link()
    ada = Client(desk.http(), link)
    desk.clock.now += 11 * 3600
    assert ada.post("/api/next").status_code == 200  # used within twelve hours, so it goes on
    desk.clock.now += 11 * 3600
    assert ada.post("/api/next").status_code == 200
    desk.clock.now += 13 * 3600
    assert ada.post("/api/next").status_code == 401
    assert desk.http().post(link, follow_redirects=False).status_code == 303
    desk.clock.now += 31 * 86400
    assert desk.http().post(link).status_code == 404


def test_a_session_ends_in_any_case_after_a_week(desk):
    ada = desk.person()
    for _ in range(24 * 7 // 8):
        desk.clock.now += 8 * 3600
        ada.post("/api/next")
    desk.clock.now += 60
    assert ada.post("/api/next").status_code == 401


def test_logging_out_ends_the_session(desk):
    ada = desk.person()
    cookie = ada.http.cookies[auth.COOKIE]
    assert ada.http.post("/logout", data={"csrf": "wrong"}).status_code == 403
    assert ada.form("/logout").status_code == 200
    ada.http.cookies.set(auth.COOKIE, cookie)
    assert ada.post("/api/next").status_code == 401


@pytest.mark.parametrize("path", ["/api/next", "/api/undo", "/api/judgements"])
def test_requests_need_a_csrf_token(desk, path):
    ada = desk.person()
    body = {"assignment": "x", "key": "k" * 10, "answers": {"overall": {"choice": "tie"}}}
    assert ada.http.post(path, json=body).status_code == 403
    other = desk.person("ben")
    assert ada.http.post(path, json=body, headers={"X-CSRF-Token": other.csrf}).status_code == 403


@pytest.mark.parametrize("path", ["invite", "link", "exclude", "include"])
def test_admin_forms_need_a_csrf_token(desk, path):
    desk.person()
    admin = desk.admin()
    data = {"name": "x", "person": 1, "reason": "x"}
    assert admin.http.post(f"/admin/{path}", data=data).status_code == 403
    assert admin.http.post(f"/admin/{path}", data=data | {"csrf": "x" * 43}).status_code == 403


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.test"}])
def test_other_sites_cannot_log_somebody_in_or_post(desk, headers):
    assert desk.http().post(desk.link(), headers=headers).status_code == 403
    assert desk.person().post("/api/next", **headers).status_code == 403


def test_annotators_see_neither_admin_nor_others(desk):
    ada, ben = desk.person("ada"), desk.person("ben")
    item = ada.next()["item"]
    ada.say(item, {"overall": {"choice": "tie"}})
    for path in ("/admin", "/admin/overview.json", "/admin/export/records", "/admin/export/label-studio"):
        assert ben.http.get(path).status_code == 404
    for path in ("/admin/invite", "/admin/exclude", "/admin/link", "/admin/include"):
        assert ben.form(path, name="x", person=1, reason="x").status_code == 404
    assert ben.say(item, {"overall": {"choice": "tie"}}).status_code == 404  # ada's assignment
    assert ben.http.get(f"/media/{item['media'][0]}").status_code == 404
    assert ben.post("/api/undo").json()["done"] == 0  # nothing of his own to take back
    assert ada.next()["done"] == 1
    anonymous = desk.http()
    assert anonymous.get("/admin").status_code == 401
    assert anonymous.get(f"/media/{item['media'][0]}").status_code == 401
    assert desk.admin().post("/api/next").status_code == 403  # admins do not judge


def test_rate_limits(tmp_path):
    desk = DeskServer(
        new_data(tmp_path / "data"),
        f"sqlite:///{tmp_path}/desk.db",
        DeskConfig(),
        ServerConfig(requests_per_minute=6, wrong_links_per_minute=6),
    )
    ada, ben = desk.person("ada"), desk.person("ben")
    statuses = [ada.post("/api/next").status_code for _ in range(8)]
    assert statuses == [200] * 5 + [429] * 3  # logging in was the first of six
    assert ben.post("/api/next").status_code == 200  # each has a limit of their own
    desk.clock.now += 11
    assert ada.post("/api/next").status_code == 200  # one in ten seconds
    http = desk.http()
    assert [http.get(f"/join/{'x' * 43}").status_code for _ in range(8)] == [404] * 6 + [429] * 2
    assert http.post(f"/join/{'y' * 43}").status_code == 429
    link = desk.link("cyd")
    assert http.get(link).status_code == 429  # also a right guess is refused
    desk.clock.now += 11
    assert [http.get(link).status_code for _ in range(8)] == [200] * 6 + [429] * 2
    desk.database.close()


def test_a_team_behind_one_address_logs_in_at_once(desk):
    http = desk.http()
    for number in range(3 * ServerConfig().wrong_links_per_minute):
        link = desk.link(f"p{number}")
        assert http.get(link).status_code == 200
        assert http.post(link, follow_redirects=False).status_code == 303


def test_the_bucket_refills_evenly():
    limiter = RateLimiter(60)
    assert [limiter.allows("a", 0.0) for _ in range(61)] == [True] * 60 + [False]
    assert [limiter.allows("a", 2.0) for _ in range(3)] == [True, True, False]
    limiter.MAX_KEYS = 2
    for key in "bcd":
        limiter.allows(key, 3.0)
    assert len(limiter._buckets) == 2


def test_each_server_counts_requests_by_itself(new_desk):
    """As the guide says."""
    limits = ServerConfig(requests_per_minute=6)
    first, second = new_desk(server=limits), new_desk(server=limits)
    ada = first.person()
    other = second.http()
    other.cookies = ada.http.cookies
    while ada.http.get("/media/x").status_code == 404:
        pass
    assert ada.http.get("/media/x").status_code == 429
    assert other.get("/media/x").status_code == 404


def test_headers_of_every_answer(desk):
    ada = desk.person()
    for path in ("/", "/static/desk.js", "/nowhere", "/admin"):
        headers = ada.http.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
    assert ada.http.get("/").headers["cache-control"] == "no-store"


def test_pages_need_nothing_that_the_policy_forbids(desk):
    for page in (desk.person().http.get("/").text, desk.admin().http.get("/admin").text):
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|https?://(?!desk\.test)", page)


def test_errors_show_no_stack(desk):
    ada = desk.person()
    ada.next()
    with desk.database.write() as session:
        session.execute(text("DROP TABLE judgement"))
    answer = ada.post("/api/undo")
    assert answer.status_code == 500
    assert answer.json() == {"detail": "something went wrong here; please try again"}
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_large_and_odd_bodies_are_refused(desk):
    ada = desk.person()
    headers = {"X-CSRF-Token": ada.csrf}
    assert ada.http.post("/api/judgements", content=b"x" * 70_000, headers=headers).status_code == 413
    assert ada.http.post("/api/judgements", content=(b"x" for _ in range(2)), headers=headers).status_code == 411
    assert ada.http.post("/api/judgements", content=b"{", headers=headers).status_code == 422


def test_nothing_lists_the_application(desk):
    http = desk.http()
    assert [http.get(p).status_code for p in ("/docs", "/redoc", "/openapi.json")] == [404] * 3
    assert http.get("/static/../app.py").status_code == 404
    assert http.get("/static/%2e%2e/app.py").status_code == 404


@pytest.mark.parametrize("role", ["annotator", "admin"])
def test_schemathesis_finds_no_answer_outside_the_description(desk, role):
    """Requests made from the OpenAPI description: no 5xx, no status, content type or body that it does not describe."""
    who = desk.person() if role == "annotator" else desk.admin()
    if role == "annotator":
        who.next()
    schema = schemathesis.openapi.from_dict(desk.app.openapi())
    signed_in = {"headers": {"X-CSRF-Token": who.csrf}, "cookies": {auth.COOKIE: who.http.cookies[auth.COOKIE]}}
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    statuses = Counter()

    def send(case):
        if isinstance(case.body, dict) and "csrf" in json.dumps(case.operation.definition.raw.get("requestBody", {})):
            case.body["csrf"] = who.csrf
        answer = case.call(app=desk.app, **signed_in, allow_redirects=False)
        statuses[case.operation.path] += 1
        case.validate_response(answer, checks=checks)

    few = settings(
        max_examples=6, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    for operation in (result.ok() for result in schema.get_all_operations()):
        if operation.path != "/logout":
            for mode in GenerationMode:
                with contextlib.suppress(Unsatisfiable):  # where there is nothing that could be wrong
                    few(given(operation.as_strategy(generation_mode=mode))(send))()
    assert len(statuses) == 13
    assert statuses.total() >= 50
