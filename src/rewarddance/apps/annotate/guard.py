"""The protection of the pages: sessions, CSRF, rate limits, headers, and errors without stack traces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as AnyHTTPException

from rewarddance.apps.annotate import auth
from rewarddance.apps.annotate.auth import Who
from rewarddance.apps.annotate.judging import ConflictError, UnknownError
from rewarddance.core.errors import RewardDanceError
from rewarddance.core.progress import say

MAX_BYTES = 64 << 10
"""Largest body of a request."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body cannot be read"},
    401: {"description": "Not logged in"},
    403: {"description": "Not allowed, or a wrong CSRF token"},
    404: {"description": "No such thing for this person"},
    409: {"description": "Does not fit what was stored before"},
    411: {"description": "The request does not say its length"},
    413: {"description": "The request is too large"},
    422: {"description": "The request is malformed"},
    429: {"description": "Too many requests"},
}
STATUS: dict[type[Exception], int] = {UnknownError: 404, ConflictError: 409}


def signed_in(request: Request) -> Who:
    """The person of the session cookie.

    Raises:
        HTTPException: 401 without a session, 429 over the rate limit.
    """
    desk = request.app.state.desk
    with desk.database.read() as session:
        who = auth.who_is(session, request.cookies.get(auth.COOKIE), desk.server, desk.clock())
    if who is None:
        raise HTTPException(401, "your session has ended; open your link again")
    if not desk.people.allows(str(who.person), desk.clock()):
        raise HTTPException(429, "too many requests; wait a minute", {"Retry-After": "10"})
    return who


SignedIn = Annotated[Who, Depends(signed_in)]


def annotator(request: Request, who: SignedIn) -> Who:
    """An annotator who is not excluded, with the session's CSRF token in the header `X-CSRF-Token`."""
    if not auth.same_token(request.headers.get("x-csrf-token"), who.csrf):
        raise HTTPException(403, "the CSRF token is missing or wrong; reload the page")
    if who.role != auth.ANNOTATOR:
        raise HTTPException(403, "admins do not judge; open an annotator's link")
    if who.excluded:
        raise HTTPException(403, "your part in this desk has ended")
    return who


Annotator = Annotated[Who, Depends(annotator)]


def admin(who: SignedIn) -> Who:
    """The admin. For everybody else the page does not exist."""
    if who.role != auth.ADMIN:
        raise HTTPException(404, "no such page")
    return who


Admin = Annotated[Who, Depends(admin)]


def foreign(request: Request) -> bool:
    """Whether a browser sent the request from a page of another site."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


def install(app: FastAPI) -> None:
    """Add the middleware and the error handlers."""

    @app.middleware("http")
    async def protect(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await _checked(request, go_on)
        for name, value in HEADERS.items():
            response.headers[name] = value
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    app.exception_handler(AnyHTTPException)(_refused)
    app.exception_handler(RewardDanceError)(_unfit)


async def _checked(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    if request.method not in ("GET", "HEAD", "OPTIONS"):
        if foreign(request):
            return JSONResponse({"detail": "this request came from another site"}, 403)
        length = request.headers.get("content-length")
        if length is None and "chunked" in request.headers.get("transfer-encoding", ""):
            return JSONResponse({"detail": "the request must say its length"}, 411)
        if length is not None and (not length.isdigit() or int(length) > MAX_BYTES):
            return JSONResponse({"detail": "the request is too large"}, 413)
    try:
        return await go_on(request)
    except (SQLAlchemyError, OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "" if place is None else f" ({place.tb_frame.f_code.co_name}:{place.tb_lineno})"
        say(
            f"{request.method} {request.scope['route'].path if 'route' in request.scope else '?'}: "
            f"{type(error).__name__}{where}"
        )
        return JSONResponse({"detail": "something went wrong here; please try again"}, 500)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    headers = dict(error.headers or {})
    if "text/html" in request.headers.get("accept", ""):
        template = request.app.state.desk.pages.get_template("message.html")
        title = {401: "Please open your link", 404: "No such page", 429: "Please wait"}.get(
            error.status_code, "Not done"
        )
        content = template.render(title=title, text=error.detail)
        return Response(content, error.status_code, headers, "text/html; charset=utf-8")
    return JSONResponse({"detail": error.detail}, error.status_code, headers)


async def _unfit(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, STATUS.get(type(error), 422))
