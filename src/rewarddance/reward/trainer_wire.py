"""Reward calls of other trainers as JSON: `POST /score` of UniRL and `POST /compute` of Flow-Factory.

Both ask about samples alone. `/score` names the rewards of every sample, and gives a reason for each that failed.
`/compute` gives one list of numbers, and one `error` for all of them. Unknown keys are ignored, because other projects
define these formats.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.types import Comparison, Verdict
from rewarddance.data.schema import mp4_bytes, png_bytes
from rewarddance.reward.wire import AnswerData, WireRequest, bytes_of, refused_answer

VALUE = "margin"
"""Name of the number that our server gives for a reward: the judge's log-odds."""
IDENTITY = ("request_id", "sample_id", "group_id", "source_rank", "policy_version", "idempotency_key")
"""Keys of a request of `/score` that its answer repeats."""


class _Foreign(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Turn(_Foreign):
    """A text with a picture (an encoded file in base64) or a clip."""

    text: str | None = None
    image_b64: str | None = None
    video_b64: str | None = None
    video_path: str | None = None

    @property
    def shows(self) -> bool:
        return any(given is not None for given in (self.image_b64, self.video_b64, self.video_path))


class ScoreItem(_Foreign):
    """One sample: the last turn shows it, and an earlier turn may show the picture that it was made from.

    Attributes:
        required_rewards: names of rewards, as `GET /health` lists them.
    """

    history: tuple[Turn, ...]
    required_rewards: tuple[str, ...]
    request_id: Any = None
    sample_id: Any = None
    group_id: Any = None
    source_rank: Any = None
    policy_version: Any = None
    idempotency_key: Any = None


class ScoreBody(_Foreign):
    """Body of `POST /score`."""

    protocol_version: Literal["1"] = "1"
    requests: tuple[ScoreItem, ...]


class ScoreAnswer(_Foreign):
    """Answer of `POST /score`, one entry a request. A reward is either in `results` or, with a reason, in `errors`.

    Attributes:
        results: numbers by reward and name of the number. Ours have one number, `margin`.
        identities: the keys `IDENTITY` of every request, and the version (weights) of the judge.
    """

    protocol_version: Literal["1"] | None = None
    results: tuple[dict[str, Any], ...]
    errors: tuple[dict[str, Any] | None, ...] = ()
    identities: tuple[dict[str, Any], ...] = ()


class ComputeBody(_Foreign):
    """Body of `POST /compute`: N prompts, and N pictures (base64) or N clips (lists of frames in base64)."""

    prompt: tuple[str, ...]
    image: tuple[str, ...] | None = None
    video: tuple[tuple[str, ...], ...] | None = None
    condition_images: tuple[tuple[str, ...], ...] | None = None


class ComputeAnswer(_Foreign):
    """Answer of `POST /compute`. If items failed, their rewards are null, and `error` names the first one."""

    rewards: tuple[Any, ...]
    error: str | None = None


def answer_score(
    body: ScoreBody, rewards: Sequence[str], weights: str, judge: Callable[[Sequence[Comparison]], Verdict]
) -> ScoreAnswer:
    """Answer all rewards of all samples in one call to the judge.

    Args:
        rewards: criteria that requests may name.
        weights: the judge's version.
    """
    results: list[dict[str, Any]] = [{} for _ in body.requests]
    errors: list[dict[str, Any]] = [{} for _ in body.requests]
    comparisons: list[tuple[int, str, Comparison]] = []
    for i, item in enumerate(body.requests):
        try:
            sample = _sample_of(item)
        except InputError as error:
            errors[i] = dict.fromkeys(item.required_rewards, str(error))
            continue
        for reward in item.required_rewards:
            if reward in rewards:
                comparisons.append((i, reward, replace(sample, criterion=reward)))
            else:
                errors[i][reward] = f"no such reward here; there are: {', '.join(rewards)}"
    values = _values(judge, [comparison for _, _, comparison in comparisons])
    for (i, reward, _), value in zip(comparisons, values, strict=True):
        if isinstance(value, str):
            errors[i][reward] = value
        else:
            results[i][reward] = {VALUE: value}
    identities = tuple({k: getattr(r, k) for k in IDENTITY} | {"scorer_version": weights} for r in body.requests)
    return ScoreAnswer(protocol_version="1", results=tuple(results), errors=tuple(errors), identities=identities)


def answer_compute(body: ComputeBody, judge: Callable[[Sequence[Comparison]], Verdict]) -> ComputeAnswer:
    """Log-odds of every sample by the judge's own criterion.

    Raises:
        InputError: the lists differ in length.
    """
    shown: Sequence[str | tuple[str, ...]] = body.image or body.video or ()
    conditions = body.condition_images or ((),) * len(shown)
    if not len(body.prompt) == len(shown) == len(conditions) or (body.image and body.video):
        raise InputError("compute: needs as many prompts as pictures (image) or clips (video), and not both")
    values: list[float | str] = [""] * len(shown)
    comparisons: dict[int, Comparison] = {}
    for i, (prompt, files, given) in enumerate(zip(body.prompt, shown, conditions, strict=True)):
        try:
            comparisons[i] = _computed(prompt, files, given)
        except InputError as error:
            values[i] = str(error)
    for i, value in zip(comparisons, _values(judge, list(comparisons.values())), strict=True):
        values[i] = value
    failed = next((f"item {i}: {value}" for i, value in enumerate(values) if isinstance(value, str)), None)
    return ComputeAnswer(rewards=tuple(None if isinstance(v, str) else v for v in values), error=failed)


def _computed(prompt: str, files: str | Sequence[str], conditions: Sequence[str]) -> Comparison:
    """The question about a picture, or about a clip of several frames."""
    if len(conditions) > 1:
        raise InputError(f"{len(conditions)} condition pictures; a judge takes one")
    sample = _picture(files, "sample") if isinstance(files, str) else _frames(files, "sample")
    return Comparison(prompt, sample, condition=_picture(conditions[0], "condition") if conditions else None)


def _values(judge: Callable[[Sequence[Comparison]], Verdict], comparisons: Sequence[Comparison]) -> list[float | str]:
    """The margin of every comparison, or the reason why there is none."""
    if not comparisons:
        return []
    verdict = judge(comparisons)
    margins = verdict.margin.detach().float().cpu().tolist()
    return [verdict.refused[i] if i in verdict.refused else _finite(margin) for i, margin in enumerate(margins)]


def _finite(value: Any) -> float | str:
    """A finite number, or the reason why the value is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "the answer is not a number"
    return float(value)


def _sample_of(item: ScoreItem) -> Comparison:
    *before, last = item.history or (Turn(),)
    given = [turn for turn in before if turn.shows]
    if len(given) > 1:
        raise InputError(f"{len(given)} pictures before the sample; a judge takes one, which the sample was made from")
    prompt = next((turn.text for turn in reversed(item.history) if turn.text), "")
    return Comparison(prompt, _shown(last, "sample"), condition=_shown(given[0], "condition") if given else None)


def _shown(turn: Turn, name: str) -> Media:
    if turn.image_b64 is not None:
        return _picture(turn.image_b64, name)
    if turn.video_b64 is not None:
        return Media.open(io.BytesIO(bytes_of(turn.video_b64)), origin=name)
    if turn.video_path is not None:
        raise InputError(f"{name}: video_path names a file, and this server opens none; send video_b64")
    raise InputError(f"{name}: no image_b64 and no video_b64")


def _picture(text: str, name: str) -> Media:
    return Media.open_picture(io.BytesIO(bytes_of(text)), origin=name)


def _frames(texts: Sequence[str], name: str) -> Media:
    frames = [_picture(text, f"frame {i} of {name}").frames for i, text in enumerate(texts)]
    if len({f.shape for f in frames}) != 1:
        raise InputError(f"{name}: a clip needs frames of one size")
    return Media(torch.cat(frames), origin=name)


@dataclass
class Sheet:
    """The distinct samples of some comparisons. Equal samples of a prompt are asked about once.

    A comparison with a reference is answered by the difference of two values.
    """

    samples: list[Comparison] = field(default_factory=list)
    pairs: list[tuple[int, int | None]] = field(default_factory=list)
    """Places of candidate and reference of every comparison among the samples."""

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> Sheet:
        sheet, places = cls(), dict[tuple[str, str, str | None], int]()
        for c in comparisons:
            pair: list[int | None] = []
            for media in (c.candidate, c.reference):
                if media is None:
                    pair.append(None)
                    continue
                key = (c.prompt, media.key, None if c.condition is None else c.condition.key)
                if key not in places:
                    places[key] = len(sheet.samples)
                    sheet.samples.append(Comparison(c.prompt, media, condition=c.condition))
                pair.append(places[key])
            assert pair[0] is not None
            sheet.pairs.append((pair[0], pair[1]))
        return sheet

    def answer(self, values: Sequence[float | str]) -> AnswerData:
        """Margins of the comparisons from the values of the samples. A text is the reason why there is no value."""
        margins: list[float | None] = []
        refused: dict[int, str] = {}
        for i, places in enumerate(self.pairs):
            pair = [0.0 if place is None else values[place] for place in places]
            reasons = [v for v in pair if isinstance(v, str)]
            if reasons:
                refused[i] = reasons[0]
                margins.append(None)
            else:
                margins.append(float(pair[0]) - float(pair[1]))
        mass = tuple(None if m is None else 1.0 for m in margins)
        return AnswerData(margins=tuple(margins), answer_mass=mass, refused=refused)


def score_request(comparisons: Sequence[Comparison], reward: str, value: str | None) -> WireRequest:
    """Ask `POST /score` for one reward.

    Args:
        value: name of the number among those of the reward; None if there is only one.
    """
    sheet = Sheet.of(comparisons)
    turns = [_history(sample) for sample in sheet.samples]
    sent = [turn for turn in turns if not isinstance(turn, str)]

    def read(content: Any) -> AnswerData:
        answer = ScoreAnswer.model_validate(content)
        if len(answer.results) != len(sent) or len(answer.errors) not in (0, len(sent)):
            raise InputError(f"the answer has not {len(sent)} items")
        errors = answer.errors or ({},) * len(sent)
        numbers = iter([_number(r, e or {}, reward, value) for r, e in zip(answer.results, errors, strict=True)])
        return sheet.answer([turn if isinstance(turn, str) else next(numbers) for turn in turns])

    requests = [{"history": history, "required_rewards": [reward]} for history in sent]
    return {"protocol_version": "1", "requests": requests}, read


def _history(sample: Comparison) -> list[dict[str, str]] | str:
    """The turns of a sample, or why it cannot be sent."""
    shown = [m for m in (sample.condition, sample.candidate) if m is not None]
    try:
        return [{"text": sample.prompt, **_file(media)} for media in shown]
    except InputError as error:
        return str(error)


def _file(media: Media) -> dict[str, str]:
    if media.is_clip:
        return {"video_b64": base64.b64encode(mp4_bytes(media)).decode()}
    return {"image_b64": base64.b64encode(png_bytes(media)).decode()}


def _number(result: Mapping[str, Any], errors: Mapping[str, Any], reward: str, value: str | None) -> float | str:
    """The number of a reward, or the reason why there is none. A reward with an error has none."""
    if errors.get(reward):
        return str(errors[reward])
    numbers = result.get(reward)
    if not isinstance(numbers, Mapping) or not numbers:
        return f"no {reward} in the answer"
    if value is None and len(numbers) > 1:
        return f"{reward} has several values ({', '.join(map(str, numbers))}); choose one with &value=NAME"
    name = next(iter(numbers)) if value is None else value
    if name not in numbers:
        return f"{reward} has no value {name}, only: {', '.join(map(str, numbers))}"
    return _finite(numbers[name])


def compute_request(comparisons: Sequence[Comparison]) -> WireRequest:
    """Ask `POST /compute`. One request holds only pictures or only clips, and all or none have a condition picture.

    Raises:
        InputError: pictures beside clips, or only some samples have a condition picture.
    """
    sheet = Sheet.of(comparisons)
    clips = {s.candidate.is_clip for s in sheet.samples}
    given = {s.condition is not None for s in sheet.samples}
    if len(clips) > 1 or len(given) > 1:
        raise InputError("/compute takes only pictures or only clips, all with a condition picture or all without one")
    body: dict[str, Any] = {"prompt": [s.prompt for s in sheet.samples]}
    stills = [[base64.b64encode(png_bytes(Media(f[None]))).decode() for f in s.candidate.frames] for s in sheet.samples]
    body |= {"video": stills} if clips == {True} else {"image": [frames[0] for frames in stills]}
    if given == {True}:
        conditions = [s.condition for s in sheet.samples if s.condition is not None]
        body["condition_images"] = [[base64.b64encode(png_bytes(media)).decode()] for media in conditions]

    def read(content: Any) -> AnswerData:
        answer = ComputeAnswer.model_validate(content)
        if answer.error:
            return refused_answer(len(sheet.pairs), answer.error)
        if len(answer.rewards) != len(sheet.samples):
            raise InputError(f"the answer has not {len(sheet.samples)} items")
        return sheet.answer([_finite(value) for value in answer.rewards])

    return body, read
