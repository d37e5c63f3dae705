"""The web application: pages and JSON for annotators. `admin.py` adds the admin's part, `guard.py` protects both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form, Header, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, select_autoescape
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from rewarddance.apps.annotate import auth, judging
from rewarddance.apps.annotate.answers import Answer
from rewarddance.apps.annotate.auth import RateLimiter, Who
from rewarddance.apps.annotate.config import DeskConfig, ServerConfig
from rewarddance.apps.annotate.database import Database
from rewarddance.apps.annotate.filling import settings_of
from rewarddance.apps.annotate.guard import PROBLEMS, Annotator, SignedIn, install
from rewarddance.apps.annotate.media import Remembered, part_of
from rewarddance.apps.annotate.models import Person, Picture
from rewarddance.apps.annotate.showing import wanted

HERE = Path(__file__).parent
router = APIRouter()
PAGES = {303: {"description": "Another page"}, **PROBLEMS}


@dataclass
class State:
    """The objects that every request uses."""

    database: Database
    server: ServerConfig
    clock: Callable[[], float] = time.time
    people: RateLimiter = field(init=False)
    logins: RateLimiter = field(init=False)
    media: Remembered = field(default_factory=Remembered)

    def __post_init__(self) -> None:
        self.people = RateLimiter(self.server.requests_per_minute)
        self.logins = RateLimiter(self.server.wrong_links_per_minute)

    @cached_property
    def pages(self) -> Environment:
        return Environment(loader=PackageLoader("rewarddance.apps.annotate", "pages"), autoescape=select_autoescape())

    def settings(self) -> DeskConfig:
        with self.database.read() as session:
            return settings_of(session)


def create_app(
    database: Database, server: ServerConfig | None = None, clock: Callable[[], float] = time.time
) -> FastAPI:
    """The application on an open database that holds a desk.

    Args:
        clock: seconds since 1970.
    """
    from rewarddance.apps.annotate.admin import router as admin_router

    app = FastAPI(title="rewarddance annotate", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = State(database, server or ServerConfig(), clock)
    install(app)
    app.include_router(router)
    app.include_router(admin_router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    return app


def desk_of(request: Request) -> State:
    state: State = request.app.state.desk
    return state


Desk = Annotated[State, Depends(desk_of)]


def page(request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page from its template."""
    return HTMLResponse(desk_of(request).pages.get_template(name).render(**values), status)


@router.get("/", response_class=HTMLResponse, responses=PAGES)
def home(request: Request, desk: Desk) -> Response:
    """The desk of an annotator, the admin page, or a message that says how to log in."""
    with desk.database.read() as session:
        who = auth.who_is(session, request.cookies.get(auth.COOKIE), desk.server, desk.clock())
    if who is None:
        return page(request, "message.html", 401, title="Please open your link", text=NO_SESSION)
    if who.role == auth.ADMIN:
        return RedirectResponse("/admin", 303)
    if who.excluded:
        return page(request, "message.html", 403, title="Thank you", text="Your part in this desk has ended.")
    return page(request, "desk.html", who=who, config=desk.settings())


NO_SESSION = "You are not logged in, or your session has ended. Open the link that you were sent, and you can go on."


def _guest(token: str, request: Request, desk: State, session: Session) -> Person | HTMLResponse:
    """The person of a link, or the page that refuses the link.

    Only unknown links count for the limit of an address, because a whole team may come from one address.
    """
    host = request.client.host if request.client else ""
    person = auth.invited(session, token, desk.clock()) if desk.logins.allows(host, desk.clock(), take=False) else None
    if person is not None and desk.people.allows(str(person.id), desk.clock()):
        return person
    if person is not None or not desk.logins.allows(host, desk.clock()):
        return page(request, "message.html", 429, title="Please wait", text="Too many tries. Wait a minute.")
    text = "This link is not valid, or it has expired. Ask for a new one."
    return page(request, "message.html", 404, title="No such invitation", text=text)


@router.get("/join/{token}", response_class=HTMLResponse, responses=PAGES)
def join_page(token: str, request: Request, desk: Desk) -> Response:
    """The page behind an invitation. It changes nothing, since programs that preview links open it too."""
    with desk.database.read() as session:
        person = _guest(token, request, desk, session)
    if isinstance(person, Response):
        return person
    return page(request, "join.html", person=person, token=token, config=desk.settings())


@router.post("/join/{token}", response_class=HTMLResponse, responses=PAGES)
def join(token: str, request: Request, desk: Desk) -> Response:
    """Begin a session."""
    with desk.database.write() as session:
        person = _guest(token, request, desk, session)
        if isinstance(person, Response):
            return person
        cookie = auth.log_in(session, person, desk.clock())
    answer = RedirectResponse("/", 303)
    longest = int(3600 * desk.server.longest_session_hours)
    secure = _secure(request, desk)
    answer.set_cookie(auth.COOKIE, cookie, max_age=longest, httponly=True, samesite="lax", secure=secure)
    return answer


def _secure(request: Request, desk: State) -> bool:
    """Whether people reach the server by TLS: directly, or through a proxy that `ServerConfig.url` names."""
    return request.url.scheme == "https" or (desk.server.url or "").lower().startswith("https:")


@router.post("/logout", response_class=HTMLResponse, responses=PROBLEMS)
def logout(who: SignedIn, request: Request, desk: Desk, csrf: Annotated[str, Form(max_length=100)] = "") -> Response:
    """End the session."""
    if not auth.same_token(csrf, who.csrf):
        raise HTTPException(403, "the form is too old; reload the page")
    with desk.database.write() as session:
        auth.log_out(session, who.login)
    answer = page(request, "message.html", title="Goodbye", text="You are logged out. Your judgements are kept.")
    answer.delete_cookie(auth.COOKIE, httponly=True, samesite="lax", secure=_secure(request, desk))
    return answer


class Judged(BaseModel):
    """A judgement as the page sends it."""

    model_config = ConfigDict(extra="forbid")
    assignment: Annotated[str, Field(min_length=1, max_length=64)]
    key: Annotated[str, Field(min_length=8, max_length=64, pattern="^[A-Za-z0-9-]+$")]
    answers: Annotated[dict[str, Answer], Field(min_length=1, max_length=20)]
    seconds: Annotated[float, Field(ge=0, le=86400)] = 0.0


class Work(BaseModel):
    """The item to judge, or none, and how far the person is."""

    item: dict[str, Any] | None
    done: int
    remaining: int


class Saved(BaseModel):
    """The judgement is in the database. `new` is False where the same request came before."""

    saved: bool = True
    new: bool


@router.post("/api/next", responses=PROBLEMS)
def next_item(who: Annotator, desk: Desk) -> Work:
    """The item that this person judges now."""
    return _work(who, desk)


def _work(who: Who, desk: State, undone: bool = False) -> Work:
    now = desk.clock()
    with desk.database.write() as session:
        config = settings_of(session)
        auth.touch(session, who.login, now)
        item = judging.undo(session, who.person, config, now) if undone else None
        if item is None:
            assignment = judging.next_assignment(session, who.person, config, now)
            item = None if assignment is None else judging.described(session, assignment, config)
    with desk.database.read() as session:  # others need not wait for it
        return Work(item=item, **judging.progress_of(session, who.person, config, now))


@router.post("/api/judgements", responses=PROBLEMS)
def judge(judged: Judged, who: Annotator, desk: Desk) -> Saved:
    """Store a judgement. It is on the disk before the response is sent."""
    now = desk.clock()
    with desk.database.write() as session:
        config = settings_of(session)
        auth.touch(session, who.login, now)
        new = judging.judge(
            session, who.person, judged.assignment, judged.key, judged.answers, judged.seconds, config, now
        )
    return Saved(new=new)


@router.post("/api/undo", responses=PROBLEMS)
def undo(who: Annotator, desk: Desk) -> Work:
    """Take the last judgement back. Its item is shown again with the answers."""
    return _work(who, desk, undone=True)


@router.get(
    "/media/{token}",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {}, "video/mp4": {}}},
        206: {"description": "The part that `Range` asks for"},
        416: {"description": "`Range` lies beyond the end"},
        **PROBLEMS,
    },
)
def media(
    token: str,
    who: SignedIn,
    desk: Desk,
    byte_range: Annotated[str | None, Header(alias="range", max_length=100)] = None,
) -> Response:
    """A picture or clip of one of the person's own assignments, or a part of it."""
    with desk.database.read() as session:
        file = wanted(session, token, who.person)
    if file is None:
        raise HTTPException(404, "no such picture")

    def load(number: int) -> bytes:
        with desk.database.read() as session:
            return session.get_one(Picture, number).content

    content = file.of(desk.media.get(file.key, lambda: file.encoded(load)))
    part = part_of(content, byte_range)
    headers = {"Cache-Control": "private, max-age=3600, immutable", **part.headers}
    return Response(part.content, part.status, headers, file.media_type)
