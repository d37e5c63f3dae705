"""An A/B study from two folders of pictures to its page, answered by simulated people; and the guide's commands."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from desks import Client, brightness, samples
from fastapi.testclient import TestClient
from PIL import Image

from rewarddance.align.config import AlignConfig
from rewarddance.apps.annotate.auth import RateLimiter
from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.database import open_database
from rewarddance.apps.annotate.filling import fill
from rewarddance.apps.cli import main
from rewarddance.core.media import Media
from rewarddance.core.runs import RunFolder
from rewarddance.core.task import texts_of
from rewarddance.data.parquet import voted_records
from rewarddance.evaluate.ab import visible
from rewarddance.jobs.load import load_task

ROOT = Path(__file__).parents[2]


def run(*args):
    """A command's status and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main([str(a) for a in args])
    return status, out.getvalue()


@pytest.fixture
def simulated_people(monkeypatch):
    """In place of serving, people work on the application until nothing is left. `chooser` says how.

    `begin` is called with every person first.
    """
    printed = {}

    def install(chooser=None, begin=lambda client: None):
        def serve(app, **_):
            links = dict(line.split(": ", 1) for line in printed["out"].getvalue().splitlines() if "/join/" in line)
            for name, link in links.items():
                if name != "admin":
                    http = TestClient(app, base_url=link.split("/join/")[0])
                    client = Client(http, link)
                    begin(client)
                    client.work(chooser)

        monkeypatch.setattr("uvicorn.run", serve)
        monkeypatch.setattr("rewarddance.apps.annotate.app.RateLimiter", lambda per_minute: RateLimiter(100_000))

        def annotate(*args):
            printed["out"] = io.StringIO()
            with contextlib.redirect_stdout(printed["out"]):
                assert main(["annotate", *map(str, args), "--requests-per-minute", "100000"]) == 0

        return annotate

    return install


def noisy(rate):
    """People who choose the brighter picture in `rate` of the cases, and sometimes a tie."""
    rng = np.random.default_rng(0)

    def choose(pictures):
        if rng.random() < 0.1:
            return {"choice": "tie"}
        left = (brightness(pictures[0]) > brightness(pictures[1])) == (rng.random() < rate)
        return {"choice": "first" if left else "second"}

    return choose


@pytest.fixture
def study(tmp_path):
    prompts = [f"picture {i}" for i in range(60)]
    lines = [json.dumps({"prompt": p, "category": "counting" if i % 3 else "colour"}) for i, p in enumerate(prompts)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    for name, level in (("bright", 0.7), ("dark", 0.5), ("darker", 0.3)):
        samples(tmp_path / name, level, prompts)
    return tmp_path


def test_a_study_of_two_systems_end_to_end(study, simulated_people, capfd):
    out = study / "study"
    create = ("ab", "create", "--a", study / "bright", "--b", study / "dark", "--out", out, "--judgements", 2)
    status, printed = run(*create, "--prompts", study / "prompts.jsonl")
    assert status == 0
    made = json.loads(printed)
    assert (made["num_prompts"], made["votes_a_pair"], made["identical"]) == (60, {"A-B": 120}, {"A-B": 0})
    assert made["needed_for_55"] > 800
    assert made["visible"] == round(visible(100), 3)  # 120 votes by twos: 120 / (1 + 0.2) independent ones
    assert made["sampling"] is None  # nothing was drawn
    assert run("ab", "status", out)[0] == 1  # nobody has served it
    simulated_people(noisy(0.9))(out, "--invite", "ada", "ben", "--checks", 0, "--repeats", 0)
    status, printed = run("ab", "status", out)
    look = json.loads(printed)["looks"][0]
    assert (status, look["complete"], look["verdict"]) == (0, 60, "A")
    assert json.loads(printed)["votes"] == json.loads(printed)["wanted"] == 120
    assert run("ab", "report", out)[0] == 0
    report = json.loads((out / "report.json").read_text())
    pair = report["pairs"][0]
    assert pair["good"] + pair["same"] + pair["bad"] == 120
    assert pair["win_rate"]["low"] < 0.86 < pair["win_rate"]["high"]  # 0.9 x 0.9 + 0.1 / 2
    assert pair["sign_test"]["p"] < 1e-4
    assert pair["sign_test"]["p_two_way"] is pair["win_rate"]["wilson_low_two_way"] is None  # two people
    assert "too few people or prompts to speak for other people" in capfd.readouterr().err
    assert set(pair["categories"]) == {"counting", "colour"}
    page = (out / "report.html").read_text()
    assert "A is better" in page
    assert not re.search(r"""(src|href)=["']?http""", page)
    assert "<script" not in page


def test_the_picture_that_a_clip_begins_with_is_kept_and_shown_but_not_judged(study, simulated_people):
    """It is cut as `sample` cuts it for the generator."""
    pixels = np.zeros((24, 48, 3), np.uint8)
    pixels[:, 12:36] = 200  # the middle square
    Image.fromarray(pixels).save(study / "first.png")
    lines = [json.dumps({"prompt": f"picture {i}", "condition": "first.png"}) for i in range(4)]
    (study / "begun.jsonl").write_text("\n".join(lines))
    created = ("ab", "create", "--a", study / "bright", "--b", study / "dark", "--prompts", study / "begun.jsonl")
    assert run(*created, "--out", study / "ab")[0] == 0
    seen = []

    def begin(client):
        item = client.next()["item"]
        seen.extend(client.http.get(f"/media/{token}").content for token in item["given"])

    simulated_people(noisy(1.0), begin)(study / "ab", "--invite", "ada")
    for record in voted_records(study / "ab" / "train.parquet"):
        assert len(record.candidates) == 2
        assert [Media.open(io.BytesIO(m.data)).size for m in record.conditions] == [(16, 16)]
    assert [Media.open_picture(io.BytesIO(content)).size for content in seen] == [(16, 16)]
    assert brightness(seen[0]) == pytest.approx(200 / 255, abs=0.01)
    assert run("ab", "report", study / "ab")[0] == 0


def test_prompts_with_the_same_picture_are_counted_not_asked(study, simulated_people):
    out = study / "study"
    for i in range(8):
        shutil.copy(study / "bright" / f"{i:03d}.png", study / "dark" / f"{i:03d}.png")
    systems = ("--a", study / "bright", "--b", study / "dark", "--others", study / "darker")
    status, printed = run("ab", "create", *systems, "--prompts", study / "prompts.jsonl", "--out", out)
    assert status == 0
    assert json.loads(printed)["identical"] == {"A-B": 8, "A-C": 0, "B-C": 0}
    assert json.loads(printed)["votes_a_pair"] == {"A-B": 52, "A-C": 60, "B-C": 60}
    assert json.loads((out / "study.json").read_text())["identical"]["A-B"] == 8
    simulated_people()(out, "--invite", "ada", "--checks", 0, "--repeats", 0)
    printed = json.loads(run("ab", "status", out)[1])
    assert printed["votes"] == printed["wanted"] == 172
    assert [look["identical"] for look in printed["looks"]] == [8, 0, 0]
    assert run("ab", "report", out)[0] == 0
    pairs = json.loads((out / "report.json").read_text())["pairs"]
    assert [(p["good"] + p["same"] + p["bad"], p["identical"]) for p in pairs] == [(52, 8), (60, 0), (60, 0)]
    assert "On 8 more prompts both systems gave the same picture" in (out / "report.html").read_text()


def test_a_report_speaks_for_other_people_where_there_are_enough(study, simulated_people, capfd):
    out = study / "many"
    (study / "some.txt").write_text("\n".join(f"picture {i}" for i in range(12)))
    systems = ("--a", study / "bright", "--b", study / "dark", "--judgements", 6)
    assert run("ab", "create", *systems, "--prompts", study / "some.txt", "--out", out)[0] == 0
    simulated_people(noisy(0.95))(out, "--invite", *"abcdef", "--checks", 0, "--repeats", 0)
    assert run("ab", "report", out)[0] == 0
    pair = json.loads((out / "report.json").read_text())["pairs"][0]
    rate, p = pair["win_rate"], pair["sign_test"]["p_two_way"]
    assert 0.5 < rate["wilson_low_two_way"] < rate["wilson_low"] < rate["mean"]
    assert pair["sign_test"]["p"] < p < 0.05
    assert (rate["low_two_way"], pair["annotators"]) == (None, 6)  # the bootstrap needs ten people
    low, high = rate["wilson_low_two_way"], rate["wilson_high_two_way"]
    said = f"with other people and prompts: win rate [{low:.3f}, {high:.3f}], sign test p = {p:.3g}"
    assert said in capfd.readouterr().err
    page = (out / "report.html").read_text()
    assert f"<td>[{low:.3f}, {high:.3f}]</td>" in page
    assert f"<td>p = {p:.3g}</td>" in page


def test_a_small_study_has_dashes_for_intervals(study, simulated_people):
    out = study / "small"
    (study / "few.txt").write_text("\n".join(f"picture {i}" for i in range(4)))
    systems = ("--a", study / "bright", "--b", study / "dark")
    assert run("ab", "create", *systems, "--prompts", study / "few.txt", "--out", out)[0] == 0
    simulated_people()(out, "--invite", "ada", "--checks", 0, "--repeats", 0)
    assert run("ab", "report", out)[0] == 0
    pair = json.loads((out / "report.json").read_text())["pairs"][0]
    assert (pair["gsb"]["mean"], pair["gsb"]["low"], pair["win_rate"]["low_two_way"]) == (1.0, None, None)
    assert "<td>–</td>" in (out / "report.html").read_text()


def test_a_study_is_served_by_its_own_questions(study, simulated_people, capsys):
    out = study / "study"
    systems = ("--a", study / "bright", "--b", study / "dark")
    assert run("ab", "create", *systems, "--prompts", study / "prompts.jsonl", "--out", out)[0] == 0
    for flags in (["--task", "rating"], ["--criteria", "style"]):
        assert main(["annotate", str(out), *flags]) == 1
        assert "is a study of pairs by overall" in capsys.readouterr().err
    database = f"sqlite:///{study}/other.db"
    fill(open_database(database), out, DeskConfig(task="ranking"))
    assert main(["ab", "status", str(out), "--database", database]) == 1
    assert "its desk was made with other questions (task ranking, criteria overall)" in capsys.readouterr().err


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Folders of two runs that sample with 10 and 4 steps; `drawn` holds how each system was drawn."""
    drawn = {}

    def draw(prompts, out, sampling, *, num, adapter, seed):
        drawn[out.name] = (sampling.generator, sampling.num_steps, sampling.guidance, adapter)
        samples(out, 0.2 + 0.2 * len(drawn), texts_of(prompts))

    monkeypatch.setattr("rewarddance.jobs.ab.sample_to_folder", draw)
    for name, steps in (("refl", 10), ("nft", 4)):
        RunFolder(tmp_path / name).start("align", AlignConfig(probe_steps=steps))
    return drawn


def create(folder, *flags):
    return run("ab", "create", "--prompts", folder / "prompts.jsonl", "--out", folder / "study", *flags)


def test_drawn_systems_share_steps_guidance_and_resolution(study, runs):
    """A bare generator is drawn as the run it is compared with; the study and its report say how."""
    status, printed = create(study, "--a", study / "refl", "--b", "tiny", "--others", study / "bright")
    assert status == 0
    assert runs == {"A": ("tiny", 10, 1.0, study / "refl"), "B": ("tiny", 10, 1.0, None)}
    sampling = {"systems": ["A", "B"], "num_steps": 10, "guidance": 1.0, "resolution": None}
    assert json.loads(printed)["sampling"] == sampling
    assert json.loads((study / "study" / "study.json").read_text())["sampling"] == sampling


def test_runs_that_draw_differently_are_refused_unless_one_value_is_given(study, runs, capsys):
    pair = ("--a", study / "refl", "--b", study / "nft")
    assert create(study, *pair)[0] == 1
    assert f"different num steps ({study}/refl 10, {study}/nft 4)" in capsys.readouterr().err
    assert runs == {}
    assert create(study, *pair, "--num-steps", 6, "--guidance", 2)[0] == 0
    assert [how[1:3] for how in runs.values()] == [(6, 2.0), (6, 2.0)]
    assert create(study, *pair, "--num-steps", 7)[0] == 1
    assert "was made with other settings (sampling)" in capsys.readouterr().err


def test_the_task_of_the_runs_gives_the_prompts(study, runs, capsys):
    """The benchmark of clips has 48 prompts, which is fewer than 200."""
    for name, task in (("clips", "embedded-video"), ("more", "embedded-video"), ("begun", "embedded-image-to-video")):
        RunFolder(study / name).start("align", AlignConfig(generator="tiny-video", task=task))
    RunFolder(study / "file").start("align", AlignConfig(generator="tiny-video", prompts="some.txt"))
    base = ("ab", "create", "--a", study / "clips", "--b")
    status, printed = run(*base, study / "more", "--others", study / "file", "tiny-video", "--out", study / "x")
    made = json.loads(printed)
    assert (status, made["task"], made["num_prompts"], made["prompts"]) == (0, "embedded-video", 48, "48")
    clips = texts_of(load_task("embedded-video").benchmark())
    assert [r.prompt for r in voted_records(study / "x" / "train.parquet")] == clips
    assert run(*base, study / "more", "--prompts", "200", "--out", study / "y")[0] == 1
    assert "--prompts 200: the benchmark of task embedded-video has 48" in capsys.readouterr().err
    assert run(*base, study / "begun", "--out", study / "z")[0] == 1
    told = f"different tasks ({study}/clips embedded-video, {study}/begun embedded-image-to-video); give --task"
    assert told in capsys.readouterr().err
    assert not (study / "z").exists()
    assert run(*base, study / "begun", "--task", "embedded", "--prompts", 3, "--out", study / "z")[0] == 0
    assert json.loads((study / "z" / "study.json").read_text())["task"] == "embedded"
    (study / "some.txt").write_text("a red circle\na blue star\n")  # a file of prompts needs no task
    assert run(*base, study / "begun", "--prompts", study / "some.txt", "--out", study / "v")[0] == 0


def test_generators_alone_are_drawn_with_the_defaults(study, runs):
    assert create(study, "--a", "tiny", "--b", "other")[0] == 0
    assert [how[1:3] for how in runs.values()] == [(20, 1.0), (20, 1.0)]


def test_a_study_of_three_systems_rates_them(study, simulated_people):
    out = study / "three"
    others = ("--b", study / "bright", "--others", study / "darker")
    assert (
        run("ab", "create", "--a", study / "dark", *others, "--prompts", study / "prompts.jsonl", "--out", out)[0] == 0
    )
    simulated_people(noisy(0.8))(out, "--invite", "ada", "--checks", 0, "--repeats", 0)
    assert run("ab", "report", out)[0] == 0
    report = json.loads((out / "report.json").read_text())
    assert list(report["ratings"]) == ["B", "A", "C"]
    assert len(report["pairs"]) == 3


def test_mistakes(study, capsys):
    base = ["ab", "create", "--a", str(study / "bright"), "--out", str(study / "x"), "--b"]
    assert main([*base, str(study / "dark"), "--prompts", "100000"]) == 1
    assert "has 240; name a file for more" in capsys.readouterr().err
    assert main([*base, str(study / "dark"), "--prompts", "5"]) == 1
    assert "has no picture of 5 of 5 prompts" in capsys.readouterr().err
    assert main(["ab", "status", str(study)]) == 1
    assert "not a study" in capsys.readouterr().err


def commands():
    """The commands of the guide, in order."""
    text = (ROOT / "docs/guides/people.md").read_text()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("rewarddance "):
                yield shlex.split(line)[1:]


def test_every_command_of_the_guide_runs(tmp_path, monkeypatch, simulated_people, pipeline_folder, vlm_folder):
    """With small models in place of the shipped ones, a few steps, and simulated people."""
    for name, source in (("vlm-tiny", vlm_folder), ("judge-tiny", vlm_folder), ("generator-tiny", pipeline_folder)):
        shutil.copytree(source, tmp_path / "assets" / name)
    monkeypatch.setattr("rewarddance.jobs.load.ASSETS", tmp_path / "assets")
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    monkeypatch.chdir(tmp_path)
    prompts = ["flat drawing of a red circle on white", "flat drawing of a blue square on black", "a green star"]
    Path("prompts.txt").write_text("\n".join(prompts))
    steps = ["--loop.num-steps", "2", "--loop.validate-every", "2"]
    refl = ["--batch-size", "2", "--lora-rank", "2", "--probe-prompts", "2", "--references.num-candidates", "2"]
    few = {
        "data build": ["--num-steps", "2"],
        "train": [*steps, "--prompts-per-step", "2"],
        "align": [
            *steps,
            *refl,
            "--refl.num-steps",
            "4",
            "--num-prompts",
            "4",
            "--optim.lr",
            "0.01",
        ],
        "ab create": ["--prompts", "6"],
    }
    annotate = simulated_people()
    done = []
    for words in commands():
        name = " ".join(words[:2]) if words[0] in ("data", "ab") or words[1] == "export" else words[0]
        extra = few.get(name, [])
        if name == "ab create":
            words = [w for i, w in enumerate(words) if "--prompts" not in words[max(0, i - 1) : i + 1]]
        if name == "annotate":
            annotate(*words[1:])
        else:
            assert run(*words, *extra)[0] == 0, words
        done.append(name)
    assert done.count("annotate") >= 2
    assert {"data build", "annotate export", "train", "ab create", "ab status", "ab report"} <= set(done)
    assert (tmp_path / "runs/judge/run.json").is_file()
