"""From dialogs to token ids: the chat template, and the places of pictures. Independent of models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Dialog, Media, Part, Reply

Message = tuple[str, Sequence[Part]]
"""(role, parts)"""
Frame = tuple[Media, int]
"""(media, frame index)"""
CACHE_SIZE = 4096
"""Texts whose token ids are cached. Questions about many pictures often have the same text."""
_SENTINEL = "\x02content\x02"


@dataclass(frozen=True)
class Encoded:
    """One sequence.

    Attributes:
        ids: token ids; every picture is a run of context tokens.
        units: the same with one context token for every picture.
        images: pictures in the order of their runs, (media, frame index).
        answers: True where the token belongs to an assistant's answer, its end token included.
        counts: context tokens of every picture.
    """

    ids: tuple[int, ...]
    units: tuple[int, ...]
    images: tuple[Frame, ...]
    answers: tuple[bool, ...]
    counts: tuple[int, ...] = ()


def messages_of(dialog: Dialog) -> list[Message]:
    """A dialog as chat messages: every `Reply` ends a user's message and is the assistant's."""
    messages: list[Message] = []
    parts: list[Part] = []
    for part in dialog:
        if isinstance(part, Reply):
            messages += [("user", parts), ("assistant", [part.text])]
            parts = []
        else:
            parts.append(part)
    return [*messages, ("user", parts)]


class ChatEncoder:
    """Encodes with the tokenizer's own chat template. A video is a list of numbered pictures, as InternVL has it.

    Args:
        image_tokens: context tokens of a picture, or a function that computes them.
        marks: tokens before a picture, for each of its tokens, and after it; the tokenizer's own when None.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_tokens: int | Callable[[Media], int],
        marks: tuple[str, str, str] | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError("the tokenizer has no chat template; put a chat_template.jinja beside tokenizer.json")
        self.tokenizer, self._image_tokens = tokenizer, image_tokens
        own = ("start_image_token", "context_image_token", "end_image_token")
        self.start, self.context, self.end = marks or tuple(str(getattr(tokenizer, name)) for name in own)
        self._picture = f"{self.start}{self.context}{self.end}"
        self.context_id: int = tokenizer.convert_tokens_to_ids(self.context)
        added = (t.content for t in tokenizer.added_tokens_decoder.values())
        self.special = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
        """Texts that the tokenizer reads as one special token, the longest first."""
        self._special = re.compile("|".join(map(re.escape, self.special)))
        self._templates: dict[tuple[tuple[str, ...], bool], list[str]] = {}
        self._cache: dict[tuple[Any, ...], tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]] = {}

    def around(self, roles: tuple[str, ...], generate: bool) -> list[str]:
        """The template's text around each message's content: len(roles) + 1 pieces."""
        key = (roles, generate)
        if key not in self._templates:
            messages = [{"role": r, "content": _SENTINEL} for r in roles]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
            pieces = text.split(_SENTINEL)
            if len(pieces) != len(roles) + 1:
                raise ConfigError("the chat template does not show every message's content exactly once")
            self._templates[key] = pieces
        return self._templates[key]

    def _text(self, part: Part, images: list[Frame]) -> str:
        if isinstance(part, str):
            return self.plain(part)
        assert isinstance(part, Media)
        num = part.num_frames
        if part.fps is None and num == 1:
            images.append((part, 0))
            return self._picture
        images.extend((part, i) for i in range(num))
        return "".join(f"Frame{i + 1}: {self._picture}\n" for i in range(num))

    def plain(self, text: str) -> str:
        """The text without anything that the tokenizer reads as a special token, so that nobody can add turns or
        pictures through a prompt."""
        while True:
            clean = self._special.sub("", text)
            if clean == text:
                return text
            text = clean

    def chat(self, messages: Sequence[Message], *, generate: bool = True) -> Encoded:
        """Encode messages; with `generate`, up to where the assistant's answer begins."""
        images: list[Frame] = []
        around = self.around(tuple(role for role, _ in messages), generate)
        text, spans = around[0], []
        for i, (role, parts) in enumerate(messages):
            content = "".join(self._text(p, images) for p in parts)
            stop = len(text) + len(content)
            if role == "assistant":
                spans.append((len(text), stop + 1))  # the end-of-turn token belongs to the answer
            text += content + around[i + 1]
        counts = tuple(self.count(media) for media, _ in images)
        key = (text, tuple(spans), counts)
        if key not in self._cache:
            if len(self._cache) >= CACHE_SIZE:
                self._cache.clear()
            tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=bool(spans))
            self._cache[key] = self._expand(tokens, spans, counts)
        ids, units, answers = self._cache[key]
        return Encoded(ids, units, tuple(images), answers, counts)

    def count(self, media: Media) -> int:
        """Context tokens of one frame."""
        return self._image_tokens if isinstance(self._image_tokens, int) else self._image_tokens(media)

    def _expand(
        self, tokens: Any, spans: list[tuple[int, int]], counts: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
        """Repeat the context token of every picture; mark answer tokens. Returns ids, units and answers."""
        ids: list[int] = []
        answers: list[bool] = []
        offsets = tokens["offset_mapping"] if spans else [(0, 0)] * len(tokens["input_ids"])
        remaining = iter(counts)
        for token, (low, high) in zip(tokens["input_ids"], offsets, strict=True):
            times = next(remaining) if token == self.context_id else 1
            ids += [token] * times
            answers += [any(a <= low and low < b and high > low for a, b in spans)] * times
        return tuple(ids), tuple(tokens["input_ids"]), tuple(answers)
