"""Writers of the files of annotation tools and arenas, one function a format; see `writers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from rewarddance.data.derive import pairwise, scaled
from rewarddance.data.votes import Vote, VotedRecord
from rewarddance.data.writers import Put, Rows, Unfit, pair_of, pair_votes, side_word, turned


def label_studio(record: VotedRecord, put: Put) -> Rows:
    """A task with one annotation for each vote. Its control is named after the criterion.

    A record of more than two candidates becomes a task for each pair that has votes. A ranking becomes a choice in each
    pair, and a rating is written to one of the pairs that contain its candidate.
    """
    if len(record.candidates) == 2:
        return [_task(record, (0, 1), record.votes, record.record_id, put)]
    if len(record.candidates) < 2:
        pair_of(record)
    parts = _by_pair(record)
    if not parts:
        raise Unfit("more than two candidates and no votes")
    return [_task(record, pair, parts[pair], f"{record.record_id}/{pair[0]}-{pair[1]}", put) for pair in sorted(parts)]


def _task(record: VotedRecord, pair: tuple[int, int], votes: Sequence[Vote], name: str, put: Put) -> dict[str, Any]:
    a, b = (record.candidates[i] for i in pair)
    data: dict[str, Any] = {"id": name, "prompt": record.prompt, "image_a": put(a), "image_b": put(b)}
    if record.conditions:
        data["condition"] = put(record.conditions[0])
    data |= {f"model_{s}": m.model for s, m in (("a", a), ("b", b)) if m.model}
    data |= {k: v for k, v in record.groups.items() if k in ("generator", "category", "style")}
    annotations = []
    for vote in votes:
        facts = {"completed_by": vote.annotator, "created_at": vote.created, "lead_time": vote.seconds}
        annotations.append({**facts, "was_cancelled": False, "result": _results(vote)})
    return {"id": name, "data": data, "annotations": annotations}


def _by_pair(record: VotedRecord) -> dict[tuple[int, int], list[Vote]]:
    """The votes of each pair of candidates. In these votes the two candidates have the numbers 0 and 1."""
    parts: dict[tuple[int, int], list[Vote]] = {}
    for vote in record.votes:
        if vote.kind == "rating":
            for place, value in zip(vote.media, vote.values, strict=True):
                first = min(place - place % 2, len(record.candidates) - 2)
                single = replace(vote, media=(place - first,), values=(value,), shown=())
                parts.setdefault((first, first + 1), []).append(single)
            continue
        for single in pairwise(vote):
            single = single if single.media[0] < single.media[1] else turned(single)
            pair = single.media[0], single.media[1]
            shown = tuple(pair.index(i) for i in single.shown if i in pair)
            parts.setdefault(pair, []).append(replace(single, media=(0, 1), shown=shown))
    return parts


def _results(vote: Vote) -> Rows:
    if vote.kind == "rating":
        return [
            {
                "from_name": f"{vote.criterion}_{'ab'[i]}",
                "to_name": "ab"[i],
                "type": "rating",
                "value": {"rating": value},
            }
            for i, value in zip(vote.media, scaled(vote), strict=True)
        ]
    single = pairwise(vote)[0]
    single = single if single.media == (0, 1) else turned(single)
    where = {"from_name": vote.criterion, "to_name": vote.criterion}
    word = side_word(single)
    if word in ("tievote", "bothbad_vote"):
        tie = "both bad" if vote.both_bad else "tie"
        return [{**where, "type": "choices", "value": {"choices": [tie]}}]
    return [{**where, "type": "pairwise", "value": {"selected": word.removesuffix("vote")}}]


def argilla(record: VotedRecord, put: Put) -> Rows:
    """A record with one response for each vote, under a question named after the criterion."""
    a, b = pair_of(record)
    responses: dict[str, Rows] = {}
    for vote in record.votes:
        who = {"user_id": vote.annotator, "status": "submitted"}
        if vote.kind == "rating":
            for i, value in zip(vote.media, scaled(vote), strict=True):
                responses.setdefault(f"{vote.criterion}_{'ab'[i]}", []).append({"value": value, **who})
            continue
        if vote.kind == "ranking":
            ranks = zip(vote.media, vote.values, strict=True)
            answer: Any = [{"value": f"image_{'ab'[i]}", "rank": rank} for i, rank in ranks]
        else:
            single = vote if vote.media == (0, 1) else turned(vote)
            words = {"leftvote": "image_a", "rightvote": "image_b", "tievote": "tie", "bothbad_vote": "both_bad"}
            answer = words[side_word(single)]
        responses.setdefault(vote.criterion, []).append({"value": answer, **who})
    fields = {"prompt": record.prompt, "image_a": put(a), "image_b": put(b)}
    metadata = {f"model_{s}": m.model for s, m in (("a", a), ("b", b)) if m.model}
    metadata |= {k: v for k, v in record.groups.items() if k in ("generator", "category", "style")}
    row: dict[str, Any] = {"id": record.record_id, "fields": fields, "metadata": metadata, "suggestions": {}}
    return [row | {"responses": responses, "status": "completed"}]


def fastchat(record: VotedRecord, put: Put) -> Rows:
    """One line for each vote between the models that made the candidates. Pictures and addresses are not written."""
    a, b = pair_of(record)
    if not a.model or not b.model:
        raise Unfit("no names of the models")
    rows = []
    for vote in pair_votes(record):
        when = None if vote.created is None else datetime.fromisoformat(vote.created).timestamp()
        messages = [["Human", record.prompt]] if record.prompt else []
        states = [{"model_name": m.model, "conv_id": record.record_id, "messages": messages} for m in (a, b)]
        rows.append({"tstamp": when, "type": side_word(vote), "models": [a.model, b.model], "states": states})
    return rows
