"""A blind study as the gold standard of an alignment run: people's votes, and the judge held against them."""

import json
from pathlib import Path

import pytest
import torch
from desks import clip, new_record, picture

from rewarddance.align.config import AlignConfig
from rewarddance.apps.cli import main
from rewarddance.apps.report import write_report
from rewarddance.core.errors import RunError
from rewarddance.core.runs import RunFolder
from rewarddance.core.types import Verdict
from rewarddance.data.schema import hash_of, row_of_votes
from rewarddance.data.shards import write_rows
from rewarddance.data.votes import MediaRef, VotedRecord
from rewarddance.evaluate.ab import Ballot
from rewarddance.jobs.evaluate_people import evaluate_by_people, systems_of

PROMPTS = 20


class Brightness:
    """Prefers the brighter picture or clip, and refuses one prompt."""

    precision = "fp32"

    def own_or(self, criterion):
        return criterion

    def judge(self, comparisons):
        gaps = torch.stack([c.candidate.frames.mean() - c.reference.frames.mean() for c in comparisons])
        refused = torch.tensor([c.prompt.endswith("r3") for c in comparisons])
        return Verdict.from_margin(torch.where(refused, torch.nan, 20 * gaps))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.jobs.evaluate_people.load_judge", lambda name, **_: Brightness())
    RunFolder(tmp_path / "run").start("align", AlignConfig(generator="tiny", judge="tiny"))
    return tmp_path / "run"


def study_of(folder):
    """The run (A) is brighter than the generator before training (B) on 16 of 20 prompts."""
    rows = []
    for i in range(PROMPTS):
        after = 0.6 if i < 16 else 0.3
        groups = {"category": "colour" if i % 2 else "count"}
        rows.append(row_of_votes(new_record(f"r{i}", [after, 0.45], models=["A", "B"], groups=groups)))
    write_rows(rows, folder / "train.parquet")
    return folder


def votes(people_like):
    """Three votes a prompt; people prefer the run on the first `people_like` prompts."""
    made = []
    for i in range(PROMPTS):
        category = "colour" if i % 2 else "count"
        first = float(i < people_like)
        made += [Ballot(f"r{i}", f"h{k}", "B", "A", 1 - first, category, 3 * i + k) for k in range(3)]
    return made


def test_people_are_the_gold_standard_and_the_judge_is_held_against_them(run, tmp_path):
    study = study_of(tmp_path / "study")
    systems = {"A": str(run), "B": "tiny"}
    found = evaluate_by_people(run, study, systems, votes(4), "overall")
    assert (found["good"], found["same"], found["bad"], found["prompts"]) == (12, 0, 48, 20)
    assert found["win_rate"]["mean"] == 0.2
    assert found["win_rate"]["high"] < 0.5
    assert set(found["categories"]) == {"colour", "count"}
    assert found["refused_prompts"] == 1  # the judge's figures are of the other 19
    assert found["training_judge"]["mean"] > 0.7
    assert found["overrated"]["mean"] == pytest.approx(12 / 19)  # 15 wins against 3
    assert found["hacking"] == "hacking"
    assert found["per_prompt"]["people"] == [1.0] * 4 + [0.0] * 16
    assert found["per_prompt"]["judge"][3] is None
    assert json.loads((run / "evaluation_people.json").read_text()) == json.loads(json.dumps(found))
    assert evaluate_by_people(run, study, systems, votes(16), "overall")["hacking"] == "none"
    page = write_report(run).read_text()
    assert "People prefer the picture after training in <b>0.800</b> of the votes" in page


def test_a_study_without_the_run_or_its_generator_is_refused(run, tmp_path):
    assert systems_of(run, "tiny", {"A": "tiny", "B": f"{run}/", "C": "x"}) == ("B", "A")
    (tmp_path / "base").mkdir()
    systems = {"A": str(run), "B": str(tmp_path / "x" / ".." / "base")}
    assert systems_of(run, str(tmp_path / "base"), systems) == ("A", "B")
    for systems in ({"A": str(run), "B": "runs/nft"}, {"A": "tiny", "B": "runs/nft"}):
        with pytest.raises(RunError, match="needs this run and its generator tiny"):
            systems_of(run, "tiny", systems)
    with pytest.raises(RunError, match="nobody has judged A against B yet"):
        evaluate_by_people(run, study_of(tmp_path / "study"), {"A": str(run), "B": "tiny"}, [], "overall")


def test_clips_are_read_from_the_study_and_the_judge_sees_their_first_frame(run, tmp_path, monkeypatch):
    asked = []

    class Watched(Brightness):
        def judge(self, comparisons):
            asked.extend(comparisons)
            return super().judge(comparisons)

    monkeypatch.setattr("rewarddance.jobs.evaluate_people.load_judge", lambda name, **_: Watched())
    study = tmp_path / "study"
    (study / "clips").mkdir(parents=True)
    rows, ballots = [], []
    for i in range(2):
        media = []
        for letter, content in (("A", clip(2 + i)), ("B", clip(i))):
            path = f"clips/{i}{letter}.mp4"
            (study / path).write_bytes(content)
            media.append(MediaRef("video", path, hash_of(content), letter))
        first = picture(0.1 * i)
        media += [MediaRef(sha256=hash_of(first), role="condition", data=first)] if i else []
        rows.append(row_of_votes(VotedRecord(f"r{i}", f"clip {i}", tuple(media))))
        ballots.append(Ballot(f"r{i}", "h", "A", "B", 1.0))
    write_rows(rows, study / "train.parquet")
    found = evaluate_by_people(run, study, {"A": str(run), "B": "tiny"}, ballots, "overall")
    assert found["training_judge"]["mean"] > 0.9
    assert found["overrated"]["mean"] == 0
    given = {c.prompt: c.condition for c in asked}
    assert given["clip 0"] is None
    assert given["clip 1"].size == (16, 16)


def test_flags_that_do_not_belong_are_one_clear_line(run, capsys):
    assert main(["evaluate", "--study", "studies/x"]) == 2
    assert "--study needs a run of `align`" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--study", "studies/x", "--num-steps", "4"]) == 2
    assert "evaluate --study: takes no --num-steps" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--study", str(Path(run) / "no")]) == 1
    assert "not a study" in capsys.readouterr().err
