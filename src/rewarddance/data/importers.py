"""A user's own preferences to Parquet: every broken row is named, counted, and stops the import or is skipped."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media, check_size
from rewarddance.core.preferences import Choice, PreferenceRecord, from_ranking
from rewarddance.core.progress import Report, progress
from rewarddance.core.runs import write_json
from rewarddance.data.parquet import row_of, write_rows
from rewarddance.data.readers import READERS, Format

LABELS: dict[str, float] = {
    "a": 1.0, "b": 0.0, "tie": 0.5, "same": 0.5, "1": 1.0, "2": 0.0, "left": 1.0, "right": 0.0,
}  # fmt: skip
"""What a `label` may say, as the probability that the first picture is better."""


@dataclass(frozen=True)
class Draft:
    """A row understood but not yet loaded: paths are as the file gives them."""

    record_id: str
    prompt: str
    paths: tuple[str, ...]
    choices: tuple[Choice, ...]
    groups: dict[str, str] = field(default_factory=dict)
    criterion: str = "overall"
    ratings: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ImportReport:
    """What became of the rows; `rejected` holds (row number from 1, reason).

    Attributes:
        written: False where nothing was written but this; a `train.parquet` beside it is an earlier import's.
    """

    rows: int
    accepted: int
    rejected: tuple[tuple[int, str], ...]
    written: bool = True

    def as_dict(self) -> dict[str, Any]:
        listed = [{"row": n, "reason": why} for n, why in self.rejected]
        counts = {"rows": self.rows, "accepted": self.accepted, "num_rejected": len(listed)}
        return {**counts, "written": self.written, "rejected": listed}


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"empty or missing {key!r}")
    return value.strip()


LOWEST, HIGHEST = 1, 5
"""Of a rating."""
GROUPS = ("generator", "category", "style", "annotator")
"""Columns that say what a row belongs to; `train --leave-one-out` makes folds of them."""


def understand(row: dict[str, Any], number: int, criteria: Collection[str] = ("overall",)) -> Draft:
    """One row of any supported shape, with its groups and what its choice was about (column `criterion`).

    Raises:
        InputError: what is wrong with the row.
    """
    groups = {name: str(row[name]).strip() for name in GROUPS if row.get(name) not in (None, "")}
    criterion = str(row.get("criterion") or "overall")
    if criterion not in criteria:
        raise InputError(f"unknown criterion {criterion!r}; known: {', '.join(criteria)}")
    return replace(_preference(row, number), groups=groups, criterion=criterion)


def _preference(row: dict[str, Any], number: int) -> Draft:
    """One row of any supported shape.

    Shapes: prompt with `image_a`, `image_b` and `label` (a, b, tie), `probability` (of the first) or `votes_a` and
    `votes_b`, or `rating_a` and `rating_b` (1 to 5, higher is better); with `chosen`, `rejected`; with `images` (or
    `generations`) and `ranking` (lower is better, equal is a tie) or `ratings`.

    Raises:
        InputError: what is wrong with the row.
    """
    prompt, name = _text(row, "prompt"), str(row.get("id") or f"row-{number}")
    if len(shapes := _given(row, "image_a", "chosen", "images", "generations")) > 1:
        raise InputError(f"both {shapes[0]} and {shapes[1]}: keep one of them")
    if "image_a" in row or "image_b" in row:
        paths = _text(row, "image_a"), _text(row, "image_b")
        if _given(row, "rating_a", "rating_b"):
            _alone(row, "ratings", "label", "probability", "votes_a", "votes_b")
            return _rated(name, prompt, paths, [row.get("rating_a"), row.get("rating_b")])
        return Draft(name, prompt, paths, (Choice(0, 1, _label(row)),))
    if "chosen" in row or "rejected" in row:
        return Draft(name, prompt, (_text(row, "chosen"), _text(row, "rejected")), (Choice(0, 1, 1.0),))
    images = row.get("images", row.get("generations"))
    rated, given = ("ratings", row["ratings"]) if _given(row, "ratings") else ("ranks", row.get("ranking"))
    if rated == "ratings":
        _alone(row, "ratings", "ranking")
    if not isinstance(images, list) or not isinstance(given, list):
        raise InputError("no preference: needs image_a/image_b/label, chosen/rejected, or images/ranking (or ratings)")
    if len(images) != len(given) or len(images) < 2:
        raise InputError(f"{len(images)} images and {len(given)} {rated}; needs two or more of each, as many of both")
    if not all(isinstance(p, str) for p in images):
        raise InputError("images must be paths")
    return _rated(name, prompt, tuple(images), given) if rated == "ratings" else _ranked(name, prompt, images, given)


def _ranked(name: str, prompt: str, images: list[str], ranking: list[Any]) -> Draft:
    if not all(isinstance(r, int | float) for r in ranking):
        raise InputError("ranks must be numbers")
    return Draft(name, prompt, tuple(images), from_ranking([_number(r, "rank") for r in ranking]))


def _given(row: dict[str, Any], *columns: str) -> list[str]:
    """Those of the columns that say something."""
    return [c for c in columns if row.get(c) not in (None, "")]


def _alone(row: dict[str, Any], name: str, *others: str) -> None:
    """Refuse a row that says twice which picture is better."""
    if _given(row, *others):
        raise InputError(f"both {name} and {_given(row, *others)[0]}: keep one of them")


def _rated(name: str, prompt: str, images: tuple[str, ...], given: list[Any]) -> Draft:
    """Pictures with a mean rating each: the ratings for `regression`, and the choices that they imply."""
    ratings = tuple(_number(r, "rating") for r in given)
    wrong = [r for r in ratings if not LOWEST <= r <= HIGHEST]
    if wrong:
        raise InputError(f"rating {wrong[0]:g} is not between {LOWEST} and {HIGHEST}; rescale them")
    return Draft(name, prompt, images, from_ranking([-r for r in ratings]), ratings=ratings)


def _label(row: dict[str, Any]) -> float:
    """Probability that the first picture is better: of `probability`, votes and `label` the first that is given.

    Raises:
        InputError: none is given, or two of them prefer different pictures.
    """
    said: dict[str, float] = {}
    if _given(row, "probability"):
        said["probability"] = _number(row["probability"], "probability")
        if not 0 <= said["probability"] <= 1:
            raise InputError(f"probability {said['probability']} is not between 0 and 1")
    if _given(row, "votes_a"):
        votes = _number(row["votes_a"], "votes_a"), _number(row.get("votes_b"), "votes_b")
        if min(votes) < 0 or sum(votes) == 0:
            raise InputError(f"votes {votes[0]:g} and {votes[1]:g}: needs one or more, none negative")
        said["votes"] = votes[0] / sum(votes)
    if _given(row, "label") or not said:
        said["label"] = _word(row.get("label"))
    first, *others = said
    for other in others:
        if (said[first] - 0.5) * (said[other] - 0.5) < 0:
            raise InputError(f"{first} and {other} prefer different pictures")
    return said[first]


def _word(given: Any) -> float:
    label = _text({"label": "" if given is None else str(given)}, "label").lower()
    if label in ("0", "0.0"):
        raise Ambiguous("label 0: some files count pictures from 0, others mean 'the second'; write a, b or tie")
    if label not in LABELS:
        raise InputError(f"unknown label {label!r}; use a, b or tie, or a column `probability` (of the first)")
    return LABELS[label]


def _number(value: Any, name: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} {str(value)[:40]!r} is not a number") from None
    if not math.isfinite(found):
        raise InputError(f"{name} {value!r} is not a finite number")
    return found


class Ambiguous(InputError):
    """A row that makes the meaning of all others doubtful: nothing is imported, whatever `on_error` says."""


def _inside(root: Path, path: str) -> Path:
    """The file under the media root; refuses paths that leave it, through `..`, links or an absolute path."""
    base = root.resolve()
    found = (base / path).resolve()
    if not found.is_relative_to(base):
        raise InputError(f"{path}: outside the media root")
    return found


def load(draft: Draft, root: Path) -> dict[str, Any]:
    """Open every picture of a draft; a Parquet row with the original files."""
    files = [_inside(root, p) for p in draft.paths]
    twice = [p for p, f in zip(draft.paths, files, strict=True) if files.count(f) > 1]
    if twice:
        raise InputError(f"{twice[0]}: the same picture twice")
    media = tuple(Media.open(f) for f in files)
    for m in media:
        check_size(*m.size, m.origin)
    record = PreferenceRecord(
        draft.record_id,
        draft.prompt,
        media,
        draft.choices,
        draft.criterion,
        "import",
        ratings=draft.ratings,
        groups=draft.groups,
    )
    return row_of(record, [f.read_bytes() for f in files])


def import_preferences(
    source: Path,
    format: Format,
    media_root: Path,
    out: Path,
    on_error: Literal["stop", "skip"] = "stop",
    criteria: Collection[str] = ("overall",),
) -> ImportReport:
    """Read `source` and write `out/train.parquet` and `out/import.json`.

    With `on_error="stop"` (the default) broken rows are still all found and listed, and nothing but the list is
    written.

    Args:
        criteria: what a column `criterion` may say; "overall" where there is none.

    Raises:
        InputError: the file cannot be read, no row is left, rows are broken and `on_error` is "stop", or `out` holds
            data of `rewarddance data build`.
    """
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    if not media_root.is_dir():
        raise InputError(f"{media_root}: the media root is not a folder")
    if (out / "data.json").is_file():
        raise InputError(f"{out}: holds data of `rewarddance data build`; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    rejected: list[tuple[int, str]] = []
    given = list(READERS[format](source))

    def rows(report: Report) -> Iterator[dict[str, Any]]:
        for done, (number, row) in enumerate(given, 1):
            report(done, len(given))
            try:
                if isinstance(row, str):
                    raise InputError(row)
                yield load(understand(row, number, criteria), media_root)
            except Ambiguous as error:
                raise InputError(f"{source}: row {number}: {error}") from None
            except (InputError, ValueError, ArithmeticError, OSError, RuntimeError) as error:
                rejected.append((number, str(error)))

    target = out / "train.parquet"
    held = out / "unfinished.parquet"
    with progress("rows") as bar:
        accepted = write_rows(rows(bar), held)
    good = accepted > 0 and (not rejected or on_error == "skip")
    report = ImportReport(len(given), accepted, tuple(rejected), good)
    write_json(out / "import.json", report.as_dict())
    if not good:
        held.unlink()
        first = f"; first: row {rejected[0][0]}: {rejected[0][1]}" if rejected else ""
        hint = " (--on-error skip leaves them out)" if accepted else ""
        raise InputError(
            f"{source}: {len(rejected)} of {len(given)} rows are broken{hint}, see {out / 'import.json'}{first}"
            f"{'; train.parquet there is of an earlier import' if target.is_file() else ''}"
        )
    held.replace(target)
    return report
