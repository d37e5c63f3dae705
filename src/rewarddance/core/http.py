"""JSON requests to servers of models, by the `openai` client: repeated with growing pauses, or as the server says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rewarddance.core.errors import ConfigError

FATAL = frozenset({401, 403, 404, 405})
"""Status codes of a wrong address or key; asking again would not help."""


@dataclass(frozen=True)
class HttpFailure:
    """A request without an answer, after all its attempts.

    Attributes:
        status: of the server's last answer; None where there was no connection, or no JSON.
        text: beginning of the server's answer, or the kind of error.
    """

    status: int | None
    text: str

    @property
    def rejected(self) -> bool:
        """Whether the server refuses this request, so that it was not repeated."""
        return self.status is not None and self.status < 500 and self.status not in (408, 409, 429)

    def __str__(self) -> str:
        return self.text if self.status is None else f"{self.status} {self.text}"


@dataclass
class JsonServer:
    """One server. Requests are repeated after failed connections, timeouts, and status 408, 409, 429 and 500 upwards.

    Args:
        url: beginning of all addresses.
        needed_by: what needs the client, for the message where it is not installed.
        key: sent as a bearer token where given.
        attempts: requests for one question at most.
        timeout: of one request, seconds.

    Raises:
        ConfigError: the openai package is not installed.
    """

    url: str
    needed_by: str
    key: str | None = None
    attempts: int = 6
    timeout: float = 120.0
    client: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise ConfigError(f"{self.needed_by} needs the openai client: pip install 'rewarddance[teacher]'") from None
        self._openai = openai
        self.client = openai.OpenAI(
            base_url=self.url, api_key=self.key or "none", timeout=self.timeout, max_retries=self.attempts - 1
        )

    def get(self, path: str) -> Any | HttpFailure:
        """The JSON that the server has at `path`."""
        return self.answer_of(lambda: self.client.get(path, cast_to=object))

    def post(self, path: str, body: object) -> Any | HttpFailure:
        """The server's JSON answer to a JSON body."""
        return self.answer_of(lambda: self.client.post(path, cast_to=object, body=body))

    def answer_of(self, call: Callable[[], Any]) -> Any | HttpFailure:
        """What a call of `client` returns, or why it returned nothing."""
        try:
            return call()
        except self._openai.APIStatusError as error:
            return HttpFailure(error.status_code, error.response.text[:200])
        except self._openai.OpenAIError as error:
            return HttpFailure(None, f"{error} ({type(error).__name__})")
        except ValueError:
            return HttpFailure(None, "the answer is not JSON")
