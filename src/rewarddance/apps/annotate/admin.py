"""The admin's part: progress, agreement, people, invitations, exclusion, exports."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask

from rewarddance.apps.annotate import auth, judging
from rewarddance.apps.annotate.app import Desk, page
from rewarddance.apps.annotate.auth import Who
from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.export import write_format, write_records
from rewarddance.apps.annotate.filling import settings_of
from rewarddance.apps.annotate.guard import PROBLEMS, Admin
from rewarddance.apps.annotate.models import Item, Judgement, Person
from rewarddance.apps.annotate.quality import agreement, people_table, rater_models
from rewarddance.apps.annotate.reading import Given, judgements
from rewarddance.core.errors import InputError

router = APIRouter(prefix="/admin", responses=PROBLEMS)


def checked_form(who: Admin, csrf: Annotated[str, Form(max_length=100)] = "") -> Who:
    """The admin, by a form that carries the session's CSRF token."""
    if not auth.same_token(csrf, who.csrf):
        raise HTTPException(403, "the form is too old; reload the page")
    return who


Checked = Annotated[Who, Depends(checked_form)]
Number = Annotated[int, Form(ge=1, lt=1 << 31)]


def overview(session: Session, config: DeskConfig) -> dict[str, Any]:
    """Everything that the admin page shows, as plain values."""
    given = list(judgements(session))
    num_items = int(session.scalar(select(func.count()).where(Item.noise.is_(None))) or 0)
    counted = sum(g.counts for g in given)
    table = people_table(given, config)
    models = rater_models(given, config)
    people = []
    for person in session.scalars(select(Person).where(Person.role == auth.ANNOTATOR).order_by(Person.id)):
        row: dict[str, Any] = {"id": person.id, "name": person.name, "code": person.code, "reason": person.reason}
        row["excluded"] = person.excluded is not None
        row["reliability"] = {name: fit.reliability.get(person.code) for name, fit in models.items()}
        people.append(row | {"work": table.get(person.code)})
    return {
        "items": num_items,
        "wanted": num_items * config.judgements,
        "judged": counted,
        "complete": _complete(given, config),
        "agreement": agreement(given, config),
        "models": {name: {"pairs": len(fit.pairs), "differ": fit.differ} for name, fit in models.items()},
        "people": people,
        "withdrawn": int(session.scalar(select(func.count()).where(Judgement.withdrawn.is_not(None))) or 0),
    }


def _complete(given: list[Given], config: DeskConfig) -> int:
    by_item: dict[int, int] = {}
    for g in given:
        if g.counts:
            by_item[g.item] = by_item.get(g.item, 0) + 1
    return sum(n >= config.judgements for n in by_item.values())


@router.get("", response_class=HTMLResponse)
def admin_page(who: Admin, request: Request, desk: Desk) -> Response:
    """The admin page."""
    return _page(request, desk, who)


def _page(request: Request, desk: Desk, who: Who, link: str | None = None, invited: str = "") -> HTMLResponse:
    with desk.database.read() as session:
        config = settings_of(session)
        values = overview(session, config)
    return page(request, "admin.html", who=who, config=config, link=link, invited=invited, **values)


@router.get("/overview.json")
def overview_json(who: Admin, desk: Desk) -> dict[str, Any]:
    """The figures of the admin page."""
    with desk.database.read() as session:
        return overview(session, settings_of(session))


def _link(request: Request, desk: Desk, token: str) -> str:
    return f"{(desk.server.url or str(request.base_url)).rstrip('/')}/join/{token}"


@router.post("/invite", response_class=HTMLResponse)
def invite(
    who: Checked, request: Request, desk: Desk, name: Annotated[str, Form(min_length=1, max_length=80)]
) -> Response:
    """A new person with a link, which is shown once."""
    if not name.strip() or not name.isprintable():
        raise HTTPException(422, "a name needs printable letters")
    now = desk.clock()
    with desk.database.write() as session:
        if auth.named(session, name.strip()) is not None:  # also where a browser sends the form again
            raise HTTPException(409, f"{name.strip()} is invited already; make a new link in the table of people")
        person = auth.new_person(session, name.strip(), auth.ANNOTATOR, now)
        token = auth.invite(session, person, desk.server, now)
    return _page(request, desk, who, _link(request, desk, token), name.strip())


@router.post("/link", response_class=HTMLResponse)
def new_link(who: Checked, request: Request, desk: Desk, person: Number) -> Response:
    """A new link for a person; their earlier links and sessions end."""
    with desk.database.write() as session:
        row = _annotator(session, person)
        auth.revoke(session, row.id)
        token, name = auth.invite(session, row, desk.server, desk.clock()), row.name
    return _page(request, desk, who, _link(request, desk, token), name)


@router.post("/exclude", response_class=RedirectResponse, status_code=303)
def exclude(
    who: Checked, desk: Desk, person: Number, reason: Annotated[str, Form(min_length=1, max_length=300)]
) -> RedirectResponse:
    """Leave a person's judgements out of results, and give their items to others."""
    if not reason.strip() or not reason.isprintable():
        raise HTTPException(422, "an exclusion needs a reason in printable letters")
    now = desk.clock()
    with desk.database.write() as session:
        row = _annotator(session, person)
        row.excluded, row.reason = now, reason.strip()
        judging.release(session, row.id, now)
    return RedirectResponse("/admin", 303)


@router.post("/include", response_class=RedirectResponse, status_code=303)
def include(who: Checked, desk: Desk, person: Number) -> RedirectResponse:
    """Take an exclusion back."""
    with desk.database.write() as session:
        row = _annotator(session, person)
        row.excluded, row.reason = None, None
    return RedirectResponse("/admin", 303)


def _annotator(session: Session, person: int) -> Person:
    row = session.scalar(select(Person).where(Person.id == person, Person.role == auth.ANNOTATOR))
    if row is None:
        raise HTTPException(404, "no such person")
    return row


@router.get("/export/{format}", response_class=FileResponse)
def export(who: Admin, desk: Desk, format: Literal["records", "label-studio"]) -> Response:
    """A ZIP file of the judgements so far: a data folder for `train --data`, or Label Studio's JSON and pictures."""
    folder = Path(mkdtemp(prefix="desk-export-"))
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(desk.clock()))
    try:
        with desk.database.read() as session:
            if format == "label-studio":
                write_format(session, "label-studio", folder / "export")
            else:
                write_records(session, folder / "export")
        packed = Path(shutil.make_archive(str(folder / "packed"), "zip", folder / "export"))
    except InputError as error:
        shutil.rmtree(folder)
        raise HTTPException(409, str(error)) from None
    except BaseException:
        shutil.rmtree(folder)
        raise
    remove = BackgroundTask(shutil.rmtree, folder)
    return FileResponse(packed, filename=f"desk-{format}-{stamp}.zip", media_type="application/zip", background=remove)
