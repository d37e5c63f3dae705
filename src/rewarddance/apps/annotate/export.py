"""Exports: the desk's judgements as records with votes, at any time, and as files of every format of `data export`."""

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
from rewarddance.apps.annotate.models import Picture, Record
from rewarddance.apps.annotate.reading import Given, judgements
from rewarddance.core.errors import InputError
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


def write_records(session: Session, out: Path) -> int:
    """Write `train.parquet`, with a manifest and a data card, to a folder that `train --data` takes.

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
    return count


def write_format(session: Session, format: Format, out: Path) -> dict[str, Any]:
    """Write a file of another format (`label-studio`, `csv`, ...), and its pictures beside it.

    Raises:
        InputError: nothing was judged yet, or no record fits the format.
    """
    from tempfile import TemporaryDirectory

    from rewarddance.data.export import export

    with TemporaryDirectory() as folder:
        write_records(session, Path(folder))
        return export(Path(folder) / "train.parquet", format, out)
