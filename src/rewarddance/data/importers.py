"""Import preferences to Parquet. Every broken row is named and counted; it stops the import or is skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rewarddance.core.errors import InputError
from rewarddance.core.progress import progress
from rewarddance.core.runs import write_json
from rewarddance.data.derive import pairwise
from rewarddance.data.drafts import Ambiguous, Draft, Skipped
from rewarddance.data.files import estimated_rows
from rewarddance.data.folder import describe_folder
from rewarddance.data.images import first_rows
from rewarddance.data.loading import load
from rewarddance.data.names import Format
from rewarddance.data.readers import READERS, detect, drafts
from rewarddance.data.schema import row_of_votes
from rewarddance.data.shards import split_files, write_shards
from rewarddance.data.text import key_of
from rewarddance.data.votes import VotedRecord


@dataclass
class ImportReport:
    """The result of an import.

    Attributes:
        rejected: row number (from 1) and reason.
        skipped: rows that the format itself marks as not judgements, by reason.
        repeated: choices that an earlier row already made: same prompt, criterion, pictures and preferred picture.
        contradicting: choices that prefer the other picture than an earlier row did. Both are kept: people disagree.
        detected: why `format` was chosen, where it was not given.
        written: False if only `import.json` was written. A `train.parquet` beside it is then from an earlier import.
    """

    format: str
    detected: str | None = None
    rows: int = 0
    accepted: int = 0
    rejected: list[tuple[int, str]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    contradicting: int = 0
    clips: int = 0
    systems: int = 0
    without_prompt: int = 0
    without_votes: int = 0
    criteria: dict[str, None] = field(default_factory=dict)
    written: bool = True

    def note(self, record: VotedRecord) -> None:
        """Count an accepted record."""
        self.accepted += 1
        kinds = {m.kind for m in record.candidates}
        self.clips += any(m.kind == "video" and m.data is None for m in record.candidates)
        self.systems += "none" in kinds
        self.without_prompt += not record.prompt
        self.without_votes += not record.votes
        self.criteria |= dict.fromkeys(v.criterion for v in record.votes)

    def as_dict(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "detected": self.detected,
            "rows": self.rows,
            "accepted": self.accepted,
            "num_rejected": len(self.rejected),
            "num_skipped": sum(self.skipped.values()),
            "skipped": dict(self.skipped),
            "num_repeated": self.repeated,
            "num_contradicting": self.contradicting,
            "criteria": list(self.criteria),
            "written": self.written,
            "rejected": [{"row": n, "reason": why} for n, why in self.rejected],
        }

    def messages(self, known: Collection[str] = ()) -> list[str]:
        """Lines that a user should read. `known` are the criteria that templates have words for."""
        lines = []
        if self.detected:
            lines.append(f"took the file for {self.format}: {self.detected}")
        if self.skipped:
            each = ", ".join(f"{n} x {why}" for why, n in self.skipped.most_common(3))
            lines.append(f"{sum(self.skipped.values())} rows are no judgements and were passed over ({each})")
        if self.repeated:
            lines.append(f"{self.repeated} choices repeat an earlier row exactly (kept; each counts once more)")
        if self.contradicting:
            lines.append(f"{self.contradicting} choices prefer the other picture than an earlier row (both are kept)")
        if self.clips:
            lines.append(
                f"{self.clips} records are of clips, kept as references to their files: `data stats`, `data split` and "
                "`data export` read them; for training and scoring import with --store-clips"
            )
        if self.systems:
            lines.append(f"{self.systems} records compare systems without pictures: `data stats` rates the systems")
        if self.without_prompt:
            lines.append(f"{self.without_prompt} records have no prompt, since the file gives none")
        if self.without_votes and self.without_votes == self.accepted:
            lines.append(
                "no row states a preference (a label, say): `annotate` asks people about the pictures, and "
                "`data select` ranks their pairs"
            )
        elif self.without_votes:
            lines.append(
                f"{self.without_votes} records have no votes: training passes over them, `data select` ranks them"
            )
        unworded = [c for c in self.criteria if known and c not in known]
        if unworded:
            lines.append(f"no words for the criteria {', '.join(unworded)}: train with --context.instructions")
        return lines


class ChoiceCounter:
    """Counts choices that repeat or contradict an earlier choice of the same prompt, criterion and pictures."""

    def __init__(self) -> None:
        self.repeated = self.contradicting = 0
        self._sides: dict[bytes, int] = {}  # by prompt, criterion and pictures: the sum of the sides that were chosen

    def add(self, record: VotedRecord) -> None:
        names = [m.sha256 or m.path for m in record.candidates]
        for single in (s for vote in record.votes for s in pairwise(vote)):
            a, b = (names[i] for i in single.media)
            if a is None or b is None or single.weight != 1:
                continue
            label = single.values[0]
            side = 1 if label == 0.5 else 2 if (label > 0.5) == (a < b) else 4  # a tie, the smaller or the larger name
            key = key_of(record.prompt, single.criterion, min(a, b), max(a, b))
            earlier = self._sides.get(key, 0)
            self.repeated += bool(earlier & side)
            self.contradicting += side > 1 and bool(earlier & (6 - side))
            self._sides[key] = earlier | side


def import_preferences(
    source: Path,
    format: Format | Literal["auto"],
    media_root: Path,
    out: Path,
    on_error: Literal["stop", "skip"] = "stop",
    criteria: Collection[str] = ("overall",),
    shard_bytes: int | None = None,
    store_clips: bool = False,
) -> ImportReport:
    """Read `source` and write `out/train.parquet` (or its shards), `manifest.json`, `README.md` and `import.json`.

    With `on_error="stop"` (the default) all broken rows are found and listed, and only the list is written. Rows are
    read one at a time. A picture that several rows show is stored in each of these rows.

    Args:
        format: a name of `READERS`, or `auto` to tell it by the first rows.
        criteria: accepted values of the column `criterion` of own rows. A row without it means "overall". The criteria
            of public formats are always accepted.
        store_clips: open clips and keep their files in the data, so that judges can be trained on them. Without it a
            record names its clips.
        shard_bytes: size of pictures at which a new file begins; `shards.SHARD_BYTES` where None.

    Raises:
        InputError: the file cannot be read, no row is left, rows are broken and `on_error` is "stop", or `out` holds
            data of `rewarddance data build`.
    """
    _check_places(source, media_root, out)
    taken = detect(source) if format == "auto" else None
    name: Format = taken.format if taken else format  # type: ignore[assignment]
    report = ImportReport(name, taken.reason if taken else None)
    out.mkdir(parents=True, exist_ok=True)
    counter = ChoiceCounter()
    total = estimated_rows(source)

    def rows() -> Iterator[dict[str, Any]]:
        with progress("rows") as bar:
            for place, draft in drafts(source, name):
                report.rows += 1
                bar(report.rows, max(total, report.rows + 1))
                record = _accepted(
                    draft, place, report, media_root, None if store_clips else out / "clips", criteria, source
                )
                if record is not None:
                    counter.add(record)
                    report.note(record)
                    yield row_of_votes(record)
        report.repeated, report.contradicting = counter.repeated, counter.contradicting
        if not report.accepted or (report.rejected and on_error == "stop"):
            report.written = False
            write_json(out / "import.json", report.as_dict())
            raise InputError(_why_nothing_was_written(source, out, report, name))

    files = write_shards(rows(), out / "train.parquet", shard_bytes)
    facts = {"file": source.name, "format": name, "media_root": str(media_root.resolve())}
    describe_folder(out, {"imported": facts | {k: v for k, v in report.as_dict().items() if k != "rejected"}})
    write_json(out / "import.json", report.as_dict() | {"files": [f.name for f in files]})
    return report


def _check_places(source: Path, media_root: Path, out: Path) -> None:
    """Raises `InputError` where there is nothing to read, or where writing would destroy other data."""
    if not source.exists():
        raise InputError(f"{source}: no such file")
    if not media_root.is_dir():
        raise InputError(f"{media_root}: the media root is not a folder")
    if (out / "data.json").is_file():
        raise InputError(f"{out}: holds data of `rewarddance data build`; choose another --out")


def _accepted(
    draft: Draft | InputError,
    place: int,
    report: ImportReport,
    media_root: Path,
    clips: Path | None,
    criteria: Collection[str],
    source: Path,
) -> VotedRecord | None:
    """The record of a row; None where the row is broken or not a judgement, which the report then counts.

    Args:
        clips: folder for clips that the source holds the bytes of; None stores all clips in the record.
    """
    try:
        if isinstance(draft, InputError):
            raise draft
        for vote in draft.record.votes if draft.own_criteria else ():
            if vote.criterion not in criteria:
                raise InputError(f"unknown criterion {vote.criterion!r}; known: {', '.join(criteria)}")
        record = load(draft, media_root, clips, store_clips=clips is None)
        return record if record.source or draft.own_criteria else replace(record, source=report.format)
    except Ambiguous as error:
        raise InputError(f"{source}: row {place}: {error}") from None
    except Skipped as error:
        report.skipped[str(error)] += 1
    except (InputError, ValueError, ArithmeticError, OSError, RuntimeError) as error:
        report.rejected.append((place, str(error)))
    return None


def _why_nothing_was_written(source: Path, out: Path, report: ImportReport, name: Format) -> str:
    line = f"{source}: {len(report.rejected)} of {report.rows} rows are broken"
    if report.accepted:
        line += " (--on-error skip leaves them out)"
    line += f", see {out / 'import.json'}"
    if report.rejected:
        line += "; first: row {}: {}".format(*report.rejected[0])
    elif report.skipped:
        line += f"; the others are no judgements ({report.skipped.most_common(1)[0][0]})"
    if not report.accepted:
        columns = list(next(iter(first_rows(READERS[name].rows(source), 1)), {}))
        line += f"; the columns are {', '.join(map(repr, columns[:12]))}" if columns else ""
    if split_files(out / "train.parquet"):
        line += "; the train.parquet in that folder is from an earlier import"
    return line
