"""The HTTP server of a judge: `GET /info` and `POST /judge` (`reward/wire.py` has the format)."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from threading import Lock

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from rewarddance.core.errors import InputError
from rewarddance.core.types import RewardModel
from rewarddance.jobs.load import find, weights_id
from rewarddance.reward.composite import AnyJudge
from rewarddance.reward.judge import Judge
from rewarddance.reward.wire import AnswerData, JudgeInfo, QuestionData, answer_of, decoded
from rewarddance.search.verifier import answers_alone

MOST_BYTES = 64 << 20
"""Largest body of a request."""


def info_of(name: str, judge: AnyJudge) -> JudgeInfo:
    """What the server says of its judge."""
    criteria = None
    if isinstance(judge, Judge):
        criteria = judge.spec.criteria or tuple(judge.spec.context.words.criteria)
    return JudgeInfo(
        judge=name,
        weights=weights_id(find(name, "judge")),
        criterion=judge.criterion,
        criteria=criteria,
        precision=judge.precision,
        pointwise=answers_alone(judge),
        most_bytes=MOST_BYTES,
    )


def create_app(judge: RewardModel, info: JudgeInfo, key: str | None = None) -> FastAPI:
    """The application.

    Args:
        key: that requests must carry as a bearer token; None lets everybody ask.
    """
    import torch

    app, lock = FastAPI(title="rewarddance judge"), Lock()

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if key is not None and not hmac.compare_digest(given, key.encode()):
            return JSONResponse({"detail": "wrong key"}, 401)
        length = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers or not length.isdecimal() or int(length) > MOST_BYTES:
            return JSONResponse({"detail": f"a request has a content-length of at most {MOST_BYTES:,} bytes"}, 413)
        return await call_next(request)

    @app.get("/info")
    def information() -> JudgeInfo:
        return info

    @app.post("/judge")
    def verdicts(question: QuestionData) -> AnswerData:
        try:
            comparisons = decoded(question)
        except InputError as error:
            raise HTTPException(422, str(error)) from None
        with lock, torch.no_grad():  # a judge answers one request at a time
            return answer_of(judge.judge(comparisons))

    return app
