"""Exports: the desk's judgements as records with votes, at any time, and as files of every format of `data export`.

`raters.json` beside them holds the model of raters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from rewarddance.apps.annotate.answers import votes_of
from rewarddance.apps.annotate.filling import settings_of
from rewarddance.apps.annotate.models import Item, Picture, Record
from rewarddance.apps.annotate.quality import CLASSES, rater_models
from rewarddance.apps.annotate.reading import Given, judgements
from rewarddance.core.errors import InputError
from rewarddance.core.runs import write_json
from rewarddance.data.votes import Vote, VotedRecord

if TYPE_CHECKING:
    from rewarddance.data.names import Format


def voted_records(session: Session, pictures: bool = True) -> Iterator[VotedRecord]:
    """The records that were judged, with their votes.

    Checks, repeats, withdrawn judgements and those of excluded people are left out. If a person judged an item twice,
    the first judgement counts.

    Args:
        pictures: also the encoded files, as they came into the desk.
    """
    config = settings_of(session)
    by_record: dict[int, list[Given]] = defaultdict(list)
    for given in judgements(session):
        if given.counts:
            by_record[given.record].append(given)
    for record_id in sorted(by_record):
        votes = []
        for given in by_record[record_id]:
            created = datetime.fromtimestamp(given.created, UTC).isoformat()
            facts: dict[str, Any] = {"annotator": given.code, "created": created, "seconds": given.seconds}
            votes += votes_of(given.answers, given.members, given.order, config, **facts)
        yield voted_record(session, record_id, votes, pictures)


def voted_record(session: Session, record_id: int, votes: Sequence[Vote] = (), pictures: bool = True) -> VotedRecord:
    """A record of the desk with these votes."""
    from rewarddance.data.schema import media_of

    record = session.get_one(Record, record_id)
    media = []
    for row in record.media:
        query = select(Picture.content).where(Picture.sha256 == row["sha256"])
        media.append(media_of(row, session.scalar(query) if pictures else None))
    facts = record.facts
    truth = tuple(facts["truth"]) if facts.get("truth") else None
    source = facts.get("source") or "rewarddance annotate"
    session.expunge(record)
    return VotedRecord(record.name, record.prompt, tuple(media), tuple(votes), source, truth, facts["groups"])


def raters(session: Session) -> dict[str, Any]:
    """Dawid and Skene's model by criterion, for comparisons and rankings; empty for ratings.

    Returns:
        By criterion: `reliability` of each annotator (1 is always right, 0 is blind, -1 is always the opposite), and
        `pairs`: the record, its two candidates (numbers from 0), the majority's label, the model's label, and the
        model's probability that the first is better, that the second is, and that it is a tie.
    """
    fits = rater_models(list(judgements(session)), settings_of(session))
    query = select(Item.id, Record.name).join(Record, Record.id == Item.record_id)
    records = {item: name for item, name in session.execute(query)}  # noqa: C416
    return {
        name: {
            "reliability": fit.reliability,
            "pairs": [
                {"record": records[p.unit[0]], "candidates": list(p.unit[1:])}
                | {"majority": p.as_words()["majority"], "model": p.as_words()["model"]}
                | {"posterior": dict(zip(CLASSES, p.posterior, strict=True))}
                for p in fit.pairs
            ],
        }
        for name, fit in fits.items()
    }


def _write_raters(session: Session, out: Path) -> None:
    made = raters(session)
    if made:
        write_json(out / "raters.json", made)
    else:
        (out / "raters.json").unlink(missing_ok=True)


def write_records(session: Session, out: Path) -> int:
    """Write `train.parquet`, with a manifest, a data card and `raters.json`, to a folder that `train --data` takes.

    Returns the number of records.

    Raises:
        InputError: nothing was judged yet.
    """
    from rewarddance.data.folder import describe_folder
    from rewarddance.data.schema import row_of_votes
    from rewarddance.data.shards import write_shards

    count = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count
        for record in voted_records(session):
            count += 1
            yield row_of_votes(record)
        if not count:
            raise InputError("nothing was judged yet, so there is nothing to export")

    out.mkdir(parents=True, exist_ok=True)
    write_shards(rows(), out / "train.parquet")
    describe_folder(out, {"desk": settings_of(session).model_dump(mode="json")})
    _write_raters(session, out)
    return count


def write_format(session: Session, format: Format, out: Path) -> dict[str, Any]:
    """Write a file of another format (`label-studio`, `csv`, ...), its pictures and `raters.json` beside it.

    Raises:
        InputError: nothing was judged yet, or no record fits the format.
    """
    from tempfile import TemporaryDirectory

    from rewarddance.data.export import export

    with TemporaryDirectory() as folder:
        write_records(session, Path(folder))
        made = export(Path(folder) / "train.parquet", format, out)
    _write_raters(session, out)
    return made
