"""Writers of the files of annotation tools and arenas, one function a format; see `writers`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rewarddance.data.derive import pairwise, scaled
from rewarddance.data.votes import Vote, VotedRecord
from rewarddance.data.writers import Put, Rows, Unfit, pair_of, pair_votes, side_word, turned


def label_studio(record: VotedRecord, put: Put) -> Rows:
    """A task with one annotation for each vote. Its control is named after the criterion."""
    a, b = pair_of(record)
    data: dict[str, Any] = {"id": record.record_id, "prompt": record.prompt, "image_a": put(a), "image_b": put(b)}
    data |= {f"model_{s}": m.model for s, m in (("a", a), ("b", b)) if m.model}
    data |= {k: v for k, v in record.groups.items() if k in ("generator", "category", "style")}
    annotations = []
    for vote in record.votes:
        facts = {"completed_by": vote.annotator, "created_at": vote.created, "lead_time": vote.seconds}
        annotations.append({**facts, "was_cancelled": False, "result": _results(vote)})
    return [{"id": record.record_id, "data": data, "annotations": annotations}]


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
