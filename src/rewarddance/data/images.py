"""Readers of public sets of pictures. Each function reads a row of one format and returns a `Draft`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.data.drafts import Draft, Skipped, first_of, groups_of, list_of, medium, number, optional, text
from rewarddance.data.files import Row, Rows, rows_of
from rewarddance.data.votes import Vote, VotedRecord, choice, iso_time


def imagereward(row: Mapping[str, Any], place: int) -> Draft:
    """ImageReward JSON: `id, prompt, generations[], ranking[]`; a lower rank is better, equal ranks are ties."""
    images = [medium(p, "generations") for p in list_of(row, "generations", 2)]
    ranks = [number(r, "rank") for r in list_of(row, "ranking", 2)]
    if len(ranks) != len(images):
        raise InputError(f"{len(images)} generations and {len(ranks)} ranks")
    votes = (Vote("ranking", tuple(range(len(images))), tuple(ranks)),)
    return Draft(VotedRecord(str(row.get("id") or f"row-{place}"), text(row, "prompt"), tuple(images), votes))


DB_RATINGS = {
    "overall": "overall_rating",
    "fidelity": "image_text_alignment_rating",
    "quality": "fidelity_rating",
}
"""Criteria of ImageRewardDB by column. `fidelity` is faithfulness to the prompt, as everywhere here. The column
`fidelity_rating` rates the picture itself, so it is `quality`.
"""


def imagerewarddb(row: Mapping[str, Any], place: int) -> Draft:
    """ImageRewardDB: the rows of one `prompt_id`, as `prompt_groups` joins them, as one ranking and three ratings.

    The ratings go from 1 to 7.
    """
    rows = row["rows"]
    images = [medium(first_of(r, "image", "image_path"), "image") for r in rows]
    everyone = tuple(range(len(rows)))
    votes = []
    if all(r.get("rank") is not None for r in rows) and len(rows) > 1:
        votes.append(Vote("ranking", everyone, tuple(number(r["rank"], "rank") for r in rows)))
    for criterion, column in DB_RATINGS.items():
        rated = tuple(i for i in everyone if rows[i].get(column) is not None)
        if rated:
            given = tuple(number(rows[i][column], column) for i in rated)
            votes.append(Vote("rating", rated, given, criterion, scale=(1, 7)))
    groups = groups_of(rows[0], category="classification")
    return Draft(
        VotedRecord(str(row["prompt_id"]), text(rows[0], "prompt"), tuple(images), tuple(votes), groups=groups)
    )


def prompt_groups(path: Path) -> Rows:
    """Rows of ImageRewardDB, joined while `prompt_id` stays the same: {"prompt_id", "rows"}, numbered by the first.

    A `prompt_id` that comes back later is an error row, because its pictures were ranked together.
    """
    finished: set[str] = set()
    start = 0
    group: list[dict[str, Any]] = []
    for place, row in rows_of(path):
        key = None if isinstance(row, str) else row.get("prompt_id")
        if isinstance(row, str) or key is None:
            yield place, row if isinstance(row, str) else "empty or missing 'prompt_id'"
            continue
        if group and key != group[0]["prompt_id"]:
            yield start, {"prompt_id": group[0]["prompt_id"], "rows": group}
            finished.add(str(group[0]["prompt_id"]))
            group = []
        if str(key) in finished:
            yield place, f"prompt_id {key} comes back after other prompts; sort the file by prompt_id"
            continue
        start = place if not group else start
        group.append(row)
    if group:
        yield start, {"prompt_id": group[0]["prompt_id"], "rows": group}


def hpdv2(row: Mapping[str, Any], place: int) -> Draft:
    """HPDv2: train rows `prompt, file_path[2], human_preference[2]` (1 is preferred), test rows `prompt, image_path[],
    rank[], raw_annotations[{rank, user_hash}]` (a lower rank is better).

    A test row's `rank` is computed from its annotations, so it counts only if there are none.
    """
    name, prompt = str(row.get("id") or f"row-{place}"), text(row, "prompt")
    if "human_preference" in row:
        paths, given = list_of(row, "file_path", 2), list_of(row, "human_preference", 2)
        if len(paths) != 2 or len(given) != 2:
            raise InputError(f"{len(paths)} pictures and {len(given)} preferences; needs two of each")
        a, b = (number(x, "human_preference") for x in given)
        if a + b != 1:
            raise InputError(f"human_preference {given}: needs shares that add up to 1")
        vote = choice(a, annotator=optional(row, "user_hash"))
        return Draft(VotedRecord(name, prompt, tuple(medium(p, "file_path") for p in paths), (vote,)))
    images = tuple(medium(p, "image_path") for p in list_of(row, "image_path", 2))
    everyone = tuple(range(len(images)))
    votes = tuple(
        Vote("ranking", everyone, _ranks(a, len(images)), annotator=optional(a, "user_hash"))
        for a in row.get("raw_annotations") or [row]
    )
    return Draft(VotedRecord(name, prompt, images, votes))


def _ranks(row: Mapping[str, Any], num: int) -> tuple[float, ...]:
    ranks = tuple(number(r, "rank") for r in list_of(row, "rank", 2))
    if len(ranks) != num:
        raise InputError(f"{num} pictures and {len(ranks)} ranks")
    return ranks


def hpdv3(row: Mapping[str, Any], place: int) -> Draft:
    """HPDv3: `path1` is the preferred picture, `choice_dist` the number of votes for each; `confidence` is kept as a
    group. `model1` and `model2` made the pictures.
    """
    media = (
        medium(row.get("path1"), "path1", "image", model=optional(row, "model1")),
        medium(row.get("path2"), "path2", "image", model=optional(row, "model2")),
    )
    counts = row.get("choice_dist")
    counts = json.loads(counts) if isinstance(counts, str) and counts else counts
    votes: tuple[Vote, ...] = (choice(1.0),)
    if counts is not None:
        if not isinstance(counts, list) or len(counts) != 2:
            raise InputError(f"choice_dist {counts!r}: needs two counts")
        a, b = (number(c, "choice_dist") for c in counts)
        if a < b:
            raise InputError(f"choice_dist {counts} prefers path2, and path1 is the preferred picture")
        votes = tuple(choice(label, weight=num) for label, num in ((1.0, a), (0.0, b)) if num)
    groups = groups_of(row, "confidence")
    record = VotedRecord(str(row.get("id") or f"row-{place}"), text(row, "prompt"), media, votes, groups=groups)
    return Draft(record, winner_first=True)


def pickapic(row: Mapping[str, Any], place: int) -> Draft:
    """Pick-a-Pic v1 and v2: `caption, jpg_0, jpg_1, label_0, label_1`; 0.5 and 0.5 is a tie.

    Rows with `has_label` false are skipped.
    """
    if row.get("has_label") in (False, 0):
        raise Skipped("has_label is false")
    media = []
    for side in ("0", "1"):
        value = first_of(row, f"jpg_{side}", f"image_{side}")
        if value is None and row.get(f"image_{side}_url"):
            raise InputError(f"no picture jpg_{side}, only a link; this is the copy without pictures")
        path = optional(row, f"image_{side}_uid")
        ref = medium(value, f"jpg_{side}", "image", model=optional(row, f"model_{side}"))
        media.append(medium({"bytes": ref.data, "path": path or ref.path}, "jpg", "image", model=ref.model))
    labels = [number(row.get(f"label_{side}"), f"label_{side}") for side in ("0", "1")]
    if abs(sum(labels) - 1) > 1e-6:
        raise InputError(f"label_0 {labels[0]:g} and label_1 {labels[1]:g} do not add up to 1")
    annotator, created = optional(row, "user_id"), iso_time(row.get("created_at"))
    votes = (choice(labels[0], annotator=annotator, created=created),)
    name = optional(row, "ranking_id", "id") or f"row-{place}"
    return Draft(VotedRecord(name, text(row, "caption"), tuple(media), votes))


RICHHF = {
    "overall": "overall_score",
    "aesthetics": "aesthetics_score",
    "plausibility": "artifact_score",
    "fidelity": "misalignment_score",
}
"""Criteria of RichHF-18K by column; `fidelity` is faithfulness to the prompt. All scores are from 0 to 1, and higher is
better: a picture with few artifacts has a high `artifact_score`.
"""


def richhf(row: Mapping[str, Any], place: int) -> Draft:
    """RichHF-18K: `filename` and four scores from 0 to 1; the heat maps are not read.

    Its own files hold no prompts: they are Pick-a-Pic's captions. Rows without `prompt` or `caption` have an empty one.
    """
    path = text(row, "filename")
    votes = tuple(
        Vote("rating", (0,), (number(row[column], column),), criterion, scale=(0, 1))
        for criterion, column in RICHHF.items()
        if row.get(column) is not None
    )
    if not votes:
        raise InputError(f"none of {', '.join(RICHHF.values())}")
    return Draft(
        VotedRecord(path, optional(row, "prompt", "caption") or "", (medium(path, "filename", "image"),), votes)
    )


def mj_bench(row: Mapping[str, Any], place: int) -> Draft:
    """MJ-Bench: `caption, image0, image1, label, category`; the label is the number of the better picture.

    One public copy has the better picture always first, so the pictures are ordered by content.
    """
    label = number(row.get("label"), "label")
    if label not in (0, 1, 0.5):
        raise InputError(f"label {label:g}: needs 0 or 1 (the better picture), or 0.5 (tie)")
    media = (medium(row.get("image0"), "image0", "image"), medium(row.get("image1"), "image1", "image"))
    name = optional(row, "id", "uid") or f"row-{place}"
    groups = groups_of(row, "category")
    return Draft(VotedRecord(name, text(row, "caption"), media, (choice(1 - label),), groups=groups), winner_first=True)


def mmrb2(row: Mapping[str, Any], place: int) -> Draft:
    """MMRB2: `pair_id` (or `id`), `prompt_content` and two responses as lists of [type, value], `chosen` A or B.

    The texts of the prompt are joined; its pictures are conditions. Each response must hold one picture; pairs of texts
    or of several pictures are skipped.
    """
    parts = _parts(first_of(row, "prompt_content", "prompt"))
    conditions = [medium(v, "prompt", "image", role="condition") for kind, v in parts if kind == "image"]
    prompt = "\n".join(str(v) for kind, v in parts if kind == "text").strip()
    media = []
    for side in ("response_a", "response_b"):
        response = row.get(side)
        content = response.get("response_content") if isinstance(response, dict) else response
        model = response.get("model") if isinstance(response, dict) else None
        samples = [v for kind, v in _parts(content) if kind in ("image", "video")]
        if len(samples) != 1:
            raise Skipped("a response is not one picture")
        media.append(medium(samples[0], side, model=model))
    chosen = text(row, "chosen").upper()
    if chosen not in ("A", "B"):
        raise InputError(f"chosen {chosen!r}: needs A or B")
    if not prompt:
        raise InputError("empty or missing 'prompt_content'")
    name = optional(row, "pair_id", "id") or f"row-{place}"
    votes = (choice(float(chosen == "A")),)
    groups = groups_of(row, category="prompt_source")
    return Draft(VotedRecord(name, prompt, (*media, *conditions), votes, groups=groups))


def _parts(content: Any) -> list[tuple[str, Any]]:
    if isinstance(content, str):
        return [("text", content)]
    if not isinstance(content, list) or not all(isinstance(p, list) and len(p) == 2 for p in content):
        raise InputError("needs a prompt and responses as lists of [type, value]")
    return [(str(kind), value) for kind, value in content]


def first_rows(rows: Iterator[tuple[int, Row]], num: int) -> list[dict[str, Any]]:
    """The first readable rows, at most `num` of the first 100."""
    made: list[dict[str, Any]] = []
    for place, row in rows:
        if isinstance(row, dict):
            made.append(row)
        if len(made) == num or place >= 100:
            break
    return made
