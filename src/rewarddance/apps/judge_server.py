"""The HTTP server of a judge: `GET /info` and `POST /judge` (`reward/wire.py` has the format), and for other trainers
`GET /health`, `POST /score` and `POST /compute` (`reward/trainer_wire.py`).
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from threading import Lock
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from rewarddance.core.errors import InputError
from rewarddance.core.types import Comparison, RewardModel, Verdict
from rewarddance.jobs.load import find, weights_id
from rewarddance.reward.composite import AnyJudge
from rewarddance.reward.judge import Judge
from rewarddance.reward.learned import LearnedJudge
from rewarddance.reward.trainer_wire import (
    ComputeAnswer,
    ComputeBody,
    ScoreAnswer,
    ScoreBody,
    answer_compute,
    answer_score,
)
from rewarddance.reward.wire import MAX_BYTES, AnswerData, JudgeInfo, QuestionData, answer_of, decoded
from rewarddance.search.verifier import answers_alone


def info_of(name: str, judge: AnyJudge) -> JudgeInfo:
    """What the server says about its judge."""
    criteria = None
    if isinstance(judge, Judge):
        criteria = judge.spec.criteria or tuple(judge.spec.context.words.criteria)
    elif isinstance(judge, LearnedJudge):
        criteria = tuple(judge.spec.columns)
    return JudgeInfo(
        judge=name,
        weights=weights_id(find(name, "judge")),
        criterion=judge.criterion,
        criteria=criteria,
        precision=judge.precision,
        pointwise=answers_alone(judge),
        most_bytes=MAX_BYTES,
    )


def create_app(judge: RewardModel, info: JudgeInfo, key: str | None = None) -> FastAPI:
    """The application.

    Args:
        key: requests must carry it as a bearer token. None: everybody may ask.
    """
    import torch

    app, lock = FastAPI(title="rewarddance judge"), Lock()
    rewards = info.criteria or (info.criterion,)

    def asked(comparisons: Sequence[Comparison]) -> Verdict:
        with lock, torch.no_grad():  # a judge answers one request at a time
            return judge.judge(comparisons)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if key is not None and not hmac.compare_digest(given, key.encode()):
            return JSONResponse({"detail": "wrong key"}, 401)
        length = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers or not length.isdecimal() or int(length) > MAX_BYTES:
            return JSONResponse({"detail": f"a request needs a content-length of at most {MAX_BYTES:,} bytes"}, 413)
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
        return answer_of(asked(comparisons))

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "rewards": {name: [f"{info.judge}:ready"] for name in rewards}}

    @app.post("/score")
    def scores(body: ScoreBody) -> ScoreAnswer:
        return answer_score(body, rewards, info.weights, asked)

    @app.post("/compute")
    def computed(body: ComputeBody) -> ComputeAnswer:
        try:
            return answer_compute(body, asked)
        except InputError as error:
            raise HTTPException(422, str(error)) from None

    return app
