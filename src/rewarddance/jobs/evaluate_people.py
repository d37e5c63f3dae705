"""`rewarddance evaluate RUN --study STUDY` takes people's votes as the gold standard of an alignment run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rewarddance.core.config import Precision
from rewarddance.core.errors import RunError
from rewarddance.core.runs import write_json
from rewarddance.data.parquet import voted_records
from rewarddance.data.votes import VotedRecord
from rewarddance.evaluate.ab import Ballot, between, by_category, compare, prompt_means
from rewarddance.evaluate.generator import answered_prompts, compare_judges
from rewarddance.jobs.data.select import CHUNK, Pair, ask
from rewarddance.jobs.evaluate import align_config
from rewarddance.jobs.load import load_judge, same_judge


def systems_of(run: Path, generator: str, systems: Mapping[str, str]) -> tuple[str, str]:
    """The letters that a run and its generator before training have in a study.

    Raises:
        RunError: the study does not have both.
    """
    after = [letter for letter, name in systems.items() if Path(name).resolve() == run.resolve()]
    before = [letter for letter, name in systems.items() if name == generator]
    if not before:  # the study may name the generator's folder by another path
        before = [letter for letter, name in systems.items() if Path(name).resolve() == Path(generator).resolve()]
    if not after or not before:
        have = ", ".join(f"{letter} {name}" for letter, name in systems.items())
        raise RunError(
            f"the study compares {have}; an evaluation of {run} needs this run and its generator {generator}: "
            f"`rewarddance ab create --a {run} --b {generator}`"
        )
    return after[0], before[0]


def evaluate_by_people(
    run: Path,
    study: Path,
    systems: Mapping[str, str],
    ballots: Sequence[Ballot],
    criterion: str,
    *,
    judge: str | None = None,
    precision: Precision = "auto",
) -> dict[str, Any]:
    """Compare before and after training by people's votes in a blind study; writes `evaluation_people.json`.

    Args:
        systems: of the study, letter -> run or generator; ballots: its votes by one criterion.
        judge: the judge that is compared with people; when None, the judge that the run was trained with.

    Returns:
        The figures of `evaluate.ab.compare` from the side of the run, and `categories`. Also those of `compare_judges`
        with people as the other judge: `training_judge`, its P(after is better) on the same pictures; `overrated`,
        its share of wins minus that of people (prompts are the units); `hacking`.

    Raises:
        RunError: not an alignment run, a study without the run or its generator, or a study without votes on them.
    """
    config = align_config(run)
    after, before = systems_of(run, config["generator"], systems)
    people = prompt_means(between(ballots, after, before), after)
    if not people:
        raise RunError(f"{study}: nobody has judged {after} against {before} yet")
    records = [r for r in voted_records(study / "train.parquet") if r.record_id in people]
    ready = load_judge(judge or config["judge"], precision=precision, compile=True)
    name = ready.own_or(config["criterion"])
    judge_rates = np.concatenate(
        [
            ask(ready, [_pair(r, after, before, study) for r in records[i : i + CHUNK]], name)
            for i in range(0, len(records), CHUNK)
        ]
    )[:, None]
    gold = np.array([people[r.record_id] for r in records])[:, None]
    kept = answered_prompts(judge_rates)
    figures = {
        "study": str(study),
        "criterion": criterion,
        "judge": judge or config["judge"],
        "same_judge": judge is None or same_judge(judge, config["judge"]),
        **compare(ballots, after, before),
        "categories": by_category(ballots, after, before),
        "refused_prompts": int((~kept).sum()),
        **compare_judges(judge_rates[kept], gold[kept]),
        "per_prompt": {
            "prompts": [r.prompt for r in records],
            "people": gold[:, 0].tolist(),
            "judge": [None if np.isnan(p) else float(p) for p in judge_rates[:, 0]],
        },
    }
    write_json(run / "evaluation_people.json", figures)
    return figures


def _pair(record: VotedRecord, after: str, before: str, study: Path) -> Pair:
    """The picture of the run and the one before training. Clips are read from the study's folder."""
    media = tuple(
        replace(m, data=(study / m.path).read_bytes()) if m.kind == "video" and m.path else m for m in record.media
    )
    models = [m.model for m in record.candidates]
    return Pair(replace(record, media=media), models.index(after), models.index(before))
