"""`rewarddance ab`: blinded studies of two or more systems. `annotate` serves them, and the report reads its desk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from rewarddance.apps.commands import show
from rewarddance.apps.flags import Count, Flags, Least, need
from rewarddance.core.errors import RunError
from rewarddance.core.progress import say

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class AbCreate(Flags):
    """Draw pictures of the same prompts, from the same noises, with two or more systems, for people to compare blind.

    A system is a run of `align`, a generator, or a folder of `sample` (its first picture of each prompt). The result
    says how many votes are needed to detect a win rate of 55%, and which win rate this study can detect.

    Example: rewarddance ab create --a runs/refl --b runs/nft --prompts 200 --out studies/refl-nft

    Example: rewarddance ab create --a tiny --b runs/refl --others runs/nft --prompts prompts.jsonl --out studies/three
    """

    a: str
    """The first system."""
    b: str
    """The second system."""
    out: Path
    """Folder of the study."""
    others: tuple[str, ...] = ()
    """Further systems; every pair is compared."""
    prompts: str = "200"
    """A number of prompts of the task's benchmark, or a file of prompts (`category` gives tables by category)."""
    task: str = "embedded"
    """The task whose benchmark gives a number of prompts."""
    judgements: Count = 1
    """People who judge each prompt and pair. More prompts help more than more votes on each prompt."""
    criteria: tuple[str, ...] = ("overall",)
    """The criteria that people are asked about; a report is about one of them."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.jobs.ab import Study, create

        runs = (self.a, self.b, *self.others)
        need(len(runs) <= len(LETTERS), f"ab create: at most {len(LETTERS)} systems")
        systems = dict(zip(LETTERS, runs, strict=False))
        study = Study(systems, self.prompts, self.task, self.judgements, self.criteria, self.seed)
        show(create(study, self.out))
        say(f"next: rewarddance annotate {self.out} --invite NAME, and rewarddance ab status {self.out}")


@dataclass(frozen=True)
class AbStatus(Flags):
    """The progress of a study, and whether it is decided. You may look as often as you like.

    The bounds are a confidence sequence. If the systems are equally good, the chance that it ever calls one better is
    at most 5 per cent, over all looks.

    Example: rewarddance ab status studies/refl-nft
    """

    study: tyro.conf.Positional[Path]
    """A folder of `ab create`."""
    database: str | None = None
    """The desk's database, where `annotate` was given one."""
    criterion: str | None = None
    """The first one of the study when not given."""

    def run(self) -> None:
        from itertools import combinations

        from rewarddance.evaluate.sequences import look

        study = read_study(self.study)
        ballots, per_prompt = read_ballots(self.study, study, self.database, self.criterion)
        looks = []
        for a, b in combinations(study["systems"], 2):
            looks.append({"a": a, "b": b, **look(ballots, a, b, per_prompt)})
        pairs = study["num_prompts"] * len(looks)
        show({"systems": study["systems"], "votes": len(ballots), "wanted": pairs * per_prompt, "looks": looks})


@dataclass(frozen=True)
class AbReport(Flags):
    """Counts of good, same and bad; GSB and win rate with intervals; sign test; ratings. Writes report.html and .json.

    Example: rewarddance ab report studies/refl-nft
    """

    study: tyro.conf.Positional[Path]
    """A folder of `ab create`."""
    database: str | None = None
    """The desk's database, where `annotate` was given one."""
    criterion: str | None = None
    """The first one of the study when not given."""
    target: Annotated[float, Least(0.5)] = 0.55
    """The page says how many votes are needed to detect this win rate."""

    def run(self) -> None:
        from rewarddance.core.runs import write_json
        from rewarddance.evaluate.ab import needed, report
        from rewarddance.evaluate.sequences import look

        need(0.5 < self.target < 1, f"ab report: --target {self.target}: needs a number between 0.5 and 1")
        study = read_study(self.study)
        ballots, per_prompt = read_ballots(self.study, study, self.database, self.criterion)
        if not ballots:
            raise RunError(f"{self.study}: nobody has judged anything yet; rewarddance annotate {self.study} serves it")
        result = report(ballots, list(study["systems"]))
        for pair in result["pairs"]:
            pair["look"] = look(ballots, pair["a"], pair["b"], per_prompt)
        result = {"study": study, "criterion": self.criterion or study["criteria"][0], **result}
        result["needed"] = {"win_rate": self.target, "votes": needed(self.target, per_prompt=per_prompt)}
        write_json(self.study / "report.json", result)
        page = self.study / "report.html"
        page.write_text(render(result, self.study.resolve().name))
        for pair in result["pairs"]:
            say(_sentence(pair))
        show({"report": str(page), "votes": len(ballots)})


def read_study(folder: Path) -> dict[str, Any]:
    """The content of `study.json`.

    Raises:
        RunError: not a study.
    """
    try:
        content: dict[str, Any] = json.loads((folder / "study.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: not a study ({error}); `rewarddance ab create` makes one") from None
    return content


def read_ballots(
    folder: Path, study: dict[str, Any], database: str | None, criterion: str | None
) -> tuple[list[Any], int]:
    """The votes of a study's desk by one criterion, and how many votes each prompt and pair needs.

    Raises:
        RunError: nobody has served the study yet, or the criterion is not asked.
    """
    from rewarddance.apps.annotate.database import open_database
    from rewarddance.apps.annotate.export import voted_records
    from rewarddance.apps.annotate.filling import settings_of
    from rewarddance.apps.annotating import DATABASE
    from rewarddance.evaluate.ab import Ballot

    asked = criterion or study["criteria"][0]
    if asked not in study["criteria"]:
        raise RunError(f"{folder}: asks by {', '.join(study['criteria'])}, not by {asked}")
    if database is None and not (folder / DATABASE).is_file():
        raise RunError(f"{folder}: has no {DATABASE} yet; `rewarddance annotate {folder}` makes it, or name --database")
    opened = open_database(database or f"sqlite:///{(folder / DATABASE).resolve()}")
    ballots = []
    with opened.read() as session:
        config = settings_of(session)
        for record in voted_records(session, pictures=False):
            names = [m.model or "" for m in record.candidates]
            for v in record.votes:
                if v.criterion == asked:
                    pair = (names[v.media[0]], names[v.media[1]])
                    category = record.groups.get("category", "")
                    ballots.append(
                        Ballot(record.record_id, v.annotator or "", *pair, v.values[0], category, _when(v.created))
                    )
    opened.close()
    return ballots, config.judgements


def _when(created: str | None) -> float:
    from datetime import datetime

    return datetime.fromisoformat(created).timestamp() if created else 0.0


def _sentence(pair: dict[str, Any]) -> str:
    gsb, rate = pair["gsb"], pair["win_rate"]
    return (
        f"{pair['a']} against {pair['b']}: {pair['good']} good, {pair['same']} same, {pair['bad']} bad; "
        f"GSB {gsb['mean']:+.3f} [{gsb['low']:+.3f}, {gsb['high']:+.3f}], "
        f"win rate {rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}], "
        f"sign test p = {pair['sign_test']['p']:.3g}"
    )


def render(result: dict[str, Any], title: str) -> str:
    """The HTML page of a report: one file that loads no other."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("rewarddance.apps"), autoescape=select_autoescape())
    page: str = environment.get_template("ab.html").render(title=title, **result)
    return page
