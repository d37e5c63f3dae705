"""Rows of a user's own CSV or JSONL file, in any of the shapes that `data import` takes, as a `Draft`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.data.drafts import Ambiguous, Draft, groups_of, medium, number, optional, text
from rewarddance.data.schema import media_of, vote_of
from rewarddance.data.votes import Vote, VotedRecord, choice, iso_time

LABELS: dict[str, float] = {
    "a": 1.0, "b": 0.0, "tie": 0.5, "same": 0.5, "both_bad": 0.5, "1": 1.0, "2": 0.0, "left": 1.0, "right": 0.0,
}  # fmt: skip
"""Accepted values of `label`, as the probability that the first picture is better."""
LOWEST, HIGHEST = 1, 5
"""The range of a rating."""
GROUPS = ("generator", "category", "style", "annotator")
"""Columns that name groups of rows; `train --leave-one-out` makes folds of them."""


def parse_row(row: Mapping[str, Any], place: int) -> Draft:
    """Parse one row of any supported shape, with its groups, its criterion, its condition, and who voted when.

    The column `condition` is the picture that the candidates were made from, such as the first frame of image-to-video.

    Raises:
        InputError: what is wrong with the row.
    """
    if isinstance(row.get("votes"), list) or isinstance(row.get("media"), list):
        return _whole(row, place)
    draft = _preference(row, place)
    record = draft.record
    first = medium(row["condition"], "condition", "image", role="condition") if _given(row, "condition") else None
    facts: dict[str, Any] = {
        "criterion": optional(row, "criterion") or "overall",
        "annotator": optional(row, "annotator"),
        "created": iso_time(row.get("created")),
        "seconds": number(row["seconds"], "seconds") if _given(row, "seconds") else None,
        "strength": number(row["strength"], "strength") if _given(row, "strength") else None,
        "shown": _shown(row),
        "reason": optional(row, "rationale"),
    }
    if not record.votes and (stated := _given(row, "strength", "rationale")):
        raise InputError(f"a {stated[0]} without a preference")
    votes = tuple(replace(v, **facts) for v in record.votes)
    media = record.media if first is None else (*record.media, first)
    record = replace(record, media=media, votes=votes, groups=groups_of(row, *GROUPS))
    return replace(draft, record=record, own_criteria=True)


def _whole(row: Mapping[str, Any], place: int) -> Draft:
    """A row of `data export --format jsonl`: a whole record, with `media` and `votes` as they are stored."""
    media, votes, truth = row.get("media"), row.get("votes") or [], row.get("truth")
    if not isinstance(media, list) or not all(isinstance(x, dict) for x in (*media, *votes)):
        raise InputError("media and votes must be lists of objects")
    refs = tuple(media_of({k: v for k, v in m.items() if k != "sha256"}) for m in media)
    if any(r.kind != "none" and not r.path and not r.frames for r in refs):
        raise InputError("a medium without path")
    groups = {str(k): str(v) for k, v in (row.get("groups") or {}).items()}
    made = tuple(replace(v, values=tuple(map(float, v.values))) for v in map(vote_of, votes))
    record = VotedRecord(
        str(row.get("id") or f"row-{place}"),
        text(row, "prompt") if row.get("prompt") else "",
        refs,
        made,
        str(row.get("source") or ""),
        tuple(truth) if truth else None,
        groups,
    )
    return Draft(record, own_criteria=True)


def _preference(row: Mapping[str, Any], place: int) -> Draft:
    """One row of any supported shape. A row with pictures that states no preference becomes a record without votes.

    Shapes: prompt with `image_a`, `image_b` and `label` (a, b, tie, both_bad), `probability` (of the first) or
    `votes_a` and `votes_b`, or `rating_a` and `rating_b` (1 to 5, higher is better); with `chosen`, `rejected`; with
    `images` (or `generations`) and `ranking` (lower is better, equal is a tie) or `ratings`.

    Raises:
        InputError: what is wrong with the row.
    """
    prompt, name = text(row, "prompt"), str(row.get("id") or f"row-{place}")
    if len(shapes := _given(row, "image_a", "chosen", "images", "generations")) > 1:
        raise InputError(f"both {shapes[0]} and {shapes[1]}: keep one of them")
    if "image_a" in row or "image_b" in row:
        media = tuple(medium(row.get(f"image_{s}"), f"image_{s}", model=optional(row, f"model_{s}")) for s in "ab")
        if _given(row, "rating_a", "rating_b"):
            _alone(row, "ratings", "label", "probability", "votes_a", "votes_b")
            votes: tuple[Vote, ...] = (_rated([row.get("rating_a"), row.get("rating_b")]),)
        else:
            votes = _pair_votes(row)
        return Draft(VotedRecord(name, prompt, media, votes, "import"))
    if "chosen" in row or "rejected" in row:
        media = (medium(row.get("chosen"), "chosen"), medium(row.get("rejected"), "rejected"))
        return Draft(VotedRecord(name, prompt, media, (choice(1.0),), "import"), winner_first=True)
    images = row.get("images", row.get("generations"))
    rated, given = ("ratings", row["ratings"]) if _given(row, "ratings") else ("ranks", row.get("ranking"))
    if rated == "ratings":
        _alone(row, "ratings", "ranking")
    if not isinstance(images, list):
        raise InputError("no preference: needs image_a/image_b/label, chosen/rejected, or images/ranking (or ratings)")
    if not all(isinstance(p, str) for p in images):
        raise InputError("images must be paths")
    media = tuple(medium(p, "images") for p in images)
    if given in (None, "") and len(images) > 1:
        return Draft(VotedRecord(name, prompt, media, (), "import"))
    if not isinstance(given, list):
        raise InputError(f"{rated} must be a list" if given not in (None, "") else "one picture; needs two or more")
    if len(images) != len(given) or len(images) < 2:
        raise InputError(
            f"{len(images)} images and {len(given)} {rated}; needs two or more, and the same number of both"
        )
    vote = _rated(given) if rated == "ratings" else _ranked(given)
    return Draft(VotedRecord(name, prompt, media, (vote,), "import"))


def _ranked(ranking: list[Any]) -> Vote:
    if not all(isinstance(r, int | float) for r in ranking):
        raise InputError("ranks must be numbers")
    return Vote("ranking", tuple(range(len(ranking))), tuple(number(r, "rank") for r in ranking))


def _rated(given: list[Any]) -> Vote:
    ratings = tuple(number(r, "rating") for r in given)
    wrong = [r for r in ratings if not LOWEST <= r <= HIGHEST]
    if wrong:
        raise InputError(f"rating {wrong[0]:g} is not between {LOWEST} and {HIGHEST}; rescale them")
    return Vote("rating", tuple(range(len(ratings))), ratings, scale=(LOWEST, HIGHEST))


def _given(row: Mapping[str, Any], *columns: str) -> list[str]:
    """The columns that are present and not empty."""
    return [c for c in columns if row.get(c) not in (None, "")]


def _alone(row: Mapping[str, Any], name: str, *others: str) -> None:
    """Refuse a row that states the preference in two ways."""
    if _given(row, *others):
        raise InputError(f"both {name} and {_given(row, *others)[0]}: keep one of them")


def _shown(row: Mapping[str, Any]) -> tuple[int, ...]:
    """The column `shown`: "ab" if the first picture was shown left, "ba" if the second one was."""
    word = (optional(row, "shown") or "").lower()
    if word not in ("", "ab", "ba"):
        raise InputError(f"shown {word!r}: needs ab or ba")
    return tuple("ab".index(c) for c in word)


def _pair_votes(row: Mapping[str, Any]) -> tuple[Vote, ...]:
    """Votes of a pair, from `probability`, the counts or `label`, in this order; no votes if none is given.

    Raises:
        InputError: two of them prefer different pictures.
    """
    stated: dict[str, tuple[float, tuple[Vote, ...]]] = {}
    if _given(row, "probability"):
        probability = number(row["probability"], "probability")
        if not 0 <= probability <= 1:
            raise InputError(f"probability {probability} is not between 0 and 1")
        stated["probability"] = probability, (choice(probability),)
    if _given(row, "votes_a", "votes_b"):
        counts = number(row.get("votes_a"), "votes_a"), number(row.get("votes_b"), "votes_b")
        if min(counts) < 0 or sum(counts) == 0:
            raise InputError(f"votes {counts[0]:g} and {counts[1]:g}: needs one or more, none negative")
        each = tuple(choice(side, weight=n) for side, n in zip((1.0, 0.0), counts, strict=True) if n)
        stated["votes"] = counts[0] / sum(counts), each
    if _given(row, "label"):
        label, bad = _word(row.get("label"))
        stated["label"] = label, (choice(label, both_bad=bad),)
    if not stated:
        return ()
    first, *others = stated
    for other in others:
        if (stated[first][0] - 0.5) * (stated[other][0] - 0.5) < 0:
            raise InputError(f"{first} and {other} prefer different pictures")
    return stated[first][1]


def _word(given: Any) -> tuple[float, bool]:
    """A label and whether both pictures are bad."""
    label = text({"label": "" if given is None else str(given)}, "label").lower()
    if label in ("0", "0.0"):
        raise Ambiguous("label 0: some files count pictures from 0, others mean 'the second'; write a, b or tie")
    if label not in LABELS:
        raise InputError(f"unknown label {label!r}; use a, b or tie, or a column `probability` (of the first)")
    return LABELS[label], label == "both_bad"
