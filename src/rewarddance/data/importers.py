"""Import a user's own preferences to Parquet. Broken rows are listed; they stop the import or are skipped."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media, check_size
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import ReportProgress, progress
from rewarddance.core.runs import write_json
from rewarddance.data.parquet import row_of, write_rows
from rewarddance.data.readers import READERS, Format
from rewarddance.data.rows import Ambiguous, Draft, parse_row


@dataclass(frozen=True)
class ImportReport:
    """How many rows were accepted, and what is wrong with the others.

    Attributes:
        rejected: row number (from 1) and reason.
        repeated: choices that an earlier row already made: same prompt, criterion, pictures and preferred picture.
        contradicting: choices that prefer the other picture than an earlier row did. Both are kept, because people
            disagree.
        written: False if only `import.json` was written. A `train.parquet` beside it is then from an earlier import.
    """

    rows: int
    accepted: int
    rejected: tuple[tuple[int, str], ...]
    repeated: int = 0
    contradicting: int = 0
    written: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "accepted": self.accepted,
            "num_rejected": len(self.rejected),
            "num_repeated": self.repeated,
            "num_contradicting": self.contradicting,
            "written": self.written,
            "rejected": [{"row": n, "reason": why} for n, why in self.rejected],
        }

    def messages(self) -> list[str]:
        """Lines that a user should read."""
        lines = []
        if self.repeated:
            lines.append(f"{self.repeated} choices repeat an earlier row exactly (kept; each counts once more)")
        if self.contradicting:
            lines.append(f"{self.contradicting} choices prefer the other picture than an earlier row (both are kept)")
        return lines


class ChoiceCounter:
    """Counts choices that repeat or contradict an earlier choice of the same prompt, criterion and pictures."""

    def __init__(self) -> None:
        self.repeated = self.contradicting = 0
        self._sides: dict[tuple[str, str, bytes, bytes], set[bool | None]] = {}

    def add(self, draft: Draft, digests: list[bytes]) -> None:
        for choice in draft.choices:
            a, b = digests[choice.first], digests[choice.second]
            side = None if choice.label == 0.5 else (choice.label > 0.5) == (a < b)  # is the smaller digest better?
            earlier = self._sides.setdefault((draft.prompt, draft.criterion, min(a, b), max(a, b)), set())
            self.repeated += side in earlier
            self.contradicting += side is not None and (not side) in earlier
            earlier.add(side)


def _inside(root: Path, path: str) -> Path:
    """The file under the media root; refuses paths that leave it, through `..`, links or an absolute path."""
    base = root.resolve()
    resolved = (base / path).resolve()
    if not resolved.is_relative_to(base):
        raise InputError(f"{path}: outside the media root")
    return resolved


def load_draft(draft: Draft, root: Path) -> tuple[dict[str, Any], list[bytes]]:
    """Open every picture of a draft. Returns a Parquet row with the original files, and a digest of every file."""
    files = [_inside(root, p) for p in draft.paths]
    media = tuple(Media.open(f) for f in files)
    for m in media:
        check_size(*m.size, m.origin)
    contents = [f.read_bytes() for f in files]
    digests = [blake2b(c, digest_size=16).digest() for c in contents]
    for i, digest in enumerate(digests):
        first = digests.index(digest)
        if first < i:
            names = dict.fromkeys((draft.paths[first], draft.paths[i]))
            raise InputError(f"{' and '.join(names)}: the same picture twice")
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
    return row_of(record, contents), digests


def import_preferences(
    source: Path,
    format: Format,
    media_root: Path,
    out: Path,
    on_error: Literal["stop", "skip"] = "stop",
    criteria: Collection[str] = ("overall",),
) -> ImportReport:
    """Read `source` and write `out/train.parquet` and `out/import.json`.

    With `on_error="stop"` (the default) all broken rows are found and listed, and only the list is written.

    Args:
        criteria: accepted values of the column `criterion`. A row without it means "overall".

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
    counter = ChoiceCounter()
    numbered = list(READERS[format](source))

    def rows(report: ReportProgress) -> Iterator[dict[str, Any]]:
        for done, (number, row) in enumerate(numbered, 1):
            report(done, len(numbered))
            try:
                if isinstance(row, str):
                    raise InputError(row)
                draft = parse_row(row, number, criteria)
                loaded, digests = load_draft(draft, media_root)
            except Ambiguous as error:
                raise InputError(f"{source}: row {number}: {error}") from None
            except (InputError, ValueError, ArithmeticError, OSError, RuntimeError) as error:
                rejected.append((number, str(error)))
            else:
                counter.add(draft, digests)
                yield loaded

    target, unfinished = out / "train.parquet", out / "unfinished.parquet"
    with progress("rows") as bar:
        accepted = write_rows(rows(bar), unfinished)
    good = accepted > 0 and (not rejected or on_error == "skip")
    report = ImportReport(
        len(numbered), accepted, tuple(rejected), counter.repeated, counter.contradicting, written=good
    )
    write_json(out / "import.json", report.as_dict())
    if not good:
        unfinished.unlink()
        raise InputError(_why_nothing_was_written(source, out, report, [row for _, row in numbered]))
    unfinished.replace(target)
    return report


def _why_nothing_was_written(source: Path, out: Path, report: ImportReport, rows: list[dict[str, Any] | str]) -> str:
    line = f"{source}: {len(report.rejected)} of {report.rows} rows are broken"
    if report.accepted:
        line += " (--on-error skip leaves them out)"
    line += f", see {out / 'import.json'}"
    if report.rejected:
        line += "; first: row {}: {}".format(*report.rejected[0])
    columns = next((list(row) for row in rows if isinstance(row, dict)), [])
    if columns and not report.accepted:
        line += f"; the columns are {', '.join(map(repr, columns[:12]))}"
    if (out / "train.parquet").is_file():
        line += "; the train.parquet in that folder is from an earlier import"
    return line
