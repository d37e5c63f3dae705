"""Tables of a desk (SQLAlchemy 2). All times are seconds since 1970. `migrations/` creates them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Double, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, float: Double()}


class Desk(Base):
    """The settings; one row.

    Attributes:
        source: name, size and time of the data files: a restart need not read them.
        order_owner: the server that ordered the pairs (`ordering.py`); order_until: the order is its own until then.
            None without such a server.
    """

    __tablename__ = "desk"
    id: Mapped[int] = mapped_column(primary_key=True)
    settings: Mapped[dict[str, Any]]
    source: Mapped[list[Any]]
    created: Mapped[float]
    order_owner: Mapped[str | None] = mapped_column(String(32))
    order_until: Mapped[float | None]


class Picture(Base):
    """An encoded picture or clip as it came. People see only a copy that is encoded again (`media.py`, `clips.py`)."""

    __tablename__ = "picture"
    id: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    content: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)


class Record(Base):
    """A record of the data.

    Attributes:
        media: rows of `data.schema.media_row`.
        facts: source, groups and truth. `sizes`: width and height of all pictures among the candidates; all are shown
            in the largest width and height. `clips` where candidates are clips: a `clips.Shape` as a dictionary for
            each candidate, and None for a picture.
    """

    __tablename__ = "record"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    prompt: Mapped[str] = mapped_column(Text)
    media: Mapped[list[Any]]
    facts: Mapped[dict[str, Any]]


class Item(Base):
    """An item: the pictures that are judged together.

    Attributes:
        members: places of the pictures among the record's candidates.
        pictures: ids of the pictures. In a check one of them is noise.
        noise: place in `pictures` of the noise of a check; None for an item that counts.
        place: when it is shown, as `ordering.py` says; None where the order is random.
    """

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    record_id: Mapped[int] = mapped_column(ForeignKey("record.id"), index=True)
    members: Mapped[list[Any]]
    pictures: Mapped[list[Any]]
    noise: Mapped[int | None]
    place: Mapped[int | None]


class Person(Base):
    """An annotator or admin. Exports call people by `code` only."""

    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(Text)
    code: Mapped[str] = mapped_column(String(32), unique=True)
    created: Mapped[float]
    excluded: Mapped[float | None]
    reason: Mapped[str | None] = mapped_column(Text)


class Invitation(Base):
    """A link that logs a person in. Only the hash of its token is kept."""

    __tablename__ = "invitation"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[float]
    expires: Mapped[float]


class Login(Base):
    """A session. Only the hash of its cookie is kept."""

    __tablename__ = "login"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    csrf: Mapped[str] = mapped_column(String(64))
    created: Mapped[float]
    seen: Mapped[float]


class Assignment(Base):
    """An item that was given to a person; `again` is 1 when it is repeated.

    Attributes:
        token: its public name.
        order: places in the item's `pictures` from left to right, as the server drew them.
        lease_until: until this time nobody else gets the place.
    """

    __tablename__ = "assignment"
    __table_args__ = (
        UniqueConstraint("item_id", "person_id", "again"),
        Index("ix_assignment_open", "person_id", "done"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(String(32), unique=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("item.id"), index=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    again: Mapped[int] = mapped_column(default=0)
    order: Mapped[list[Any]] = mapped_column("shown_order")
    created: Mapped[float]
    lease_until: Mapped[float]
    done: Mapped[bool] = mapped_column(default=False)


class Shown(Base):
    """A random id under which one person sees one picture of one assignment.

    Attributes:
        place: from left to right. The pictures that the candidates were made from come after them.
    """

    __tablename__ = "shown"
    token: Mapped[str] = mapped_column(String(32), primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"), index=True)
    place: Mapped[int]
    picture_id: Mapped[int] = mapped_column(ForeignKey("picture.id"))


class Judgement(Base):
    """An answer. Undo sets `withdrawn`; nothing is deleted.

    Attributes:
        key: chosen by the client, so that a request that is sent again is stored once.
        answers: by criterion, by places on the page (`answers.Answer`).
    """

    __tablename__ = "judgement"
    __table_args__ = (
        UniqueConstraint("person_id", "key"),
        Index(
            "ix_judgement_standing",
            "assignment_id",
            unique=True,
            sqlite_where=text("withdrawn IS NULL"),
            postgresql_where=text("withdrawn IS NULL"),
        ),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"), index=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    key: Mapped[str] = mapped_column(String(64))
    answers: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    created: Mapped[float]
    withdrawn: Mapped[float | None]
