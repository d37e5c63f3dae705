"""`rewarddance annotate`: pages on which people judge pictures and clips, and the export of their judgements."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rewarddance.apps.annotate.config import DeskConfig, ServerConfig, Task
from rewarddance.apps.commands import show
from rewarddance.apps.flags import Count, Flags, Least, SomeCount, need
from rewarddance.core.config import parse_config
from rewarddance.core.errors import ConfigError
from rewarddance.core.progress import progress, say
from rewarddance.data.names import Format, Strategy

if TYPE_CHECKING:
    from rewarddance.apps.annotate.database import Database
    from rewarddance.apps.annotate.filling import Filled

DATABASE = "desk.db"
"""File in the data folder that holds the desk if no database is named."""


def database_of(data: Path, given: str | None) -> str:
    """The address of a desk's database: the one that was given, or a file in (or beside) the data."""
    folder = data if data.is_dir() else data.parent
    return given or f"sqlite:///{(folder / DATABASE).resolve()}"


@dataclass(frozen=True)
class Annotate(Flags):
    """Serve pages on which people judge pictures or clips. A database keeps every judgement that was saved.

    People log in by personal links. They see pictures without names of systems or files, on sides that the server
    draws. When the server starts, it prints links for --invite and one for the admin page, which shows progress,
    agreement, people, further links and exports. A new admin link ends the earlier ones. A desk keeps its settings: a
    later start changes only those that it names. Several servers may share one database. Ctrl-C stops the server.

    Example: rewarddance annotate data/pool --invite ada ben --judgements 2

    Example: rewarddance annotate data/pool --invite ada --judges runs/judge --strategy uncertainty

    Example: rewarddance annotate data/pool --database postgresql://desk@db/desk --host 0.0.0.0 --port 8000
    """

    data: tyro.conf.Positional[Path]
    """A data folder or Parquet file: of `data build --prompts`, `data import`, `data select` or `ab create`."""
    database: str | None = None
    """sqlite:///FILE or postgresql://USER@HOST/NAME; `desk.db` in the data folder when not given."""
    task: Task | None = None
    """Compare two pictures (the default), rate each from 1 to 5, or rank all pictures of a prompt."""
    criteria: tuple[str, ...] = ()
    """Criteria that people are asked about; `overall` by default, or four criteria for ratings."""
    judgements: SomeCount = None
    """People who judge each item; 3 by default, or as given to `ab create`."""
    checks: float | None = None
    """Share of attention checks, where one of the pictures is noise; 0.05 by default."""
    repeats: float | None = None
    """Share of items that the same person sees again, with the sides exchanged; 0.05 by default."""
    most_pairs: SomeCount = None
    """Largest number of pairs of one prompt, drawn at random; all by default."""
    lease_minutes: float | None = None
    """Time after which an item that somebody left open goes to somebody else; 15 by default."""
    whole_items_first: bool | None = None
    """Finish an item before the next one begins; False by default, True for desks of `ab create`."""
    judges: tuple[str, ...] = ()
    """Judges that decide which pairs come first; names as in `score --judge`. Pairs of clips need a judge of clips.
    Without judges and `--strategy` the order is random, unless another server on the same database orders the pairs.
    Ratings and rankings always come in random order."""
    strategy: Strategy | None = None
    """The rule by which pairs are chosen, as in `data select`; mixed by default. `coverage` and `random` need no
    judges."""
    order_minutes: Annotated[float, Least(0.01)] = 10.0
    """Minutes after which the judges are loaded and asked again, so that a new version of a judge is used."""
    invite: tuple[str, ...] = ()
    """Names of people to invite; a link is printed for each, also for people who were invited before."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. Put a proxy with TLS before a public one."""
    port: Count = 8000
    url: str | None = None
    """The beginning of links, if people reach the server by another address."""
    session_hours: float = 12.0
    """A session ends after this time without a request."""
    requests_per_minute: Count = 240
    """Limit of one person at one server. Several servers on one database count apart."""
    seed: int | None = None
    """Seed of the drawn pairs, checks and repeats; 0 by default."""

    def run(self) -> None:
        import uvicorn

        from rewarddance.apps.annotate.app import create_app
        from rewarddance.apps.annotate.database import open_database
        from rewarddance.apps.annotate.filling import fill

        config, server = self._config(), self._server()
        self._check_order(config)
        with closing(open_database(database_of(self.data, self.database))) as database:
            with progress("records") as bar:
                filled = fill(database, self.data, config, lambda n: bar(n, n + 1), self._settings().keys())
            self._tell(filled, config)
            with self._order(database):  # fails on a wrong judge before a new admin link disables earlier ones
                base = self.url or f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"
                for name, link in self._links(database, server, base.rstrip("/")).items():
                    print(f"{name}: {link}", flush=True)
                # the access log would hold the tokens of links
                quiet: dict[str, Any] = {"access_log": False, "log_level": "warning", "server_header": False}
                uvicorn.run(create_app(database, server), host=self.host, port=self.port, **quiet)

    @property
    def _is_ordered(self) -> bool:
        """Whether a rule decides which pairs come first."""
        return bool(self.judges) or self.strategy is not None

    def _check_order(self, config: DeskConfig) -> None:
        """Raises an error if the flags of the order are wrong."""
        if not self._is_ordered:
            return
        from rewarddance.jobs.data.select import check_judges

        need(
            config.task == "pairwise",
            f"annotate: an order by --judges or --strategy is for pairs, but this desk asks for a {config.task}, and "
            "ratings and rankings come in random order",
        )
        study = (self.data / "study.json").is_file()
        need(not study, "annotate: a study of `ab create` has a random order; leave out --judges and --strategy")
        check_judges(self.strategy or "mixed", len(self.judges))

    def _order(self, database: Database) -> AbstractContextManager[None]:
        """Keeps the pairs in the order of the rule; without a rule the order is random."""
        from rewarddance.apps.annotate.filling import settings_of
        from rewarddance.apps.annotate.ordering import forget_order, kept_in_order

        if not self._is_ordered:
            forget_order(database)  # one that a server left when it was killed, not one of a server that runs
            return nullcontext()
        from rewarddance.jobs.data.select import judges_needed
        from rewarddance.jobs.load import load_judge

        with database.read() as session:
            config = settings_of(session)
        self._check_order(config)  # an existing desk keeps its settings, whatever the flags' defaults
        strategy = self.strategy or "mixed"
        asked = dict.fromkeys(self.judges) if judges_needed(strategy) else {}
        judges = lambda: {name: load_judge(name) for name in asked}  # noqa: E731
        return kept_in_order(database, judges, strategy, self.order_minutes, config.seed)

    def _tell(self, filled: Filled, config: DeskConfig) -> None:
        say(f"{filled.records} new records, {filled.items} new items, {filled.checks} new checks")
        if filled.passed_over:
            say(f"{filled.passed_over} records have no two different pictures, and were left out")
        for name, (before, now) in filled.changed.items():
            say(f"changed {name} of the desk from {before} to {now}")
        if filled.records and config.checks and not config.checked:
            say(f"no attention checks: noise may rightly win by {', '.join(config.asked)}")

    def _settings(self) -> dict[str, Any]:
        """The settings of the desk that were given."""
        return {name: getattr(self, name) for name in DeskConfig.model_fields if name in self.given()}

    def _config(self) -> DeskConfig:
        given, study = self._settings(), {}
        if (self.data / "study.json").is_file():
            content = json.loads((self.data / "study.json").read_text())
            study = {"judgements": content["judgements"], "criteria": content["criteria"], "whole_items_first": True}
            criteria = list(given.get("criteria", study["criteria"]))
            if given.get("task", "pairwise") != "pairwise" or criteria != study["criteria"]:
                raise ConfigError(f"annotate: {self.data} is a study of pairs by {', '.join(study['criteria'])}")
        return parse_config(DeskConfig, {**study, **given}, "annotate")

    def _server(self) -> ServerConfig:
        values = {name: getattr(self, name) for name in ("session_hours", "requests_per_minute", "url")}
        return parse_config(ServerConfig, values, "annotate")

    def _links(self, database: Database, server: ServerConfig, base: str) -> dict[str, str]:
        import time

        from rewarddance.apps.annotate import auth

        if "admin" in self.invite:
            raise ConfigError("annotate: --invite admin: choose another name; the admin has a link of their own")
        now = time.time()
        with database.write() as session:
            tokens = {"admin": auth.admin_link(session, server, now)}
            for name in self.invite:
                person = auth.named(session, name) or auth.new_person(session, name, auth.ANNOTATOR, now)
                tokens[name] = auth.invite(session, person, server, now)
            return {name: f"{base}/join/{token}" for name, token in tokens.items()}


@dataclass(frozen=True)
class AnnotateExport(Flags):
    """Write the judgements so far, while the server runs or later. `train --data OUT` takes `records`.

    It leaves out attention checks, repeats, withdrawn judgements, and judgements of excluded people.
    `raters.json` holds Dawid and Skene's model of raters for each criterion of comparisons and rankings.

    Example: rewarddance annotate export --database sqlite:///data/pool/desk.db --out data/judged
    """

    database: str
    """Address of the desk's database."""
    out: Path
    """Folder to write."""
    format: Literal["records"] | Format = "records"
    """`records` is a data folder; the others are those of `data export`, such as `label-studio`."""

    def run(self) -> None:
        from rewarddance.apps.annotate.database import open_database
        from rewarddance.apps.annotate.export import write_format, write_records

        with closing(open_database(self.database)) as database, database.read() as session:
            if self.format == "records":
                show({"records": write_records(session, self.out), "out": str(self.out)})
            else:
                show(write_format(session, self.format, self.out))
