"""A teacher behind any OpenAI-compatible server: vLLM, SGLang, or a hosted one."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.data.parquet import png_bytes
from rewarddance.jobs.rationales import Told
from rewarddance.reward.context import INSTRUCTIONS

_QUESTION = (
    "{instruction}\nPrompt: {prompt}\nThe first image is the reference, the second one the candidate. Is the candidate "
    "better than the reference? Answer with one word, yes or no, then say why in one sentence that calls the images "
    "the candidate and the reference."
)
_ANSWER = re.compile(r"^\W*(yes|no)\b[\s,.:;!*-]*(?:because\b)?\s*(.*)$", re.IGNORECASE | re.DOTALL)
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
FATAL = frozenset({401, 403, 404, 405})
"""Address or key are wrong; asking on would not help."""
ALL_REFUSED = 8
"""Questions that a server may turn away before it has answered any: after that the request itself is wrong."""
_ROLE = re.compile(r"\b(candidate|reference)\b", re.IGNORECASE)
_PLACE = re.compile(
    r"\b(first|second|left|right|1st|2nd)\s+(image|picture|one)\b|\b(image|picture)\s+[12ab]\b", re.IGNORECASE
)


@dataclass
class HttpTeacher:
    """Asks `POST {url}/chat/completions`.

    Args:
        url: with its version, for example http://localhost:8000/v1.
        key: sent as a bearer token where given.
        attempts: tries for one question; waits double from `wait` seconds on, or as the server says in Retry-After.
        max_side: larger pictures are sent smaller, pixels.
        instructions: words for criteria of one's own, beside `context.INSTRUCTIONS`.
    """

    url: str
    model: str
    key: str | None = None
    attempts: int = 6
    wait: float = 1.0
    timeout: float = 120.0
    max_tokens: int = 200
    max_side: int = 1024
    instructions: Mapping[str, str] = field(default_factory=dict)
    client: httpx2.Client = field(init=False)
    _answered: bool = field(default=False, init=False)
    _turned_away: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.client = httpx2.Client(base_url=self.url.rstrip("/"), headers=headers, timeout=self.timeout)

    @property
    def name(self) -> str:
        return f"{self.model} at {self.url}"

    def tell(self, prompt: str, candidate: Media, reference: Media, criterion: str) -> Told:
        """The server's verdict and reason; a question that it turns away (a content filter, say) is refused.

        Raises:
            InputError: the server refuses the request itself (address, key, model), or there are no words for the
                criterion; asking on would not help.
        """
        words = {**INSTRUCTIONS, **self.instructions}
        if criterion not in words:
            raise InputError(
                f"criterion {criterion!r}: no words to ask a teacher by; give --instructions {criterion!r} ..."
            )
        text = _QUESTION.format(instruction=words[criterion].capitalize(), prompt=prompt)
        content = [{"type": "text", "text": text}, _image(reference, self.max_side), _image(candidate, self.max_side)]
        body = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
        }
        answer = self._post(body)
        if isinstance(answer, str):
            return Told(None, answer, "refused")
        return Told(None, problem="failed") if answer is None else read_answer(answer)

    def _post(self, body: dict[str, Any]) -> dict[str, Any] | str | None:
        """The answer, the words in which this question was turned away, or None where every attempt failed."""
        for i in range(self.attempts):
            wait = self.wait * 2**i
            try:
                found = self.client.post("/chat/completions", json=body)
            except httpx2.TransportError:
                found = None
            if found is not None and found.status_code not in RETRIED:
                if found.is_error:
                    return self._away(found.status_code, found.text[:200])
                try:
                    answer: dict[str, Any] = found.json()
                except ValueError:
                    found = None  # a gateway's page; asked again
                else:
                    self._answered = True
                    return answer
            if found is not None and found.headers.get("retry-after", "").isdigit():
                wait = float(found.headers["retry-after"])
            if i + 1 < self.attempts:
                time.sleep(wait)
        return None

    def _away(self, status: int, text: str) -> str:
        self._turned_away += 1
        if status in FATAL or (not self._answered and self._turned_away >= ALL_REFUSED):
            raise InputError(f"{self.url}: {status} {text!r}")
        return f"{status} {text}"


def _image(media: Media, max_side: int) -> dict[str, Any]:
    if max(media.size) > max_side:
        small = media.to_pil()
        small.thumbnail((max_side, max_side))
        media = Media.from_pil(small)
    code = base64.b64encode(png_bytes(media)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{code}"}}


def read_answer(answer: dict[str, Any]) -> Told:
    """An answer of the chat API as a verdict with its reason; what cannot be read is said to be so."""
    usage = answer.get("usage") or {}
    tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    try:
        choice = answer["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        return Told(None, problem="unreadable", tokens=tokens)
    if message.get("refusal"):
        return Told(None, str(message["refusal"]), "refused", tokens)
    found = _ANSWER.match(message.get("content") or "")
    if found is None or not found[2].strip():
        return Told(None, str(message.get("content") or ""), "unreadable", tokens)
    reason = " ".join(found[2].split())
    if choice.get("finish_reason") == "length":  # half a sentence
        return Told(None, reason, "unreadable", tokens)
    if not _ROLE.search(reason) or _PLACE.search(reason):  # it would be false of the same pictures in the other order
        return Told(None, reason, "unreadable", tokens)
    return Told(found[1].lower() == "yes", reason, None, tokens)
