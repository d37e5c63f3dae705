"""From dialogs to token ids: the chat template, and the places of pictures. Independent of models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewarddance.core.clip_frames import ClipFrames, SampledFrames
from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Dialog, DialogPart, Media, Reply
from rewarddance.vlm.clip_forms import ClipForm, Frames, NumberedFrames, images_of

Message = tuple[str, Sequence[DialogPart]]
"""(role, parts)"""
Frame = tuple[Media, Frames]
"""(media, frame indices): what the vision tower turns into one run of tokens. A picture is (picture, (0,))."""
CACHE_SIZE = 4096
"""Texts whose token ids are cached. Questions about many pictures often have the same text."""
NO_RATE = "a clip of {} frames without frames per second; give `fps`, a judge must know how fast it moves"
_SENTINEL = "\x02content\x02"


@dataclass(frozen=True)
class Encoded:
    """One sequence.

    Attributes:
        ids: token ids; every picture, and every image of a clip, is a run of context tokens.
        units: the same with one context token for each of them.
        images: pictures and images of clips in the order of their runs.
        answers: True where the token belongs to an assistant's answer, its end token included.
        counts: context tokens of every image.
        shifts: rotary positions in time between every image and the first one of its clip; 0 for a picture.
    """

    ids: tuple[int, ...]
    units: tuple[int, ...]
    images: tuple[Frame, ...]
    answers: tuple[bool, ...]
    counts: tuple[int, ...] = ()
    shifts: tuple[int, ...] = ()


def messages_of(dialog: Dialog) -> list[Message]:
    """A dialog as chat messages: every `Reply` ends a user's message and is the assistant's."""
    messages: list[Message] = []
    parts: list[DialogPart] = []
    for part in dialog:
        if isinstance(part, Reply):
            messages += [("user", parts), ("assistant", [part.text])]
            parts = []
        else:
            parts.append(part)
    return [*messages, ("user", parts)]


class ChatEncoder:
    """Encodes with the tokenizer's own chat template.

    Args:
        image_tokens: context tokens of a picture or of one image of a clip, or a function that computes them.
        marks: tokens before a picture, for each of its tokens, and after it; the tokenizer's own when None.
        form: how a clip is shown.

    Attributes:
        clips: which frames of a clip are shown.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_tokens: int | Callable[[Media], int],
        marks: tuple[str, str, str] | None = None,
        form: ClipForm | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError("the tokenizer has no chat template; put a chat_template.jinja beside tokenizer.json")
        self.tokenizer, self._image_tokens = tokenizer, image_tokens
        names = ("start_image_token", "context_image_token", "end_image_token")
        self.start, self.context, self.end = marks or tuple(str(getattr(tokenizer, name)) for name in names)
        self._picture = f"{self.start}{self.context}{self.end}"
        self.context_id: int = tokenizer.convert_tokens_to_ids(self.context)
        added = (t.content for t in tokenizer.added_tokens_decoder.values())
        self.special = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
        """Texts that the tokenizer reads as one special token, the longest first."""
        self.clips = ClipFrames()
        self.form = form or NumberedFrames()
        known = self.form.context is None or self.form.context in self.special
        self.clip_context = (self.form.context or self.context) if known else None
        """None if the tokenizer has no context token for clips; the model then takes no clips."""
        self.clip_context_id: int = tokenizer.convert_tokens_to_ids(self.clip_context or self.context)
        self.context_ids = frozenset((self.context_id, self.clip_context_id))
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

    def _text(self, part: DialogPart, images: list[Frame], shifts: list[int]) -> str:
        if isinstance(part, str):
            return self.plain(part)
        assert isinstance(part, Media)
        images.extend((part, frames) for frames in self.images_of(part))
        if not part.is_clip:
            shifts.append(0)
            return self._picture
        sampled = self.sampled(part)
        shifts.extend(self.form.shifts(sampled))
        if self.clip_context is None:
            raise ConfigError(f"the tokenizer has no token {self.form.context}; this model takes no clips")
        return self.form.text(sampled, self.start, self.clip_context, self.end)

    def sampled(self, clip: Media) -> SampledFrames:
        """The frames of a clip that are shown.

        Raises:
            InputError: the clip has no frames per second.
        """
        if clip.fps is None:
            raise InputError(f"{clip.origin or 'clip'}: {NO_RATE.format(clip.num_frames)}")
        return self.clips.of(clip.num_frames, clip.fps)

    def images_of(self, media: Media) -> list[Frames]:
        """Frame indices of every image of a picture or clip."""
        return images_of(self.sampled(media), self.form.temporal) if media.is_clip else [(0,)]

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
        shifts: list[int] = []
        around = self.around(tuple(role for role, _ in messages), generate)
        text, spans = around[0], []
        for i, (role, parts) in enumerate(messages):
            content = "".join(self._text(p, images, shifts) for p in parts)
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
        return Encoded(ids, units, tuple(images), answers, counts, tuple(shifts))

    def count(self, media: Media) -> int:
        """Context tokens of a picture, or of one image of a clip."""
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
            times = next(remaining) if token in self.context_ids else 1
            ids += [token] * times
            answers += [any(a <= low and low < b and high > low for a, b in spans)] * times
        return tuple(ids), tuple(tokens["input_ids"]), tuple(answers)
