"""Comparisons and verdicts as JSON, for judges behind HTTP (`rewarddance serve`)."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rewarddance.core.config import Computed, Config
from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.types import Comparison, Verdict
from rewarddance.data.parquet import png_bytes

Coding = Literal["safetensors", "png"]
MAX_BYTES = 64 << 20
"""Largest body of a request that our server takes. Other servers without a limit of their own get no larger body."""
Numbers = tuple[float | None, ...]
"""One number an item; null if the item was refused."""
WireRequest = tuple[dict[str, Any], Callable[[Any], "AnswerData"]]
"""Body of a request, and what reads its answer (raises `InputError` or pydantic's `ValidationError`)."""


class PictureData(Config):
    """One picture or clip.

    Attributes:
        png: a PNG file in base64; or
        tensor: the name of its tensor among the question's `safetensors`, float (F, 3, H, W) in [0, 1].
        fps: frames per second of a clip.
    """

    png: str | None = None
    tensor: str | None = None
    fps: float | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> PictureData:
        if (self.png is None) == (self.tensor is None):
            raise ValueError("a picture has either png or tensor")
        return self


class ComparisonData(Config):
    """A comparison; pictures are places in the list of pictures."""

    prompt: str
    candidate: int = Field(ge=0)
    reference: int | None = Field(None, ge=0)
    criterion: str | None = None
    condition: int | None = Field(None, ge=0)


class QuestionData(Config):
    """Body of `POST /judge`.

    Attributes:
        safetensors: a safetensors file in base64, where pictures are tensors.
    """

    pictures: tuple[PictureData, ...]
    comparisons: tuple[ComparisonData, ...]
    safetensors: str | None = None


class AnswerData(Config):
    """Answer of `POST /judge`: the fields of `core.types.Verdict`. Items under `refused` have null everywhere."""

    margins: Numbers
    answer_mass: Numbers
    disagreement: Numbers | None = None
    swapped_margins: Numbers | None = None
    parts: dict[str, Numbers] = {}
    refused: dict[int, str] = {}


class JudgeInfo(Config):
    """Answer of `GET /info`.

    Attributes:
        judge: its name on the server; weights: SHA-256 of its weights.
        criteria: criteria that it knows; None for a composite, which judges by its parts.
        pointwise: whether it can judge a picture alone.
        most_bytes: largest body of a request.
        precision: of the server's passes; unknown for reward servers of others.
    """

    format: Literal[1] = 1
    judge: str
    weights: str
    criterion: str
    criteria: tuple[str, ...] | None
    precision: Computed | Literal["unknown"]
    pointwise: bool
    most_bytes: int


def refused_answer(num: int, reason: str) -> AnswerData:
    """The answer to `num` comparisons that all failed for one reason."""
    nulls: Numbers = (None,) * num
    return AnswerData(margins=nulls, answer_mass=nulls, refused=dict.fromkeys(range(num), reason))


def encoded(comparisons: Sequence[Comparison], coding: Coding) -> QuestionData:
    """The body of a request. Equal pictures are sent once.

    Args:
        coding: `safetensors` sends fp32 pixels as they are; `png` rounds pictures (not clips) to 8 bits.
    """
    places: dict[str, int] = {}
    pictures: list[PictureData] = []
    tensors: dict[str, Tensor] = {}

    def place(media: Media | None) -> int | None:
        if media is None:
            return None
        media = Media(media.frames.detach(), media.fps, media.origin)
        if media.key not in places:
            name = str(len(pictures))
            places[media.key] = len(pictures)
            if coding == "png" and media.num_frames == 1:
                pictures.append(PictureData(png=base64.b64encode(png_bytes(media)).decode()))
            else:
                tensors[name] = media.frames.float().cpu().contiguous()
                pictures.append(PictureData(tensor=name, fps=media.fps))
        return places[media.key]

    encoded_comparisons = tuple(
        ComparisonData(
            prompt=c.prompt,
            candidate=place(c.candidate) or 0,
            reference=place(c.reference),
            criterion=c.criterion,
            condition=place(c.condition),
        )
        for c in comparisons
    )
    packed = base64.b64encode(save(tensors)).decode() if tensors else None
    return QuestionData(pictures=tuple(pictures), comparisons=encoded_comparisons, safetensors=packed)


def decoded(question: QuestionData) -> list[Comparison]:
    """The comparisons of a request.

    Raises:
        InputError: a picture that cannot be read, or a place without a picture.
    """
    tensors: dict[str, Tensor] = {}
    if question.safetensors is not None:
        try:
            tensors = load(bytes_of(question.safetensors))
        except SafetensorError as error:
            raise InputError(f"safetensors: cannot be read ({error})") from None
    media = [_media(f"picture {i}", picture, tensors) for i, picture in enumerate(question.pictures)]

    def at(place: int | None) -> Media | None:
        if place is not None and place >= len(media):
            raise InputError(f"picture {place}: there are only {len(media)}")
        return None if place is None else media[place]

    out = []
    for c in question.comparisons:
        candidate = at(c.candidate)
        assert candidate is not None
        out.append(Comparison(c.prompt, candidate, at(c.reference), c.criterion, condition=at(c.condition)))
    return out


def bytes_of(text: str) -> bytes:
    """A file from base64.

    Raises:
        InputError: the text is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("a file is not base64") from None


def _media(name: str, picture: PictureData, tensors: dict[str, Tensor]) -> Media:
    if picture.png is not None:
        return Media.open_picture(io.BytesIO(bytes_of(picture.png)), origin=name)
    if picture.tensor not in tensors:
        raise InputError(f"{name}: there is no tensor {picture.tensor}")
    frames = tensors[picture.tensor]
    if not frames.is_floating_point():
        raise InputError(f"{name}: needs float pixels in [0, 1], got {frames.dtype}")
    return Media(frames.float(), picture.fps, name)


def judge_request(comparisons: Sequence[Comparison], coding: Coding) -> WireRequest:
    """Ask `POST /judge`."""

    def read(content: Any) -> AnswerData:
        answer = AnswerData.model_validate(content)
        lists = [answer.margins, answer.answer_mass, answer.disagreement, answer.swapped_margins]
        if {len(x) for x in (*lists, *answer.parts.values()) if x is not None} != {len(comparisons)}:
            raise InputError(f"the answer has not {len(comparisons)} items")
        return answer

    return encoded(comparisons, coding).model_dump(mode="json"), read


def _numbers(values: Tensor) -> Numbers:
    return tuple(v if math.isfinite(v) else None for v in values.detach().float().cpu().tolist())


def answer_of(verdict: Verdict) -> AnswerData:
    """A verdict as the answer to a request."""
    gap, swapped = verdict.disagreement, verdict.swapped_margin
    return AnswerData(
        margins=_numbers(verdict.margin),
        answer_mass=_numbers(verdict.answer_mass),
        disagreement=None if gap is None else _numbers(gap),
        swapped_margins=None if swapped is None else _numbers(swapped),
        parts={name: _numbers(values) for name, values in verdict.parts.items()},
        refused=dict(verdict.refused),
    )
