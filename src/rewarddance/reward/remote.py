"""A judge behind HTTP, behind the same port as a judge in this process. It has no gradients.

The server is `rewarddance serve`, or a reward server that speaks `POST /score` of UniRL or `POST /compute` of
Flow-Factory (`reward/trainer_wire.py`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from rewarddance.core.config import Computed, Config, parse_config
from rewarddance.core.errors import ConfigError, InputError, JudgementError
from rewarddance.core.http import HttpFailure, JsonServer
from rewarddance.core.media import Media
from rewarddance.core.task import Request
from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.judge import ALONE
from rewarddance.reward.rank import Ranking, rank
from rewarddance.reward.trainer_wire import compute_request, score_request
from rewarddance.reward.wire import (
    MAX_BYTES,
    AnswerData,
    Coding,
    JudgeInfo,
    Numbers,
    WireRequest,
    judge_request,
    refused_answer,
)

KEY = "REWARDDANCE_JUDGE_KEY"
"""Environment variable with the key of the server; both sides read it."""


class RemoteConfig(Config):
    """Settings behind the question mark of an address: `http://host:8600?pictures=png&timeout=30`, or
    `http://host:8080/score?reward=hpsv2`."""

    pictures: Coding = "safetensors"
    """`safetensors` sends pixels as they are; `png` sends an eighth or less, rounded to 8 bits. `/score` and `/compute`
    always take `png`."""
    reward: str | None = None
    """The reward that `/score` is asked for; not needed if the server has only one."""
    value: str | None = None
    """The number of this reward; not needed if it has only one."""
    timeout: float = Field(120.0, gt=0)
    """Seconds that a request may take."""
    attempts: int = Field(6, ge=1)
    """Largest number of requests for one batch."""
    batch: int = Field(256, ge=1)
    """Largest number of comparisons in one request."""


def is_address(name: object) -> bool:
    """Whether the name of a judge is the address of a server."""
    return str(name).startswith(("http://", "https://"))


Endpoint = Literal["judge", "score", "compute"]
"""The last part of an address; `judge` if it names none of the other two."""


def named_by(address: str) -> tuple[str, Endpoint, str | None, str | None]:
    """The judge of an address: the server, its endpoint, the reward, and the reward's value."""
    parts = urlsplit(address)
    settings = dict(parse_qsl(parts.query))
    path, protocol = _protocol(parts.path.rstrip("/"))
    url = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
    return url, protocol, settings.get("reward"), settings.get("value")


@dataclass
class RemoteJudge:
    """Asks `POST {url}/{protocol}`. Failed requests are repeated with growing pauses.

    A batch that has no answer after all attempts is refused with the reason. It gives no number and raises no error.
    With `score` and `compute` every sample is asked about alone, by the reward of the address, whatever the criterion
    is. A comparison is then the difference of two values.
    """

    server: JsonServer
    config: RemoteConfig
    info: JudgeInfo
    protocol: Endpoint = "judge"
    differentiable: bool = field(default=False, init=False)

    @classmethod
    def connect(cls, address: str) -> RemoteJudge:
        """Ask the server what it serves.

        Raises:
            ConfigError: wrong settings in the address, no server there, a wrong key, or another kind of server.
        """
        config = parse_config(RemoteConfig, dict(parse_qsl(urlsplit(address).query)), address)
        url, protocol, _, _ = named_by(address)
        _check_settings(address, config, protocol)
        server = JsonServer(url, f"judge {url}", os.environ.get(KEY), config.attempts, config.timeout)
        answer = server.get("/info" if protocol == "judge" else "/health")
        if isinstance(answer, HttpFailure):
            hint = f"; set {KEY} to its key" if answer.status == 401 else ""
            kind = "`rewarddance serve`" if protocol == "judge" else f"a reward server with /{protocol}"
            raise ConfigError(f"judge {url}: no answer from {kind} there ({answer}){hint}")
        if protocol != "judge":
            return cls(
                server, config.model_copy(update={"pictures": "png"}), _info(url, answer, config, protocol), protocol
            )
        try:
            return cls(server, config, JudgeInfo.model_validate(answer))
        except ValidationError:
            raise ConfigError(f"judge {url}: not a server of `rewarddance serve` of this version") from None

    @property
    def criterion(self) -> str:
        return self.info.criterion

    @property
    def precision(self) -> Computed | Literal["unknown"]:
        """Precision of the server's passes."""
        return self.info.precision

    @property
    def parts_are_judges(self) -> bool:
        """Whether the server's judge is a composite, whose parts are judges on one scale."""
        return self.info.criteria is None

    def own_or(self, criterion: str) -> str:
        """The criterion if the judge knows it, else its own."""
        return criterion if self.info.criteria is None or criterion in self.info.criteria else self.criterion

    def problem(self, comparison: Comparison) -> str | None:
        """Why the judge cannot be asked about any such comparison. Other reasons come with its answers."""
        return ALONE if comparison.reference is None and not self.info.pointwise else None

    @torch.no_grad()
    def judge(self, comparisons: Sequence[Comparison], *, on_refused: Literal["mark", "raise"] = "mark") -> Verdict:
        """Verdicts (N,) on the CPU, without gradients.

        Raises:
            JudgementError: with `on_refused="raise"`, if an item is refused.
        """
        answers = [self._ask(part) for part in self._batches(comparisons)]
        verdict = _verdict(answers) if answers else Verdict.all_refused({})
        return verdict.or_raise(comparisons) if on_refused == "raise" else verdict

    def _batches(self, comparisons: Sequence[Comparison]) -> Iterator[Sequence[Comparison]]:
        """Parts of at most `batch` comparisons, whose pictures fit into a request if no two of them are equal."""
        part: list[Comparison] = []
        size = 0
        for c in comparisons:
            bytes_more = self._size(c)
            if part and (len(part) >= self.config.batch or size + bytes_more > self.info.most_bytes):
                yield part
                part, size = [], 0
            part.append(c)
            size += bytes_more
        if part:
            yield part

    def _size(self, comparison: Comparison) -> int:
        """Upper bound of the bytes of a comparison's media in a request, as fp32 in base64 or as PNG."""
        media = [m for m in (comparison.candidate, comparison.reference, comparison.condition) if m is not None]
        small = self.config.pictures == "png"
        return sum(m.frames.numel() * (2 if small and m.num_frames == 1 else 6) for m in media)

    def _ask(self, comparisons: Sequence[Comparison]) -> AnswerData:
        if len(comparisons) == 1 and self._size(comparisons[0]) > self.info.most_bytes:
            return refused_answer(1, f"{self.server.url}: the media take more than {self.info.most_bytes:,} bytes")
        try:
            body, read = self._request(comparisons)
        except InputError as error:
            return refused_answer(len(comparisons), f"{self.server.url}: {error}")
        answer = self.server.post(f"/{self.protocol}", body)
        if isinstance(answer, HttpFailure):
            return refused_answer(len(comparisons), f"{self.server.url}: {answer}")
        try:
            content = read(answer)
        except InputError as error:
            return refused_answer(len(comparisons), f"{self.server.url}: {error}")
        except ValidationError:
            return refused_answer(len(comparisons), f"{self.server.url}: the answer cannot be read")
        silent = [i for i, m in enumerate(content.margins) if not _is_number(m) and i not in content.refused]
        reasons = dict.fromkeys(silent, f"{self.server.url}: the answer is not a number")
        return content.model_copy(update={"refused": {**content.refused, **reasons}})

    def _request(self, comparisons: Sequence[Comparison]) -> WireRequest:
        if self.protocol == "score":
            return score_request(comparisons, self.criterion, self.config.value)
        if self.protocol == "compute":
            return compute_request(comparisons)
        return judge_request(comparisons, self.config.pictures)

    def rank(self, prompt: Request, images: Sequence[Media], criterion: str | None = None) -> Ranking:
        """Order pictures of one prompt by round robin."""
        return rank(self, prompt, images, criterion)

    def explain(self, comparisons: Sequence[Comparison]) -> list[Any]:
        """Raises `JudgementError`: the server answers with margins only."""
        raise JudgementError(f"{self.server.url}: gives margins only; load the judge itself to ask for reasons")


def _is_number(margin: float | None) -> bool:
    return margin is not None and math.isfinite(margin)


def _protocol(path: str) -> tuple[str, Endpoint]:
    """The path of the server, and what it speaks."""
    protocols: tuple[Endpoint, ...] = ("judge", "score", "compute")
    for protocol in protocols:
        if path.endswith(f"/{protocol}"):
            return path.removesuffix(f"/{protocol}"), protocol
    return path, "judge"


def _check_settings(address: str, config: RemoteConfig, protocol: Endpoint) -> None:
    given = config.model_fields_set
    if protocol != "score" and given & {"reward", "value"}:
        raise ConfigError(f"{address}: reward and value are settings of an address that ends in /score")
    if protocol != "judge" and "pictures" in given and config.pictures != "png":
        raise ConfigError(f"{address}: /{protocol} takes encoded pictures only; leave pictures out")


def _info(url: str, health: Any, config: RemoteConfig, protocol: Endpoint) -> JudgeInfo:
    """Description of a reward server of another trainer.

    Args:
        health: its answer to `GET /health`; UniRL's lists its rewards. `/compute` names none.

    Raises:
        ConfigError: no such reward, or several and none was chosen.
    """
    listed = health.get("rewards") if isinstance(health, dict) else None
    rewards = tuple(map(str, listed)) if isinstance(listed, dict) and protocol == "score" else ()
    choose = f"choose one with 'http://.../score?reward=NAME' (there are: {', '.join(rewards) or 'none listed'})"
    if config.reward is not None and rewards and config.reward not in rewards:
        raise ConfigError(f"judge {url}: no reward {config.reward!r}; {choose}")
    if config.reward is None and len(rewards) > 1:
        raise ConfigError(f"judge {url}: several rewards; {choose}")
    reward = config.reward or (rewards[0] if rewards else "reward")
    return JudgeInfo(
        judge=f"{reward} of {url}",
        weights="unknown",
        criterion=reward,
        criteria=(reward,),
        precision="unknown",
        pointwise=True,
        most_bytes=MAX_BYTES,
    )


def _tensor(parts: Sequence[tuple[Numbers | None, int]]) -> Tensor | None:
    """Numbers of all answers, (N,), NaN where there is none; None if no answer has any.

    Args:
        parts: the numbers of every answer, and how many items it has.
    """
    if all(numbers is None for numbers, _ in parts):
        return None
    rows = [math.nan if v is None else v for numbers, num in parts for v in numbers or (None,) * num]
    return torch.tensor(rows)


def _verdict(answers: Sequence[AnswerData]) -> Verdict:
    sizes = [len(a.margins) for a in answers]
    margin, mass, gap, swapped = (
        _tensor([(getattr(a, name), num) for a, num in zip(answers, sizes, strict=True)])
        for name in ("margins", "answer_mass", "disagreement", "swapped_margins")
    )
    assert margin is not None
    assert mass is not None
    names = dict.fromkeys(name for a in answers for name in a.parts)
    parts = {n: _tensor([(a.parts.get(n), num) for a, num in zip(answers, sizes, strict=True)]) for n in names}
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    refused = {start + i: why for start, a in zip(starts, answers, strict=True) for i, why in a.refused.items()}
    known = {name: values for name, values in parts.items() if values is not None}
    return replace(Verdict.from_margin(margin, mass, gap), parts=known, swapped_margin=swapped).refuse(refused)
