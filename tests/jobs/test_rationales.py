"""Reasons by a teacher: the oracle, and a server that misbehaves in every way that servers do."""

import base64
import io
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image

from rewarddance.apps.cli import main
from rewarddance.core.errors import InputError, RunError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.streams import stream
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.jobs.data.rationales import NO_FAULT, OracleTeacher, TeacherAnswer, add_rationales, outcome_of
from rewarddance.jobs.data.teacher import HttpTeacher, read_answer
from rewarddance.world.corrupt import edit_scene
from rewarddance.world.grammar import parse, phrase
from rewarddance.world.oracle import judge
from rewarddance.world.render import render
from rewarddance.world.sampling import sample_pair
from rewarddance.world.scene import Placed, Scene


@pytest.fixture
def folder(tmp_path):
    """Six records of a right and a wrong picture; the last label is wrong, and one more is a tie."""
    right = Scene((Placed("red", "circle", 13, 24, 24),), "flat", "white")
    wrong = Scene((Placed("blue", "square", 13, 24, 24),), "flat", "white")
    media = tuple(Media.from_numpy(render(s)) for s in (right, wrong))
    prompt = "flat drawing of a red circle on white"
    assert parse(prompt)
    labels = [1.0, 1.0, 0.8, 1.0, 1.0, 0.0, 0.5]
    records = [PreferenceRecord(f"r{i}", prompt, media, (Choice(0, 1, x),), "fidelity") for i, x in enumerate(labels)]
    write_rows((row_of(r) for r in records), tmp_path / "data" / "train.parquet")
    return tmp_path / "data"


def test_the_oracle_tells_what_is_wrong_and_disagreement_is_counted(folder, tmp_path):
    found = add_rationales(folder, OracleTeacher(), tmp_path / "out")
    assert (found["choices"], found["kept"], found["disagrees"]) == (6, 5, 1)
    table = RecordTable.open(tmp_path / "out" / "train.parquet")
    said = table[0].choices[0].rationale
    assert said == "the candidate matches the prompt and the reference has missing red circle and extra objects"
    assert table[5].choices[0].rationale is None
    assert table[6].choices[0].rationale is None
    listed = json.loads((tmp_path / "out" / "rationales.json").read_text())["not_kept"]
    assert listed == [{"id": "r5", "choice": "row 6 choice 1", "outcome": "disagrees"}]
    swapped = table[0].comparisons(both_orders=True)[1]
    assert swapped.rationale.startswith("the reference matches the prompt and the candidate has")


def test_an_oracles_reasons_are_of_the_criterion_and_on_the_verdicts_side():
    """Every reason that is given counts fewer faults of the better picture, by the criterion that was asked about."""
    rng, told = stream(0, "reasons"), []
    for criterion in ("fidelity", "style", "composition"):
        for _ in range(60):
            spec, scene = sample_pair(rng)
            media = [Media.from_numpy(render(edit_scene(scene, rng))) for _ in range(2)]
            said = OracleTeacher().tell(phrase(spec), *media, criterion)
            values = [judge(m.to_numpy(), spec)[criterion] for m in media]
            if said.better is None:
                assert said.problem in ("tie", "refused")
                continue
            told.append(criterion)
            assert said.better == (values[0] > values[1])
            first, second = re.fullmatch("the candidate (.*) and the reference (.*)", said.reason).groups()
            faults = [0 if NO_FAULT[criterion] in x else x.count(" and ") + 1 for x in (first, second)]
            assert (faults[0] < faults[1]) == said.better
    assert min(Counter(told)[c] for c in ("fidelity", "style", "composition")) >= 5


@pytest.mark.parametrize(
    ("prompt", "criterion"), [("a dog", "fidelity"), ("flat drawing of a red circle on white", "novelty")]
)
def test_what_the_oracle_cannot_explain_is_refused_by_name(prompt, criterion):
    media = [Media(torch.full((1, 3, 48, 48), x)) for x in (0.2, 0.8)]
    assert OracleTeacher().tell(prompt, *media, criterion).problem == "refused"


def test_a_teacher_is_asked_by_the_words_of_your_own_criteria(server):
    media = [Media(torch.full((1, 3, 8, 8), x)) for x in (0.2, 0.8)]
    with pytest.raises(InputError, match="no words to ask a teacher by"):
        teacher(server).tell("a dog", *media, "calm")
    assert teacher(server, instructions={"calm": "prefer the calmer picture."}).tell("a dog", *media, "calm").better
    assert "Prefer the calmer picture." in server.asked[0][2]["messages"][0]["content"][0]["text"]


def reply(text, **more):
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return 200, {"choices": [{"message": {"content": text, **more}}], "usage": usage}


@pytest.fixture
def server():
    """A server that gives scripted replies in turn, the last one for ever; keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                handler.asked.append((self.path, dict(self.headers), body))
                status, content = handler.script.pop(0) if len(handler.script) > 1 else handler.script[0]
            sent = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(sent)))
            if status == 429:
                self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *args):
            pass

    lock, handler = threading.Lock(), Handler
    handler.asked, handler.script = [], [reply("Yes, because the candidate is a circle.")]
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{running.server_port}/v1"
    yield handler
    running.shutdown()
    running.server_close()


def teacher(server, **changes):
    return HttpTeacher(server.url, "some-vlm", key="secret", **changes)


def test_a_server_is_asked_in_the_open_format_and_its_tokens_are_counted(folder, server, tmp_path):
    found = add_rationales(folder, teacher(server), tmp_path / "out", workers=4, price=(2.0, 10.0))
    assert (found["kept"], found["tokens_read"], found["tokens_written"]) == (5, 600, 60)
    assert found["cost"] == pytest.approx((600 * 2 + 60 * 10) / 1e6, abs=1e-4)
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert {k.lower(): v for k, v in headers.items()}["authorization"] == "Bearer secret"
    parts = body["messages"][0]["content"]
    assert [p["type"] for p in parts] == ["text", "image_url", "image_url"]
    assert "a red circle on white" in parts[0]["text"]
    assert RecordTable.open(tmp_path / "out" / "train.parquet")[0].choices[0].rationale == "the candidate is a circle."


def test_refusals_riddles_and_failures_are_recorded_and_failures_asked_again(folder, server, tmp_path):
    server.script = [
        (429, {}),
        reply("yes. The candidate is rounder."),
        reply(None, refusal="I would rather not."),
        reply("Both are lovely!"),
        (200, {"odd": True}),
        reply("No: the reference is better."),
        (500, {}),
    ]
    found = add_rationales(folder, teacher(server, attempts=2), tmp_path / "out")
    assert {k: found[k] for k in ("kept", "refused", "unreadable", "disagrees", "failed")} == {
        "kept": 1,
        "refused": 1,
        "unreadable": 2,
        "disagrees": 1,
        "failed": 1,
    }
    server.script, server.asked = [reply("no, the reference is better")], []
    again = add_rationales(folder, teacher(server), tmp_path / "out")
    assert len(server.asked) == 1  # only the failed one
    assert again["kept"] == 2
    assert "failed" not in again


def test_answers_to_other_questions_are_not_taken_for_these(folder, server, tmp_path):
    add_rationales(folder, OracleTeacher(), tmp_path / "out")
    with pytest.raises(RunError, match=r"other settings \(teacher\)"):
        add_rationales(folder, teacher(server), tmp_path / "out")
    table = list(RecordTable.open(folder / "train.parquet"))
    write_rows((row_of(r) for r in table[::-1]), folder / "train.parquet")
    with pytest.raises(RunError, match=r"other settings \(train_sha256\)"):
        add_rationales(folder, OracleTeacher(), tmp_path / "out")
    assert not server.asked


def test_several_questions_are_under_way_at_once(folder, server, tmp_path):
    """As many as there are workers meet; a client that asked one after the other would never let them."""
    meeting, tell = threading.Barrier(3, timeout=20), OracleTeacher.tell

    class Waiting(OracleTeacher):
        def tell(self, *asked):
            meeting.wait()
            return tell(self, *asked)

    assert add_rationales(folder, Waiting(), tmp_path / "out", workers=3)["choices"] == 6


def test_a_reason_that_was_cut_off_is_no_reason():
    answer = {"choices": [{"message": {"content": "Yes, because the candidate is"}, "finish_reason": "length"}]}
    assert read_answer(answer).problem == "unreadable"


def test_questions_that_a_server_turns_away_are_refused_and_the_rest_is_asked(folder, server, tmp_path):
    server.script = [reply("Yes, the candidate is rounder."), (400, {"error": "content filter"}), reply("Yes, it is.")]
    found = add_rationales(folder, teacher(server), tmp_path / "out")
    assert {k: found[k] for k in ("kept", "refused", "unreadable")} == {"kept": 1, "refused": 1, "unreadable": 4}


def test_a_server_that_turns_everything_away_is_not_asked_on(server, monkeypatch):
    monkeypatch.setattr("rewarddance.jobs.data.teacher.ALL_REFUSED", 3)
    server.script = [(400, {"error": "no such model"})]
    picture = Media(torch.rand(1, 3, 8, 8))
    asked = teacher(server)
    assert [asked.tell("a", picture, picture, "fidelity").problem for _ in range(2)] == ["refused", "refused"]
    with pytest.raises(InputError, match="no such model"):
        asked.tell("a", picture, picture, "fidelity")


def test_reasons_that_hang_on_places_are_no_reasons():
    """They would be false of the same pictures in the other order."""
    told = [
        read_answer({"choices": [{"message": {"content": f"Yes, {text}"}}]}).problem
        for text in (
            "the second image is better",
            "it is red",
            "Candidate A is red, image 1 is not",
            "the candidate is red",
        )
    ]
    assert told == ["unreadable", "unreadable", "unreadable", None]


def test_large_pictures_are_sent_smaller(folder, server, tmp_path):
    teacher(server, max_side=16).tell("a", *[Media(torch.rand(1, 3, 48, 32))] * 2, "fidelity")
    url = server.asked[0][2]["messages"][0]["content"][1]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as sent:
        assert sent.size == (11, 16)


def test_a_wrong_key_stops_at_once(folder, server, tmp_path):
    server.script = [(401, {"error": "bad key"})]
    with pytest.raises(InputError, match="401"):
        add_rationales(folder, teacher(server), tmp_path / "out")


def test_a_server_that_is_not_there_fails_and_says_so(folder, tmp_path):
    away = HttpTeacher("http://127.0.0.1:9/v1", "m", attempts=1)
    with pytest.raises(InputError, match="no reason was kept"):
        add_rationales(folder, away, tmp_path / "out", limit=2)
    assert json.loads((tmp_path / "out" / "rationales.json").read_text())["failed"] == 2


def test_answers_are_read_generously_but_not_guessed():
    assert read_answer(reply("**Yes** - the candidate has both.")[1]) == TeacherAnswer(
        True, "the candidate has both.", None, (100, 10)
    )
    assert read_answer(reply("yes")[1]).problem == "unreadable"
    assert read_answer(reply("Yesterday was better")[1]).problem == "unreadable"
    courteous = read_answer(reply("No problem, the candidate is clearly better.")[1])
    assert (courteous.better, courteous.reason) == (True, "the candidate is clearly better.")
    assert read_answer(reply("Sure! No, the reference has both.")[1]).better is False
    assert read_answer(reply("The reference is better, it has both.")[1]).better is False
    for text in ("No problem.", "The candidate is not better.", "I doubt that the candidate is better.", "Sure thing"):
        assert read_answer(reply(text)[1]).problem == "unreadable"
    assert read_answer(reply("No. The candidate is clearly better.")[1]).problem == "unreadable"
    assert read_answer(reply("No, the reference is clearly better.")[1]).better is False
    thought = "<think>No, wait. The reference is worse.</think>\n\nYes, the candidate has both."
    assert read_answer(reply(thought)[1]).reason == "the candidate has both."
    assert read_answer(reply("<think>Yes, the candidate is")[1]).problem == "unreadable"
    parts = [{"type": "text", "text": "Yes, the "}, {"type": "text", "text": "candidate is round."}]
    assert read_answer(reply(parts)[1]).reason == "the candidate is round."


@pytest.mark.parametrize("choice", [{"message": None}, {"message": {"content": None}}, {}, None])
def test_an_answer_without_a_message_is_unreadable_and_the_rest_is_asked(choice, folder, server, tmp_path):
    server.script = [(200, {"choices": [choice]}), reply("Yes, the candidate is rounder.")]
    found = add_rationales(folder, teacher(server), tmp_path / "out")
    assert {k: found[k] for k in ("kept", "unreadable", "disagrees")} == {"kept": 4, "unreadable": 1, "disagrees": 1}


def test_the_length_of_an_answer_is_a_setting(server):
    picture = Media(torch.rand(1, 3, 8, 8))
    teacher(server, max_tokens=33).tell("a", picture, picture, "fidelity")
    assert server.asked[0][2]["max_tokens"] == 33


def test_outcomes_compare_the_verdict_with_the_label():
    assert outcome_of(Choice(0, 1, 0.9), TeacherAnswer(False, "x")) == "disagrees"


def test_the_command_line_sets_the_length_of_an_answer_and_asks_the_server(folder, server, tmp_path, capsys):
    server.script = [
        reply("<think>The candidate has one circle, so</think>\n\nNo problem, the candidate is clearly better."),
        (200, {"choices": [{"message": None}]}),
        reply([{"type": "text", "text": "Yes, the candidate"}, {"type": "text", "text": " is rounder."}]),
    ]
    asked = ["--url", server.url, "--model", "some-vlm", "--workers", "1", "--max-tokens", "4000"]
    assert main(["data", "rationales", str(folder), "--out", str(tmp_path / "out"), *asked]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert {body["max_tokens"] for _, _, body in server.asked} == {4000}
    assert {k: counts[k] for k in ("kept", "unreadable", "disagrees")} == {"kept": 4, "unreadable": 1, "disagrees": 1}
    table = RecordTable.open(tmp_path / "out" / "train.parquet")
    reasons = [c.rationale for r in table for c in r.choices]
    assert reasons[:3] == ["the candidate is clearly better.", None, "the candidate is rounder."]
