"""Writers of public formats. Each function returns the rows of a record in one format.

Those of annotation tools are in `tool_writers`. Every writer is the inverse of the reader of its name, for what the
format can hold. A record that it cannot hold raises `Unfit` with the reason; `data export` counts these. `Put` stores a
medium and returns its path.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.core.preferences import Choice
from rewarddance.core.types import swap_roles
from rewarddance.data.clips import VIDEOFEEDBACK, VIDEOGEN
from rewarddance.data.derive import choices, likert, mean_ranks, pairwise, scaled, whole_ratings
from rewarddance.data.images import DB_RATINGS, RICHHF
from rewarddance.data.rows import GROUPS, HIGHEST, LOWEST
from rewarddance.data.schema import media_row, stored_name, vote_row
from rewarddance.data.votes import MediaRef, Vote, VotedRecord

Put = Callable[[MediaRef], str]
Rows = list[dict[str, Any]]


class Unfit(InputError):
    """A record that a format cannot hold."""


def pair_of(record: VotedRecord) -> tuple[MediaRef, MediaRef]:
    if len(record.candidates) != 2:
        raise Unfit(f"{len(record.candidates)} candidates; the format holds pairs")
    return record.candidates[0], record.candidates[1]


def pair_votes(record: VotedRecord) -> list[Vote]:
    """All pairwise votes of a record, with its first candidate first."""
    made = [v if v.media[0] < v.media[1] else turned(v) for vote in whole_ratings(record.votes) for v in pairwise(vote)]
    if not made:
        raise Unfit("no votes between candidates")
    return made


def turned(vote: Vote) -> Vote:
    facts = {k: getattr(vote, k) for k in ("criterion", "annotator", "created", "seconds", "shown", "both_bad")}
    label = (1 - vote.values[0],)
    reason = None if vote.reason is None else swap_roles(vote.reason)
    return Vote("choice", vote.media[::-1], label, strength=vote.strength, weight=vote.weight, reason=reason, **facts)


def _choices(record: VotedRecord) -> tuple[Choice, ...]:
    made = choices(record.votes)
    if not made:
        raise Unfit("no votes between candidates")
    return made


def _image(ref: MediaRef) -> dict[str, Any]:
    """The struct of bytes and path that `datasets` reads as a picture."""
    if ref.data is None:
        raise Unfit("the format stores pictures, and the record has a reference only")
    return {"bytes": ref.data, "path": stored_name(ref)}


def jsonl(record: VotedRecord, put: Put) -> Rows:
    """Whole records; nothing is lost."""
    media = [media_row(m) | {"path": m.path if m.kind != "image" and m.data is None else put(m)} for m in record.media]
    row: dict[str, Any] = {"id": record.record_id, "prompt": record.prompt, "media": media}
    row |= {"votes": [vote_row(v) for v in record.votes], "groups": dict(record.groups)}
    row |= {"source": record.source, "truth": None if record.truth is None else list(record.truth)}
    return [row]


CSV_COLUMNS = (
    *("id", "prompt", "image_a", "image_b", "label", "probability", "votes_a", "votes_b", "rating_a", "rating_b"),
    *("condition", "criterion", "created", "seconds", "shown", "strength", "rationale", "model_a", "model_b", *GROUPS),
)


def csv(record: VotedRecord, put: Put) -> Rows:
    """One row for each pair and vote. Rankings become pairs, so a record with several votes becomes several records.

    The ratings of single candidates by one annotator and criterion become pairs too. A rating of one candidate alone
    has no pair and is lost.
    """
    rows = []
    candidates = record.candidates
    for vote in whole_ratings(record.votes):
        whole = vote.kind == "rating" and vote.media == (0, 1) and len(candidates) == 2
        for single in [vote] if whole else pairwise(vote):
            a, b = (candidates[i] for i in single.media)
            row: dict[str, Any] = dict.fromkeys(CSV_COLUMNS, "")
            row |= {k: record.groups[k] for k in GROUPS if k in record.groups}
            row |= {"id": record.record_id, "prompt": record.prompt, "criterion": single.criterion}
            row |= {"condition": put(record.conditions[0]) if record.conditions else ""}
            row |= {"image_a": put(a), "image_b": put(b), "model_a": a.model or "", "model_b": b.model or ""}
            row |= {k: getattr(single, k) for k in ("annotator", "created", "seconds", "strength")}
            row |= {"shown": "".join("ab"[single.media.index(i)] for i in single.shown), "rationale": single.reason}
            rows.append(row | (_ratings(single) if whole else _label(single)))
    if not rows:
        raise Unfit("no votes between candidates")
    return [{k: "" if v is None else v for k, v in row.items()} for row in rows]


def _ratings(vote: Vote) -> dict[str, Any]:
    a, b = scaled(vote)
    return {"rating_a": a, "rating_b": b}


def _label(vote: Vote) -> dict[str, Any]:
    label = vote.values[0]
    if label not in (0, 0.5, 1):
        return {"probability": label}
    if vote.weight != 1:
        return {"votes_a": vote.weight * label, "votes_b": vote.weight * (1 - label)}
    return {"label": "both_bad" if vote.both_bad else {1.0: "a", 0.0: "b", 0.5: "tie"}[label]}


def imagereward(record: VotedRecord, put: Put) -> Rows:
    """One ranking of all candidates."""
    row: dict[str, Any] = {
        "id": record.record_id,
        "prompt": record.prompt,
        "generations": [put(m) for m in record.candidates],
    }
    return [row | {"ranking": list(_ranking(record))}]


def _ranking(record: VotedRecord) -> tuple[float, ...]:
    """One ranking for all votes: the only ranking, the mean of several, or the one that a pair or ratings give."""
    num = len(record.candidates)
    full = [v for v in record.votes if v.kind == "ranking" and len(v.media) == num]
    if len(full) == 1:
        return full[0].values
    criterion = next(iter(v.criterion for v in record.votes), "overall")
    if full:
        return mean_ranks(record, criterion) or ()
    if num == 2:
        label = _choices(record)[0].label
        return (1, 1) if label == 0.5 else (1, 2) if label > 0.5 else (2, 1)
    ratings = likert(record, [criterion]).get(criterion)
    if ratings is None or num < 2:
        raise Unfit("no ranking of all candidates")
    return tuple(float(1 + sum(other > own for other in ratings)) for own in ratings)


def imagerewarddb(record: VotedRecord, put: Put) -> Rows:
    """One row a candidate, with its rank and its ratings from 1 to 7."""
    num = len(record.candidates)
    full = next((v for v in record.votes if v.kind == "ranking" and len(v.media) == num), None)
    rated: dict[str, dict[int, float]] = {}
    for vote in record.votes:
        if vote.kind == "rating" and vote.criterion in DB_RATINGS:
            values = vote.values if vote.scale == (1, 7) else tuple(1 + (v - 1) * 6 / 4 for v in scaled(vote))
            rated.setdefault(DB_RATINGS[vote.criterion], {}).update(zip(vote.media, values, strict=True))
    if full is None and not rated:
        raise Unfit("neither a ranking nor ratings")
    common = {"prompt_id": record.record_id, "prompt": record.prompt, "image_amount_in_total": num}
    common["classification"] = record.groups.get("category", "")
    return [
        common
        | {"image": _image(m), "rank": None if full is None else full.values[i]}
        | {column: rated.get(column, {}).get(i) for column in DB_RATINGS.values()}
        for i, m in enumerate(record.candidates)
    ]


def hpdv2(record: VotedRecord, put: Put) -> Rows:
    """A pair: one training row a vote. Rankings: one test row with all annotations."""
    paths = [put(m) for m in record.candidates]
    num = len(paths)
    full = [v for v in record.votes if v.kind == "ranking" and v.media == tuple(range(num))]
    if full:
        row: dict[str, Any] = {"prompt": record.prompt, "image_path": paths, "rank": list(_ranking(record))}
        if len(full) > 1 or full[0].annotator:
            row["raw_annotations"] = [{"rank": list(v.values), "user_hash": v.annotator or ""} for v in full]
        return [row]
    pair_of(record)
    return [
        {"prompt": record.prompt, "file_path": paths, "human_preference": [v.values[0], 1 - v.values[0]]}
        | ({"user_hash": v.annotator} if v.annotator else {})
        for v in pair_votes(record)
    ]


def hpdv3(record: VotedRecord, put: Put) -> Rows:
    """A pair, the preferred picture first, with the number of votes if there are several."""
    a, b = pair_of(record)
    votes = pair_votes(record)
    won = sum(v.weight * v.values[0] for v in votes)
    total = sum(v.weight for v in votes)
    if won * 2 == total and not record.groups.get("confidence"):
        raise Unfit("a tie; the format names a preferred picture")
    better, worse, most = (a, b, won) if won * 2 >= total else (b, a, total - won)
    row: dict[str, Any] = {"prompt": record.prompt, "path1": put(better), "path2": put(worse)}
    row |= {"model1": better.model, "model2": worse.model}
    if total != 1:
        row["choice_dist"] = [most, total - most]
    if "confidence" in record.groups:
        row["confidence"] = float(record.groups["confidence"])
    return [row]


def pickapic(record: VotedRecord, put: Put) -> Rows:
    """A pair: one row a vote."""
    a, b = pair_of(record)
    rows = []
    for vote in pair_votes(record):
        label = vote.values[0]
        best = a if label > 0.5 else b
        row: dict[str, Any] = {"caption": record.prompt, "label_0": label, "label_1": 1 - label, "has_label": True}
        row |= {"jpg_0": a.data, "jpg_1": b.data, "model_0": a.model, "model_1": b.model, "user_id": vote.annotator}
        row |= {"image_0_uid": a.path, "image_1_uid": b.path, "ranking_id": record.record_id}
        row["best_image_uid"] = "tie" if label == 0.5 else best.path
        row["are_different"] = True
        row["created_at"] = None if vote.created is None else datetime.fromisoformat(vote.created)
        if a.data is None or b.data is None:
            raise Unfit("the format stores pictures, and the record has references only")
        rows.append(row)
    return rows


def richhf(record: VotedRecord, put: Put) -> Rows:
    """One picture with scores from 0 to 1."""
    if len(record.candidates) != 1:
        raise Unfit(f"{len(record.candidates)} candidates; the format holds single pictures")
    row: dict[str, Any] = {"filename": put(record.candidates[0])}
    for vote in record.votes:
        if vote.kind == "rating" and vote.criterion in RICHHF:
            row[RICHHF[vote.criterion]] = (
                vote.values[0] if vote.scale == (0, 1) else (scaled(vote)[0] - LOWEST) / (HIGHEST - LOWEST)
            )
    if len(row) == 1:
        raise Unfit(f"no rating of {', '.join(RICHHF)}")
    return [row | ({"prompt": record.prompt} if record.prompt else {})]


def videofeedback(record: VotedRecord, put: Put) -> Rows:
    """One clip with five ratings from 1 to 4."""
    if len(record.candidates) != 1 or record.candidates[0].kind != "video":
        raise Unfit("not one clip")
    clip = record.candidates[0]
    row: dict[str, Any] = {"id": record.record_id, "images": list(clip.frames), "text prompt": record.prompt}
    row["video link"] = clip.path
    for vote in record.votes:
        if vote.kind == "rating" and vote.criterion in VIDEOFEEDBACK:
            row[vote.criterion] = vote.values[0] if vote.scale == (1, 4) else 1 + (scaled(vote)[0] - 1) * 3 / 4
    if len(row) == 4:
        raise Unfit(f"no rating of {', '.join(VIDEOFEEDBACK)}")
    return [row]


def videogen(record: VotedRecord, put: Put) -> Rows:
    """A pair of clips with a choice by up to four criteria."""
    pair = pair_of(record)
    if any(m.kind != "video" for m in pair):
        raise Unfit("not a pair of clips")
    row: dict[str, Any] = dict.fromkeys(VIDEOGEN.values(), "")
    for side, m in zip("AB", pair, strict=True):
        row |= {f"path_{side}": m.path, f"{side}_model": m.model or ""}
        row |= {f"fps_{side}": m.fps or "", f"num_frames_{side}": m.num_frames or ""}
    row["prompt"] = record.prompt
    made = {c: choices([v for v in record.votes if v.criterion == c]) for c in VIDEOGEN}
    if not any(made.values()):
        raise Unfit(f"no choice by {', '.join(VIDEOGEN)}")
    for criterion, chosen in made.items():
        if chosen:
            label = chosen[0].label if chosen[0].first == 0 else 1 - chosen[0].label
            row[VIDEOGEN[criterion]] = "same" if label == 0.5 else "A" if label > 0.5 else "B"
    return [row]


def side_word(vote: Vote) -> str:
    """FastChat's and GenAI-Bench's word for a choice; its first candidate is left.

    Raises:
        Unfit: the vote is neither a clear preference nor a tie.
    """
    if vote.values[0] not in (0, 0.5, 1):
        raise Unfit("a label between a preference and a tie")
    return "bothbad_vote" if vote.both_bad else {1.0: "leftvote", 0.0: "rightvote", 0.5: "tievote"}[vote.values[0]]


def genai_bench(record: VotedRecord, put: Put) -> Rows:
    """A pair of pictures: one row a vote, the first candidate left."""
    a, b = pair_of(record)
    rows = []
    for vote in pair_votes(record):
        when = None if vote.created is None else datetime.fromisoformat(vote.created).timestamp()
        row: dict[str, Any] = {
            "id": record.record_id,
            "prompt": record.prompt,
            "vote_type": side_word(vote),
            "timestamp": when,
        }
        row |= {"left_model": a.model, "right_model": b.model, "judge": vote.annotator}
        row |= {"left_image": _image(a), "right_image": _image(b), "category": record.groups.get("category")}
        row["source_image"] = _image(record.conditions[0]) if record.conditions else None
        rows.append(row)
    return rows


def mj_bench(record: VotedRecord, put: Put) -> Rows:
    """A pair with the number of the better picture."""
    a, b = pair_of(record)
    made = _choices(record)[0]
    label = made.label if made.first == 0 else 1 - made.label
    row: dict[str, Any] = {"id": record.record_id, "caption": record.prompt, "category": record.groups.get("category")}
    row |= {"image0": _image(a), "image1": _image(b), "label": 0.5 if label == 0.5 else float(label < 0.5)}
    return [row]


def mmrb2(record: VotedRecord, put: Put) -> Rows:
    """A pair with a chosen side."""
    a, b = pair_of(record)
    made = _choices(record)[0]
    label = made.label if made.first == 0 else 1 - made.label
    if label == 0.5:
        raise Unfit("a tie; the format names a chosen side")
    prompt = [["text", record.prompt], *(["image", put(m)] for m in record.conditions)]
    row: dict[str, Any] = {"pair_id": record.record_id, "prompt_content": prompt, "chosen": "A" if label > 0.5 else "B"}
    for side, m in (("response_a", a), ("response_b", b)):
        row[side] = {"model": m.model, "response_content": [["image", put(m)]]}
    return [row | ({"prompt_source": record.groups["category"]} if "category" in record.groups else {})]


def trl(record: VotedRecord, put: Put) -> Rows:
    """One row for each pair that is not a tie: `prompt`, `chosen`, `rejected` and their pictures."""
    rows = []
    for c in _choices(record):
        if c.label == 0.5:
            continue
        order = (c.first, c.second) if c.label > 0.5 else (c.second, c.first)
        used = [*record.conditions, *(record.candidates[i] for i in order)]
        picture = {"type": "image", "text": None}
        prompt = [picture] * len(record.conditions) + [{"type": "text", "text": record.prompt}]
        answer = [{"role": "assistant", "content": [picture]}]
        row: dict[str, Any] = {"id": record.record_id, "prompt": [{"role": "user", "content": prompt}]}
        rows.append(row | {"chosen": answer, "rejected": answer, "images": [_image(m) for m in used]})
    if not rows:
        raise Unfit("ties alone; the format names a chosen picture")
    return rows
