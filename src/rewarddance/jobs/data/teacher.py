"""A teacher behind any OpenAI-compatible server: vLLM, SGLang, or a hosted one. Needs the extra `teacher` (openai)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.core.http import FATAL, HttpFailure, JsonServer
from rewarddance.core.media import Media
from rewarddance.data.parquet import png_bytes
from rewarddance.jobs.data.rationales import TeacherAnswer
from rewarddance.reward.wording import load_wording

_QUESTION = (
    "{instruction}\nPrompt: {prompt}\nThe first image is the reference, the second one the candidate. Is the candidate "
    "better than the reference? Answer with one word, yes or no, then say why in one sentence that calls the images "
    "the candidate and the reference."
)
_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.IGNORECASE | re.DOTALL)
_ANSWER = re.compile(
    r"^\W*(yes|no)\b(?=\W*\Z|\s*[,.:;!*\n\u2013\u2014-]|\s+(?:because|since|as|the|candidate|reference|it)\b)"
    r"[\s,.:;!*\u2013\u2014-]*(?:because\b)?\s*(.*)$",
    re.IGNORECASE | re.DOTALL,
)
"""The verdict must be followed by punctuation or by its reason."""
_POLITE = re.compile(r"^\W*(?:no problem|of course|certainly|sure|okay|ok)\b[\s,.:;!\u2013\u2014-]*", re.IGNORECASE)
"""Polite phrases before the answer. The "no" of "No problem" is not a verdict."""
_STATED = re.compile(
    r"^\W*(?:the )?(candidate|reference)(?: image| picture)? is (?:clearly |much |far |slightly |the )?better\b",
    re.IGNORECASE,
)
"""A verdict in the words of the question instead of yes or no."""
_BETTER = re.compile(r"\b(candidate|reference) is (?:\w+ )?better\b", re.IGNORECASE)
_ROLE = re.compile(r"\b(candidate|reference)\b", re.IGNORECASE)
_PLACE = re.compile(
    r"\b(first|second|left|right|1st|2nd)\s+(image|picture|one)\b|\b(image|picture)\s+[12ab]\b", re.IGNORECASE
)
ALL_REFUSED = 8
"""Questions that a server may reject before it has answered any; after that the request itself must be wrong."""


@dataclass
class HttpTeacher:
    """Asks `POST {url}/chat/completions`. Failed requests are repeated with growing pauses, or as the server says.

    Args:
        url: with its version, for example http://localhost:8000/v1.
        key: sent as a bearer token if given.
        attempts: largest number of requests for one question.
        timeout: seconds of one request.
        max_side: pixels; larger pictures are scaled down to it.
        instructions: sentences for criteria of your own, beside those of the wording `rewarddance`.

    Raises:
        ConfigError: the openai package is not installed.
    """

    url: str
    model: str
    key: str | None = None
    attempts: int = 6
    timeout: float = 120.0
    max_tokens: int = 200
    max_side: int = 1024
    instructions: Mapping[str, str] = field(default_factory=dict)
    _answered: bool = field(default=False, init=False)
    _num_rejected: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._server = JsonServer(self.url, "data rationales --url", self.key, self.attempts, self.timeout)

    @property
    def name(self) -> str:
        return f"{self.model} at {self.url}"

    def tell(self, prompt: str, candidate: Media, reference: Media, criterion: str) -> TeacherAnswer:
        """The server's verdict and reason. A question that the server rejects (by a content filter, for example) is
        refused.

        Raises:
            InputError: the server rejects every request (address, key, model), or there are no words for the criterion.
        """
        words = {**load_wording("rewarddance").criteria, **self.instructions}
        if criterion not in words:
            raise InputError(
                f"criterion {criterion!r}: no words to ask a teacher by; give --instructions {criterion!r} ..."
            )
        sentence = words[criterion][:1].upper() + words[criterion][1:]
        text = _QUESTION.format(instruction=sentence, prompt=prompt)
        content = [{"type": "text", "text": text}, _image(reference, self.max_side), _image(candidate, self.max_side)]
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
        }
        create = self._server.client.chat.completions.with_raw_response.create
        answer = self._server.answer_of(lambda: create(**body).http_response.json())
        if isinstance(answer, HttpFailure):
            return self._rejected(answer) if answer.rejected else TeacherAnswer(None, problem="failed")
        self._answered = True
        return read_answer(answer)

    def _rejected(self, failure: HttpFailure) -> TeacherAnswer:
        self._num_rejected += 1
        if failure.status in FATAL or (not self._answered and self._num_rejected >= ALL_REFUSED):
            raise InputError(f"{self.url}: {failure.status} {failure.text!r}")
        return TeacherAnswer(None, str(failure), "refused")


def _image(media: Media, max_side: int) -> dict[str, Any]:
    if max(media.size) > max_side:
        small = media.to_pil()
        small.thumbnail((max_side, max_side))
        media = Media.from_pil(small)
    code = base64.b64encode(png_bytes(media)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{code}"}}


def read_answer(answer: Any) -> TeacherAnswer:
    """An answer of the chat API as a verdict with its reason. What cannot be read is `unreadable`, never guessed."""
    try:
        usage = answer.get("usage") or {}
        tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        choice = answer["choices"][0]
        message = choice.get("message") or {}
        refusal, text, cut = (
            message.get("refusal"),
            _text(message.get("content")),
            choice.get("finish_reason") == "length",
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return TeacherAnswer(None, problem="unreadable")
    if refusal:
        return TeacherAnswer(None, str(refusal), "refused", tokens)
    answer_text = _POLITE.sub("", _THINKING.sub("", text))
    match, stated = _ANSWER.match(answer_text), _STATED.match(answer_text)
    if match is not None and match[2].strip():
        better, reason = match[1].lower() == "yes", " ".join(match[2].split())
    elif stated is not None:
        better, reason = stated[1].lower() == "candidate", " ".join(answer_text.split())
    else:
        return TeacherAnswer(None, text, "unreadable", tokens)
    better_roles = {role.lower() for role in _BETTER.findall(reason)}
    contradicts = better_roles == {"reference"} if better else better_roles == {"candidate"}
    # a reason that speaks of positions would be false for the same pictures in the other order
    if cut or contradicts or not _ROLE.search(reason) or _PLACE.search(reason):
        return TeacherAnswer(None, reason, "unreadable", tokens)
    return TeacherAnswer(better, reason, None, tokens)


def _text(content: Any) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)
