"""Invitations, sessions, CSRF tokens and rate limits. Tokens are random; the database holds their hashes only."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from rewarddance.apps.annotate.config import ServerConfig
from rewarddance.apps.annotate.models import Invitation, Login, Person

COOKIE = "desk"
ADMIN, ANNOTATOR = "admin", "annotator"
_SEEN_EVERY = 60.0
"""Seconds between writes of a session's last request."""


@dataclass(frozen=True)
class Who:
    """The person behind a request."""

    person: int
    role: str
    name: str
    csrf: str
    login: int
    excluded: bool


def hashed(token: str) -> str:
    """The hash of a token, which the database keeps. Tokens have 256 random bits, so a fast hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_person(session: Session, name: str, role: str, now: float) -> Person:
    """A person with the next free code (`person-3`), which exports use in place of the name."""
    number = int(session.scalar(select(func.coalesce(func.max(Person.id), 0))) or 0) + 1
    person = Person(role=role, name=name, code=f"person-{number}", created=now)
    session.add(person)
    session.flush()
    return person


def admin_of(session: Session, now: float) -> Person:
    """The desk's admin, made where there is none."""
    admin = session.scalar(select(Person).where(Person.role == ADMIN).limit(1))
    return admin or new_person(session, "admin", ADMIN, now)


def admin_link(session: Session, config: ServerConfig, now: float) -> str:
    """A new token for the admin's link. It ends the admin's earlier links and sessions."""
    person = admin_of(session, now)
    revoke(session, person.id)
    return invite(session, person, config, now)


def named(session: Session, name: str) -> Person | None:
    """The annotator of this name."""
    return session.scalar(select(Person).where(Person.role == ANNOTATOR, Person.name == name).limit(1))


def invite(session: Session, person: Person, config: ServerConfig, now: float) -> str:
    """A new token for a link. Earlier links of the person stay valid until they expire or are revoked."""
    token = secrets.token_urlsafe(32)
    expires = now + 86400 * config.invitation_days
    session.add(Invitation(person_id=person.id, token_hash=hashed(token), created=now, expires=expires))
    return token


def invited(session: Session, token: str, now: float) -> Person | None:
    """Whom an invitation is for; None where it is unknown, expired or revoked."""
    query = select(Invitation.person_id).where(Invitation.token_hash == hashed(token), Invitation.expires > now)
    person = session.scalar(query)
    return None if person is None else session.get(Person, person)


def revoke(session: Session, person: int) -> None:
    """End all links and sessions of a person."""
    session.execute(delete(Invitation).where(Invitation.person_id == person))
    session.execute(delete(Login).where(Login.person_id == person))


def log_in(session: Session, person: Person, now: float) -> str:
    """Begin a session. Returns the cookie."""
    cookie = secrets.token_urlsafe(32)
    login = Login(person_id=person.id, token_hash=hashed(cookie), csrf=secrets.token_urlsafe(32), created=now, seen=now)
    session.add(login)
    return cookie


def who_is(session: Session, cookie: str | None, config: ServerConfig, now: float) -> Who | None:
    """The person of a cookie; None where the session is unknown or has expired."""
    if not cookie:
        return None
    row = session.execute(select(Login, Person).join(Person).where(Login.token_hash == hashed(cookie))).first()
    if row is None:
        return None
    login, person = row
    idle, age = now - login.seen, now - login.created
    if idle > 3600 * config.session_hours or age > 3600 * config.longest_session_hours:
        return None
    return Who(person.id, person.role, person.name, login.csrf, login.id, person.excluded is not None)


def touch(session: Session, login: int, now: float) -> None:
    """Note that a session was used, at most once in `_SEEN_EVERY` seconds."""
    old = (Login.id == login) & (Login.seen < now - _SEEN_EVERY)
    session.execute(update(Login).where(old).values(seen=now))


def log_out(session: Session, login: int) -> None:
    """End a session."""
    session.execute(delete(Login).where(Login.id == login))


def same_token(given: str | None, expected: str) -> bool:
    """Compare tokens in constant time."""
    return given is not None and secrets.compare_digest(given.encode(), expected.encode())


class RateLimiter:
    """A token bucket for each key: `per_minute` requests at once, refilled evenly.

    It is kept in the process; `ServerConfig` says why.
    """

    MAX_KEYS = 10_000

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, key: str, now: float, take: bool = True) -> bool:
        """Whether the key's bucket has a request left. With `take` the request is taken from it."""
        with self._lock:
            left, last = self._buckets.pop(key, (float(self.per_minute), now))
            left = min(float(self.per_minute), left + (now - last) * self.per_minute / 60)
            self._buckets[key] = (left - 1 if take and left >= 1 else left, now)
            if len(self._buckets) > self.MAX_KEYS:
                self._buckets.popitem(last=False)
            return left >= 1
