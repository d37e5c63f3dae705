"""Readers of the files of tools: TRL, Label Studio, Argilla, FastChat. One function a format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.data.clips import side_vote
from rewarddance.data.drafts import (
    VIDEO_ENDINGS,
    Draft,
    Skipped,
    groups_of,
    list_of,
    medium,
    number,
    optional,
    text,
)
from rewarddance.data.votes import MediaRef, Vote, VotedRecord, choice, iso_time

SIDES = (
    ("image_a", "image_b"),
    ("image_1", "image_2"),
    ("image1", "image2"),
    ("image_0", "image_1"),
    ("left_image", "right_image"),
    ("video_a", "video_b"),
    ("left", "right"),
    ("a", "b"),
)
"""Names that tasks commonly give to the two sides."""
_GENERAL = {
    *("pw", "pairwise", "pair", "preference", "choice", "label", "better", "comparison", "ranking", "overall"),
    *("tie", "ties", "same", "equal", "draw"),
}
"""Names of questions that name no criterion; the criterion is then `overall`."""
_TIES = {"tie": False, "same": False, "equal": False, "bothgood": False, "bothbad": True, "neither": True}
"""Words for a tie, and whether both are bad."""


def trl(row: Mapping[str, Any], place: int) -> Draft:
    """TRL's preference format: `prompt`, `chosen` and `rejected` as conversations with {"type": "image"} parts, whose
    pictures are listed in `images` in this order.

    The prompt's pictures are conditions. `chosen` and `rejected` hold one picture each; preferences between texts are
    skipped.
    """
    counts = [_images_in(row.get(key)) for key in ("prompt", "chosen", "rejected")]
    if counts[1:] != [1, 1]:
        raise Skipped("chosen and rejected are not one picture each")
    images = list_of(row, "images", sum(counts))
    if len(images) != sum(counts):
        raise InputError(f"{len(images)} images and {sum(counts)} image parts")
    conditions = [medium(i, "images", "image", role="condition") for i in images[: counts[0]]]
    media = [medium(i, "images") for i in images[counts[0] :]]
    prompt = _said(row.get("prompt"))
    if not prompt:
        raise InputError("the prompt holds no text")
    name = optional(row, "id") or f"row-{place}"
    return Draft(VotedRecord(name, prompt, (*media, *conditions), (choice(1.0),)), winner_first=True)


def _content(conversation: Any) -> list[Any]:
    """The parts of all messages of a conversation; a bare text is one part."""
    parts: list[Any] = []
    for message in conversation if isinstance(conversation, list) else [{"content": conversation}]:
        content = message.get("content") if isinstance(message, dict) else None
        parts += content if isinstance(content, list) else [{"type": "text", "text": content}]
    return [p for p in parts if isinstance(p, dict)]


def _images_in(conversation: Any) -> int:
    return sum(p.get("type") == "image" for p in _content(conversation))


def _said(conversation: Any) -> str:
    texts = [p.get("text") for p in _content(conversation) if p.get("type", "text") == "text"]
    return "\n".join(t for t in texts if isinstance(t, str)).strip()


def _sides(fields: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the two fields that hold the candidates.

    Raises:
        InputError: there are no two such fields.
    """
    for pair in SIDES:
        if all(fields.get(name) for name in pair):
            return pair
    endings = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", *VIDEO_ENDINGS)
    texts = {k: v.lower() for k, v in fields.items() if isinstance(v, str) and k != "condition"}
    files = [k for k, v in texts.items() if v.split("?")[0].endswith(endings)]
    if len(files) != 2:
        raise InputError(f"cannot tell the two candidates among the fields {', '.join(map(repr, fields))}")
    return files[0], files[1]


def _stored(value: Any) -> Any:
    """A path that Label Studio serves, relative to the media root: PATH of `/data/local-files/?d=PATH`; other paths
    lose their first slash.
    """
    if not isinstance(value, str):
        return value
    return value.split("?d=", 1)[1] if value.startswith("/data/local-files/") else value.lstrip("/")


def label_studio(row: Mapping[str, Any], place: int) -> Draft:
    """Label Studio's JSON export: a task with `annotations[].result[]` of types pairwise, choices (ties) and rating.

    The control's name is the criterion unless it is a general word; `_tie` at the end of the name of choices is no part
    of it. The left candidate was shown left. Cancelled annotations are left out. `condition` is the picture that both
    candidates were made from.
    """
    data = row.get("data")
    if not isinstance(data, dict):
        raise InputError("no object 'data': not a task of Label Studio")
    names = _sides(data)
    media = [medium(_stored(data[n]), n, model=optional(data, f"model_{n[-1]}")) for n in names]
    if data.get("condition"):
        media.append(medium(_stored(data["condition"]), "condition", "image", role="condition"))
    votes: list[Vote] = []
    for annotation in row.get("annotations") or ():
        if not annotation.get("was_cancelled"):
            votes += _annotated(annotation, names)
    if not votes:
        raise Skipped("no annotation")
    name = optional(data, "id") or optional(row, "id") or f"row-{place}"
    groups = groups_of(data, "generator", "category", "style")
    return Draft(VotedRecord(name, text(data, "prompt", "text", "caption"), tuple(media), tuple(votes), groups=groups))


def _annotated(annotation: Mapping[str, Any], names: Sequence[str]) -> list[Vote]:
    """Votes of one annotation: one for each criterion, and one for each rated candidate.

    Raises:
        InputError: a side and a tie are selected for one criterion, or what is selected is unknown.
    """
    who = annotation.get("completed_by")
    facts: dict[str, Any] = {
        "annotator": optional(who, "email", "id") if isinstance(who, dict) else None if who is None else str(who),
        "created": iso_time(annotation.get("created_at")),
        "seconds": annotation.get("lead_time"),
        "shown": (0, 1),
    }
    sides: dict[str, float] = {}
    ties: dict[str, bool] = {}
    rated: list[Vote] = []
    for result in annotation.get("result") or ():
        value, kind = result.get("value") or {}, result.get("type")
        if kind == "pairwise" or "selected" in value:
            if value.get("selected") not in ("left", "right"):
                raise InputError(f"selected {value.get('selected')!r}: needs left or right")
            sides[_criterion(result.get("from_name"))] = float(value["selected"] == "left")
        elif kind == "choices":
            name = _criterion(str(result.get("from_name") or "").removesuffix("_tie"))
            for bad in map(_tie, value.get("choices", ())):
                if bad is not None:
                    ties.setdefault(name, bad)
        elif kind == "rating":
            index = _index(result.get("to_name"), names)
            given = number(value.get("rating"), "rating")
            name = _criterion(str(result.get("from_name") or "").removesuffix(f"_{result.get('to_name')}"))
            rated.append(Vote("rating", (index,), (given,), name, scale=(1, 5), **facts))
    if len(sides) == 1 and "overall" in ties and "overall" not in sides:
        ties[next(iter(sides))] = ties.pop("overall")  # a tie without a criterion belongs to the only one that is asked
    if both := sides.keys() & ties.keys():
        raise InputError(f"an annotation selects a side and a tie for {min(both)}")
    made = [choice(label, criterion=c, **facts) for c, label in sides.items()]
    made += [choice(0.5, criterion=c, both_bad=bad, **facts) for c, bad in ties.items()]
    return made + rated


def _criterion(name: Any) -> str:
    word = str(name or "overall").strip()
    return "overall" if word.lower() in _GENERAL else word


def _tie(word: Any) -> bool | None:
    """Whether both are bad, if the word means a tie; None otherwise."""
    return _TIES.get(str(word).lower().replace("_", "").replace(" ", "").replace("-", ""))


def _index(name: Any, names: Sequence[str]) -> int:
    """The candidate that a control names, by its field's name or the last part of that name."""
    word = str(name)
    for index, field in enumerate(names):
        if word in (field, field.split("_")[-1], field.split("_")[0], "ab"[index], ("left", "right")[index]):
            return index
    raise InputError(f"{word!r} names neither of the candidates {names[0]} and {names[1]}")


def argilla(row: Mapping[str, Any], place: int) -> Draft:
    """Argilla's records: `fields`, and `responses` by question, nested or with flat keys (`question.responses`).

    A label question names a field (or a, b, left, right, tie, both_bad); a ranking question ranks the fields; a rating
    question whose name ends with a side (`quality_a`) rates it from 1 to 5. Suggestions (of models), drafts and
    discarded responses are left out.
    """
    fields = row.get("fields") if isinstance(row.get("fields"), dict) else row
    assert isinstance(fields, Mapping)
    names = _sides(fields)
    metadata = row.get("metadata") if isinstance(row.get("metadata"), dict) else {}
    assert isinstance(metadata, Mapping)
    media = tuple(medium(fields[n], n, model=optional(metadata, f"model_{n[-1]}")) for n in names)
    votes = []
    for question, responses in _responses(row).items():
        for response in responses:
            if response.get("status", "submitted") == "submitted" and response.get("value") is not None:
                votes.append(_answered(question, response, names))
    if not votes:
        raise Skipped("no submitted response")
    name = optional(row, "id", "_server_id") or f"row-{place}"
    groups = groups_of(metadata, "generator", "category", "style")
    return Draft(VotedRecord(name, text(fields, "prompt", "text", "caption"), media, tuple(votes), groups=groups))


def _responses(row: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Responses by question, from the nested or the flat form."""
    nested = row.get("responses")
    if isinstance(nested, dict):
        return {q: list(r or ()) for q, r in nested.items()}
    made: dict[str, list[Mapping[str, Any]]] = {}
    for key in row:
        if key.endswith(".responses"):
            values = row[key] or []
            users = row.get(f"{key}.users") or [None] * len(values)
            states = row.get(f"{key}.status") or ["submitted"] * len(values)
            each = zip(values, users, states, strict=True)
            made[key.removesuffix(".responses")] = [{"value": v, "user_id": u, "status": s} for v, u, s in each]
    return made


def _answered(question: str, response: Mapping[str, Any], names: Sequence[str]) -> Vote:
    value, who = response["value"], response.get("user_id")
    facts: dict[str, Any] = {"annotator": None if who is None else str(who), "shown": (0, 1)}
    if isinstance(value, list):
        if all(isinstance(v, dict) for v in value):
            ranks = {_index(v.get("value"), names): number(v.get("rank"), "rank") for v in value}
        else:
            ranks = {_index(v, names): float(i) for i, v in enumerate(value, 1)}
        if len(ranks) != 2:
            raise InputError(f"question {question!r} does not rank both candidates")
        return Vote("ranking", (0, 1), (ranks[0], ranks[1]), _criterion(question), **facts)
    if isinstance(value, int | float):
        stem, _, side = question.rpartition("_")
        if not stem:
            raise InputError(f"question {question!r} rates, but does not end with _a or _b")
        index = _index(side, names)
        return Vote("rating", (index,), (float(value),), _criterion(stem), scale=(1, 5), **facts)
    both_bad = _tie(value)
    if both_bad is not None:
        return choice(0.5, criterion=_criterion(question), both_bad=both_bad, **facts)
    return choice(float(_index(value, names) == 0), criterion=_criterion(question), **facts)


def fastchat(row: Mapping[str, Any], place: int) -> Draft:
    """A line of FastChat's log: `tstamp, type, models, states, ip`. Lines that are no votes are skipped.

    The file holds no pictures, so the record compares two systems. An IP address becomes a short hash.
    """
    kind = text(row, "type")
    if not kind.endswith("vote") or kind in ("upvote", "downvote"):
        raise Skipped(f"a line of type {kind!r}")
    states = [s if isinstance(s, dict) else {} for s in row.get("states") or ()]
    models = [str(m or "").strip() for m in row.get("models") or ()]
    if not any(models):
        models = [optional(s, "model_name") or "" for s in states]
    if len(models) != 2 or not all(models):
        raise InputError("needs two models, in 'models' or as 'model_name' of the states")
    address = optional(row, "ip")
    facts: dict[str, Any] = {
        "annotator": hashlib.sha256(address.encode()).hexdigest()[:12] if address else None,
        "created": iso_time(row.get("tstamp")),
        "shown": (0, 1),
    }
    media = tuple(MediaRef("none", model=m) for m in models)
    name = next((n for s in states if (n := optional(s, "conv_id"))), f"row-{place}")
    return Draft(VotedRecord(name, _asked(states), media, (choice(**side_vote(kind), **facts),)))


def _asked(states: Sequence[Mapping[str, Any]]) -> str:
    """The first message of a chat; "" if the log does not hold it."""
    for state in states:
        for message in state.get("messages") or ():
            content = message[1] if isinstance(message, list) and len(message) > 1 else None
            content = content[0] if isinstance(content, list) and content else content
            if isinstance(content, str) and content.strip():
                return content.strip()
    return ""
