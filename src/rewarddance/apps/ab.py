"""`rewarddance ab`: blinded studies of two or more systems. `annotate` serves them, and the report reads its desk."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rewarddance.apps.commands import show
from rewarddance.apps.flags import Count, Flags, Least, SomeCount, need
from rewarddance.core.errors import RunError
from rewarddance.core.progress import say

if TYPE_CHECKING:
    from rewarddance.evaluate.ab import Ballot

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class AbCreate(Flags):
    """Draw the same prompts from the same noises with two or more systems, for people to compare blind.

    A system is a run of `align`, a generator, or a folder of `sample` (its first picture of each prompt). Runs and
    generators draw with the same steps, guidance and resolution. The prompts are those of the runs' task: `ab create`
    refuses runs of two tasks, unless --task names one. The result says how many votes are needed to detect a
    win rate of 55%, and which win rate this study can detect.

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
    prompts: str | None = None
    """A number of prompts of the task's benchmark, or a file of prompts (`category` gives tables by category). When not
    given, 200 prompts, or all of a smaller benchmark."""
    task: str | None = None
    """The task whose benchmark gives the prompts; that of the runs when not given, `embedded` where there is no run."""
    judgements: Count = 1
    """People who judge each prompt and pair. More prompts help more than more votes on each prompt."""
    criteria: tuple[str, ...] = ("overall",)
    """The criteria that people are asked about; a report is about one of them."""
    num_steps: SomeCount = None
    """Steps of all drawn systems; those of the runs when not given."""
    guidance: Annotated[float | None, Least(0)] = None
    """Classifier-free guidance scale of all drawn systems; that of the runs when not given."""
    resolution: SomeCount = None
    """Side of the drawn pictures in pixels; that of the runs when not given."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.jobs.ab import Study, create

        runs = (self.a, self.b, *self.others)
        need(len(runs) <= len(LETTERS), f"ab create: at most {len(LETTERS)} systems")
        systems = dict(zip(LETTERS, runs, strict=False))
        settings = self.prompts, self.task, self.judgements, self.criteria
        study = Study(systems, *settings, self.seed, self.num_steps, self.guidance, self.resolution)
        show(create(study, self.out))
        say(f"next: rewarddance annotate {self.out} --invite NAME, and rewarddance ab status {self.out}")


@dataclass(frozen=True)
class AbStatus(Flags):
    """The progress of a study, and whether it is decided. You may look as often as you like.

    The bounds are confidence sequences. If all systems are equally good, the chance that one is ever called better is
    at most 5 per cent, over all looks and all pairs together. This is about the people who judge in this study.

    Example: rewarddance ab status studies/refl-nft
    """

    study: tyro.conf.Positional[Path]
    """A folder of `ab create`."""
    database: str | None = None
    """The desk's database, where `annotate` was given one."""
    criterion: str | None = None
    """The first one of the study when not given."""

    def run(self) -> None:
        from rewarddance.evaluate.sequences import looks

        study = read_study(self.study)
        desk = read_ballots(self.study, study, self.database, self.criterion)
        rows = []
        for (a, b), look in looks(desk.ballots, list(study["systems"]), desk.per_prompt).items():
            rows.append({"a": a, "b": b, **look, "identical": identical_of(study, a, b)})
        show(
            {
                "systems": study["systems"],
                "sampling": study.get("sampling"),
                "votes": len(desk.ballots),
                "wanted": desk.items * desk.per_prompt,
                "looks": rows,
            }
        )


@dataclass(frozen=True)
class AbReport(Flags):
    """Counts of good, same and bad; GSB and win rate with intervals; sign test; ratings. Writes report.html and .json.

    Every interval and test comes twice: by prompt, for the people of this study, and by prompt and person, for other
    people too. Bootstrap intervals need ten prompts and ten people, Wilson's interval and the sign test six of each.

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
        from rewarddance.evaluate.sequences import looks

        need(0.5 < self.target < 1, f"ab report: --target {self.target}: needs a number between 0.5 and 1")
        study = read_study(self.study)
        desk = read_ballots(self.study, study, self.database, self.criterion)
        if not desk.ballots:
            raise RunError(f"{self.study}: nobody has judged anything yet; rewarddance annotate {self.study} serves it")
        systems = list(study["systems"])
        result = report(desk.ballots, systems)
        looked = looks(desk.ballots, systems, desk.per_prompt)
        for pair in result["pairs"]:
            a, b = pair["a"], pair["b"]
            pair |= {"look": looked[a, b], "identical": identical_of(study, a, b)}
        result = {"study": study, "criterion": self.criterion or study["criteria"][0], **result}
        result["needed"] = {"win_rate": self.target, "votes": needed(self.target, per_prompt=desk.per_prompt)}
        write_json(self.study / "report.json", result)
        page = self.study / "report.html"
        page.write_text(render(result, self.study.resolve().name))
        for pair in result["pairs"]:
            say(_sentence(pair))
        show({"report": str(page), "votes": len(desk.ballots)})


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


def identical_of(study: dict[str, Any], a: str, b: str) -> int | None:
    """Prompts on which both systems gave the same file; None in a study of an earlier version."""
    counts: dict[str, int] = study.get("identical", {})
    return counts.get(f"{a}-{b}")


@dataclass(frozen=True)
class StudyDesk:
    """What a study's desk holds.

    Attributes:
        ballots: the votes by one criterion.
        per_prompt: how many votes each prompt and pair needs.
        items: prompts and pairs that people are asked about.
    """

    ballots: list[Ballot]
    per_prompt: int
    items: int


def read_ballots(folder: Path, study: dict[str, Any], database: str | None, criterion: str | None) -> StudyDesk:
    """Read a study's desk.

    Raises:
        RunError: nobody has served the study yet, the criterion is not asked, or the desk does not compare pairs.
    """
    from sqlalchemy import func, select

    from rewarddance.apps.annotate.database import open_database
    from rewarddance.apps.annotate.export import voted_records
    from rewarddance.apps.annotate.filling import settings_of
    from rewarddance.apps.annotate.models import Item
    from rewarddance.apps.annotating import DATABASE
    from rewarddance.evaluate.ab import Ballot

    chosen_criterion = criterion or study["criteria"][0]
    if chosen_criterion not in study["criteria"]:
        raise RunError(f"{folder}: the study asks for {', '.join(study['criteria'])}, not for {chosen_criterion}")
    if database is None and not (folder / DATABASE).is_file():
        raise RunError(f"{folder}: has no {DATABASE} yet; `rewarddance annotate {folder}` makes it, or name --database")
    ballots = []
    address = database or f"sqlite:///{(folder / DATABASE).resolve()}"
    with closing(open_database(address)) as opened, opened.read() as session:
        config = settings_of(session)
        if config.task != "pairwise" or chosen_criterion not in config.asked:
            wrong = f"task {config.task}, criteria {', '.join(config.asked)}"
            raise RunError(
                f"{folder}: its desk was made with other questions ({wrong}); serve it to another --database"
            )
        items = int(session.scalar(select(func.count()).where(Item.noise.is_(None))) or 0)
        for record in voted_records(session, pictures=False):
            names = [m.model or "" for m in record.candidates]
            for v in record.votes:
                if v.criterion == chosen_criterion:
                    pair = (names[v.media[0]], names[v.media[1]])
                    category = record.groups.get("category", "")
                    ballots.append(
                        Ballot(record.record_id, v.annotator or "", *pair, v.values[0], category, _when(v.created))
                    )
    return StudyDesk(ballots, config.judgements, items)


def _when(created: str | None) -> float:
    from datetime import datetime

    return datetime.fromisoformat(created).timestamp() if created else 0.0


def _sentence(pair: dict[str, Any]) -> str:
    """One line a pair. Each figure stands with its interval for the people of the study; the line ends with the result
    for other people."""
    gsb, rate, signs = pair["gsb"], pair["win_rate"], pair["sign_test"]
    return (
        f"{pair['a']} against {pair['b']}: {pair['good']} good, {pair['same']} same, {pair['bad']} bad; "
        f"GSB {gsb['mean']:+.3f}{_interval(gsb, '+.3f')}, win rate {rate['mean']:.3f}{_interval(rate, '.3f')}, "
        f"sign test p = {signs['p']:.3g}; {_for_others(rate, signs)}"
        + (f"; {pair['identical']} more prompts with identical pictures" if pair["identical"] else "")
    )


def _interval(figure: dict[str, Any], form: str) -> str:
    if figure["low"] is None:
        return " (too few prompts for an interval)"
    return f" [{figure['low']:{form}}, {figure['high']:{form}}]"


def _for_others(rate: dict[str, Any], signs: dict[str, Any]) -> str:
    if signs["p_two_way"] is None:
        return "too few people or prompts to speak for other people"
    low, high = rate["wilson_low_two_way"], rate["wilson_high_two_way"]
    return f"with other people and prompts: win rate [{low:.3f}, {high:.3f}], sign test p = {signs['p_two_way']:.3g}"


def render(result: dict[str, Any], title: str) -> str:
    """The HTML page of a report: one file that loads no other."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("rewarddance.apps"), autoescape=select_autoescape())
    page: str = environment.get_template("ab.html").render(title=title, **result)
    return page
