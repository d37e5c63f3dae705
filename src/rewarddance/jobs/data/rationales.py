"""`rewarddance data rationales`: a teacher gives reasons. Reasons whose verdict agrees with the label are kept.

Teachers: the world's oracle for embedded data, any OpenAI-compatible server for real data. Answers that are refused,
unreadable or disagree are counted and listed; no reason is invented for them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.progress import progress
from rewarddance.core.runs import same_settings, write_json
from rewarddance.data.parquet import RecordTable, row_of, split_files, write_rows
from rewarddance.world.oracle import judge as oracle_judge

Outcome = Literal["kept", "disagrees", "refused", "unreadable", "tie", "failed"]


@dataclass(frozen=True)
class TeacherAnswer:
    """A teacher's answer about one choice: is the first picture (the candidate) better, and why.

    Attributes:
        better: None if it gave no verdict; `problem` then says what happened.
        tokens: read and written; 0 if the teacher does not count them.
    """

    better: bool | None
    reason: str = ""
    problem: Outcome | None = None
    tokens: tuple[int, int] = (0, 0)


class Teacher(Protocol):
    @property
    def name(self) -> str:
        """Who gives the reasons. Answers of another teacher are not mixed with them."""
        ...

    def tell(self, prompt: str, candidate: Media, reference: Media, criterion: str) -> TeacherAnswer: ...


NO_FAULT = {"fidelity": "matches the prompt", "style": "has the style", "composition": "keeps all rules of layout"}
"""The words for a picture without a fault, by criterion. The oracle's novelty is a distance and has no faults."""


class OracleTeacher:
    """The embedded world's oracle, in the words of the embedded VLM."""

    name = "oracle"

    def tell(self, prompt: str, candidate: Media, reference: Media, criterion: str) -> TeacherAnswer:
        about = "fidelity" if criterion == "overall" else criterion
        if about not in NO_FAULT:
            return TeacherAnswer(None, f"the oracle has no reasons for {criterion}", "refused")
        try:
            judgements = [oracle_judge(m.to_numpy(), prompt) for m in (candidate, reference)]
        except InputError as error:
            return TeacherAnswer(None, str(error), "refused")
        values = [j[about] for j in judgements]
        if values[0] == values[1]:
            return TeacherAnswer(None, problem="tie")
        better, faults = values[0] > values[1], [_faults(j.reasons, about) for j in judgements]
        winner, loser = faults if better else faults[::-1]
        if len(winner) >= len(loser):  # the faults in words would not explain the verdict, or contradict it
            return TeacherAnswer(None, "the better one does not have fewer faults", "refused")
        descriptions = ["has " + " and ".join(f) if f else NO_FAULT[about] for f in faults]
        return TeacherAnswer(better, f"the candidate {descriptions[0]} and the reference {descriptions[1]}")


def _faults(reasons: Sequence[str], criterion: str) -> list[str]:
    """The faults among an oracle's reasons, by one criterion."""
    faults = []
    for reason in reasons:
        subject, _, state = reason.partition(": ")
        if criterion == "composition":
            faults += [f"broken {subject}"] if state == "broken" else []
        elif subject.endswith(" style") != (criterion == "style"):
            continue
        elif state == "missing" or reason == "nothing found":
            faults.append(f"missing {subject}" if state else "nothing found")
        elif subject == "extra objects":
            faults.append("extra objects")
        elif state == "does not hold":
            faults.append(f"not {subject}")
    return faults


@dataclass
class Counts:
    """The result for every choice, and the cost."""

    outcomes: Counter[str] = field(default_factory=Counter)
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    listed: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self, price: tuple[float, float]) -> dict[str, Any]:
        read, written = self.tokens
        cost = (read * price[0] + written * price[1]) / 1e6
        return {
            "choices": sum(self.outcomes.values()),
            **self.outcomes,
            "tokens_read": read,
            "tokens_written": written,
            "cost": round(cost, 4),
            "not_kept": self.listed,
        }


def add_rationales(
    source: Path,
    teacher: Teacher,
    out: Path,
    *,
    limit: int | None = None,
    workers: int = 1,
    price: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Any]:
    """Copy a data folder to `out` with reasons in its training choices. A call after a stop continues.

    Answers are kept in `out/answers.jsonl` as they come. `out/rationales.json` has the result for every choice.

    Args:
        limit: ask only about this many choices.
        workers: questions that are asked at the same time.
        price: of a million tokens that are read, and of a million that are written.

    Raises:
        InputError: no training records, or no reason was kept.
        RunError: `out` holds answers about other records, or of another teacher.
    """
    records = source / "train.parquet"
    table = RecordTable.open(records)
    if any(table.are_clips):
        raise InputError(f"{records}: holds clips, and teachers are shown pictures; leave the clips out")
    same_settings(out / "asked.json", {"teacher": teacher.name, "train_sha256": _digest(split_files(records))})
    answers = _Answers(out / "answers.jsonl")
    chosen = [(i, j) for i, row in enumerate(table.choice_labels) for j, x in enumerate(row) if x != 0.5][:limit]
    todo = [place for place in chosen if _name(place) not in answers.known]
    reading = threading.Lock()

    def ask(place: tuple[int, int]) -> None:
        with reading:  # a table caches decoded pictures and must not be read by several threads at once
            record = table[place[0]]
        choice = record.choices[place[1]]
        first, second = record.media[choice.first], record.media[choice.second]
        answers.add(_name(place), teacher.tell(record.prompt, first, second, record.criterion))

    with progress("rationales") as bar, ThreadPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(ask, todo), 1):
            bar(done, len(todo), {})
    counts = Counts()
    kept = _with_reasons(table, set(chosen), answers.known, counts)
    write_rows((row_of(r) for r in kept), out / "train.parquet")
    for name in ("id.parquet", "ood.parquet"):
        for file in split_files(source / name):
            shutil.copyfile(file, out / file.name)
    figures = counts.as_dict(price)
    write_json(out / "rationales.json", figures)
    if not counts.outcomes["kept"]:
        raise InputError(f"{out}: no reason was kept; see rationales.json for what the teacher said")
    return {k: v for k, v in figures.items() if k != "not_kept"}


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of one file, or of several files in order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _name(place: tuple[int, int]) -> str:
    """Row and choice, from 1, since ids of imported rows need not be unique."""
    return f"row {place[0] + 1} choice {place[1] + 1}"


def _with_reasons(
    table: RecordTable, chosen: set[tuple[int, int]], known: dict[str, TeacherAnswer], counts: Counts
) -> Iterator[PreferenceRecord]:
    for i, record in enumerate(table):
        choices = []
        for j, choice in enumerate(record.choices):
            answer = known.get(_name((i, j)))
            if (i, j) not in chosen or answer is None:
                choices.append(choice)
                continue
            outcome = outcome_of(choice, answer)
            counts.outcomes[outcome] += 1
            counts.tokens[0] += answer.tokens[0]
            counts.tokens[1] += answer.tokens[1]
            if outcome != "kept":
                counts.listed.append({"id": record.record_id, "choice": _name((i, j)), "outcome": outcome})
            choices.append(replace(choice, rationale=answer.reason) if outcome == "kept" else choice)
        yield replace(record, choices=tuple(choices))


def outcome_of(choice: Choice, answer: TeacherAnswer) -> Outcome:
    """`kept` if the teacher's verdict agrees with the label."""
    if answer.better is None:
        return answer.problem or "unreadable"
    return "kept" if answer.better == (choice.label > 0.5) else "disagrees"


class _Answers:
    """Answers on disk, one line each, so that a stopped run asks nothing twice. Failed questions are asked again."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.known: dict[str, TeacherAnswer] = {}
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed
            if row["problem"] != "failed":
                tokens = (row["tokens"][0], row["tokens"][1])
                self.known[row["choice"]] = TeacherAnswer(row["better"], row["reason"], row["problem"], tokens)

    def add(self, name: str, answer: TeacherAnswer) -> None:
        line = {"choice": name, "better": answer.better, "reason": answer.reason, "problem": answer.problem}
        with self.lock:
            with open(self.path, "a") as file:
                file.write(json.dumps(line | {"tokens": list(answer.tokens)}) + "\n")
            self.known[name] = answer
