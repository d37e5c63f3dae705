"""A judge behind HTTP: a real server process gives the local judge's margins, and a bad one gives NaN with reasons."""

import json
import re
import threading
import time

import pytest
import torch
from desks import free_port
from judge_servers import GOOD, INFO, PROMPT, moody, served_judge, started_judge
from small_runs import trajectory
from test_rollout_runs import configured

from rewarddance.apps.cli import main
from rewarddance.core.disk import list_checkpoints
from rewarddance.core.errors import ConfigError, JudgementError
from rewarddance.core.media import Media
from rewarddance.core.runs import RunFolder
from rewarddance.core.types import Comparison
from rewarddance.jobs.align import align_from_names
from rewarddance.jobs.load import find, load_judge, weights_id
from rewarddance.reward.composite import Composite, Standard
from rewarddance.reward.parts import JudgePart
from rewarddance.reward.remote import RemoteJudge, _verdict
from rewarddance.reward.wire import answer_of, decoded, encoded
from rewarddance.search.verifier import answers_alone


@pytest.fixture(scope="module")
def server():
    with served_judge() as address:
        yield address


@pytest.fixture(scope="module")
def local():
    return load_judge("tiny", precision="fp32")


@pytest.fixture
def asked(pictures):
    narrow = Media(torch.rand(1, 3, 1, 300))
    return [
        Comparison(PROMPT, pictures[0], pictures[1], "fidelity"),
        Comparison(PROMPT, pictures[1], narrow),
        Comparison(PROMPT, pictures[2]),
        Comparison(PROMPT, pictures[1], pictures[0], "fidelity"),
        Comparison(PROMPT, pictures[3], pictures[0]),
    ]


def test_a_server_gives_the_margins_of_its_judge(server, local, asked):
    remote = load_judge(server)
    assert isinstance(remote, RemoteJudge)
    assert remote.info.weights == weights_id(find("tiny", "judge"))
    assert (remote.criterion, remote.own_or("mood")) == (local.criterion, local.own_or("mood"))
    assert answers_alone(remote) == answers_alone(local)
    here, there = local.judge(asked), remote.judge(asked)
    assert list(there.refused) == list(here.refused) == [1]
    assert there.margin.isnan().tolist() == [False, True, False, False, False]
    for name in ("margin", "answer_mass", "disagreement"):
        a, b = getattr(here, name), getattr(there, name)
        assert b.nan_to_num(7).tolist() == pytest.approx(a.nan_to_num(7).tolist(), abs=2e-4), name
    parts = load_judge(f"{server}?batch=2").judge(asked)
    assert parts.margin.nan_to_num(7).tolist() == pytest.approx(there.margin.nan_to_num(7).tolist(), abs=2e-4)
    rounded = load_judge(f"{server}?pictures=png").judge(asked)
    eight_bits = [
        Comparison(
            c.prompt, Media.from_bytes(c.candidate.to_bytes()), r and Media.from_bytes(r.to_bytes()), c.criterion
        )
        for c in asked
        for r in [c.reference]
    ]
    expected = local.judge(eight_bits).margin
    assert rounded.margin.nan_to_num(7).tolist() == pytest.approx(expected.nan_to_num(7).tolist(), abs=2e-4)
    assert len(remote.judge([])) == 0
    with pytest.raises(JudgementError, match="1 of 5 comparisons were refused"):
        remote.judge(asked, on_refused="raise")


def test_media_above_the_limit_of_a_server_are_refused_and_the_others_asked(server, local, asked):
    remote = load_judge(server)
    largest = max(m.frames.numel() for c in asked for m in (c.candidate, c.reference) if m is not None)
    wide = Comparison(PROMPT, Media(torch.rand(1, 3, 48, 48 * 9)), asked[0].reference)
    remote.info = remote.info.model_copy(update={"most_bytes": 6 * 3 * largest})
    verdict = remote.judge([asked[0], wide])
    assert list(verdict.refused) == [1]
    assert "the media take more than" in verdict.refused[1]
    assert verdict.margin[0].item() == pytest.approx(local.judge(asked[:1]).margin.item(), abs=2e-4)


def test_a_run_with_a_server_repeats_the_run_with_its_judge(server, pipeline_folder, tmp_path):
    config = configured("nft", "pointwise", num_steps=2).model_copy(update={"generator": str(pipeline_folder)})
    (tmp_path / "prompts.txt").write_text("".join(f"{PROMPT} {i}\n" for i in range(6)))
    config = config.model_copy(update={"prompts": str(tmp_path / "prompts.txt")})
    for name, judge in (("local", "tiny"), ("remote", server)):
        align_from_names(config.model_copy(update={"judge": judge, "gold_judge": server}), tmp_path / name)
    keys = ("loss", "within_std", "reward", "probe/proxy", "probe/gold")
    here, there = (trajectory(tmp_path / name, *keys) for name in ("local", "remote"))
    for key in keys:
        assert there[key] == pytest.approx(here[key], rel=1e-3, abs=1e-4), key
    assert trajectory(tmp_path / "remote", "probe/sensitivity") == {"probe/sensitivity": []}
    record = json.loads((tmp_path / "remote" / "run.json").read_text())
    assert record["computes_in"]["judge"] == "fp32"


@pytest.mark.slow
def test_a_judge_that_dies_ends_the_run_and_resume_with_a_new_one_gives_the_same_metrics(
    server, pipeline_folder, tmp_path
):
    port = free_port()
    (tmp_path / "prompts.txt").write_text("".join(f"{PROMPT} {i}\n" for i in range(6)))
    config = configured("nft", "pointwise", num_steps=6).model_copy(update={"generator": str(pipeline_folder)})
    loop = config.loop.model_copy(update={"save_every": 2, "validate_every": 6})
    config = config.model_copy(update={"prompts": str(tmp_path / "prompts.txt"), "loop": loop})
    align_from_names(config.model_copy(update={"judge": server}), tmp_path / "whole")
    out, address = tmp_path / "run", f"http://127.0.0.1:{port}"
    config = config.model_copy(update={"judge": f"{address}?attempts=1"})
    process = started_judge(port, tmp_path / "log.txt")

    def kill():
        while len(RunFolder(out).metrics()) < 4:  # the probe before the first step, and three steps
            time.sleep(0.01)
        process.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(JudgementError) as error:
        align_from_names(config, out)
    killer.join()
    process.join()
    saved = list_checkpoints(out / "checkpoints")
    assert saved
    assert re.search(r"step \d: the judge refused \d+ of \d+ questions; .*Connection error", str(error.value))
    assert str(error.value).endswith(
        f"; {out} keeps its checkpoint of step {saved[-1]}, and a resumed run goes on from there"
    )
    with served_judge(port):
        align_from_names(config, out, resume=True)
    keys = ("step", "loss", "within_std", "reward", "grad_norm", "probe/proxy")
    whole, resumed = (trajectory(tmp_path / name, *keys) for name in ("whole", "run"))
    assert whole["step"] == list(range(7))
    for key in keys:
        assert resumed[key] == pytest.approx(whole[key], rel=1e-5, abs=1e-7), key


def test_a_set_may_ask_a_server_and_refl_refuses_it(server, local, asked, tmp_path, capsys):
    unit = Standard(0.0, 1.0, 1.0)
    parts = {"here": JudgePart(local), "there": JudgePart(load_judge(server))}
    judge = Composite(parts, dict.fromkeys(parts, unit), dict.fromkeys(parts, 0.5), combine="minimum")
    assert not judge.differentiable
    verdict = judge.judge([asked[0], asked[4]])
    assert verdict.parts["here"].tolist() == pytest.approx(verdict.parts["there"].tolist(), abs=2e-4)
    again = _verdict([answer_of(verdict)])
    assert again.swapped_margin.tolist() == pytest.approx(verdict.swapped_margin.tolist(), abs=1e-6)
    assert again.parts["here"].tolist() == pytest.approx(verdict.parts["here"].tolist(), abs=1e-6)
    assert main(["align", "--judge", server, "--algorithm", "refl", "--out", str(tmp_path / "run")]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("rewarddance: algorithm refl: needs the judge's gradient")
    assert not (tmp_path / "run").exists()


def test_a_search_asks_a_server(server, tmp_path, capsys):
    search = ["--search", "best_of_n", "--nfe", "8", "--num-steps", "4", "--num", "1"]
    out = tmp_path / "samples"
    assert main(["sample", "--prompt", PROMPT, "--judge", server, *search, "--out", str(out)]) == 0
    assert (out / "samples.json").is_file()


@pytest.mark.parametrize(
    ("moods", "reason"),
    [
        ([503, 429, GOOD], None),
        ([503, 500, 503], "503"),
        (["slow", "slow", "slow"], "Request timed out"),
        ([422], "422"),
        ([{"margins": [1.0, 2.0], "answer_mass": [1.0, 1.0]}], "has not 1 items"),
        ([{"margins": ["much"]}], "cannot be read"),
        ([{"margins": [None], "answer_mass": [None]}], "is not a number"),
        ([{**GOOD, "refused": {"0": "too dark"}}], "too dark"),
    ],
)
def test_a_bad_answer_is_repeated_or_refused_and_never_a_number(moods, reason, pictures):
    with moody(moods) as server:
        judge = load_judge(f"http://127.0.0.1:{server.server_port}?attempts=3&timeout=0.4")
        verdict = judge.judge([Comparison(PROMPT, pictures[0], pictures[1])])
    assert not server.moods
    if reason is None:
        assert (verdict.margin.tolist(), verdict.refused) == (pytest.approx([1.5]), {})
    else:
        assert verdict.margin.isnan().all()
        assert reason in verdict.refused[0]


def test_a_server_that_has_ended_refuses_everything_and_gets_the_key_before(pictures, monkeypatch):
    asked = [Comparison(PROMPT, pictures[i], pictures[0]) for i in range(1, 4)]
    monkeypatch.setenv("REWARDDANCE_JUDGE_KEY", "secret")
    with moody([GOOD]) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        judge = load_judge(f"{address}?attempts=2&batch=1")
        assert judge.judge(asked[:1]).margin.tolist() == pytest.approx([1.5])
        assert server.keys == ["Bearer secret"]
    verdict = judge.judge(asked)
    assert verdict.margin.isnan().all()
    assert sorted(verdict.refused) == [0, 1, 2]
    assert f"{address}: Connection error" in verdict.refused[2]


def test_addresses_are_checked(tmp_path):
    for address, message in (
        ("http://127.0.0.1:1?attempts=1", "no answer from"),
        ("http://127.0.0.1:1?attemps=1", "did you mean 'attempts'"),
        ("http://127.0.0.1:1?timeout=0", "timeout"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_judge(address)
    with pytest.raises(ConfigError, match="the server has its own"):
        load_judge("http://127.0.0.1:1", tiles=2)
    with pytest.raises(ConfigError, match="is on a server"):
        find("http://127.0.0.1:1", "judge")


def test_requests_that_are_wrong_or_too_large_are_refused_by_status(pictures):
    from fastapi.testclient import TestClient

    from rewarddance.apps.judge_server import MAX_BYTES, create_app
    from rewarddance.reward.wire import JudgeInfo

    class Unasked:
        def judge(self, comparisons):
            raise AssertionError

    client = TestClient(create_app(Unasked(), JudgeInfo(**INFO)))
    good = encoded([Comparison(PROMPT, pictures[0])], "png").model_dump()
    for change, message in (
        ({"pictures": [{"png": "bm90IGEgcGljdHVyZQ=="}]}, "not a picture"),
        ({"pictures": [{"png": "%"}]}, "not base64"),
        ({"pictures": [{"tensor": "0"}]}, "no tensor 0"),
        ({"safetensors": "bm8="}, "safetensors: cannot be read"),
        ({"pictures": []}, "there are only 0"),
        ({"pictures": [{}]}, "either png or tensor"),
    ):
        answer = client.post("/judge", json={**good, **change})
        assert answer.status_code == 422
        assert message in answer.text
    large = client.post("/judge", content=b"{}", headers={"content-length": str(MAX_BYTES + 1)})
    assert large.status_code == 413
    locked = TestClient(create_app(Unasked(), JudgeInfo(**INFO), "secret"))
    assert [locked.get("/info", headers=h).status_code for h in ({}, {"authorization": "Bearer secret"})] == [401, 200]


def test_equal_pictures_are_sent_once_and_come_back_as_they_were(pictures):
    pairs = [Comparison(PROMPT, pictures[i], pictures[j], "mood") for i in range(4) for j in range(i)]
    body = encoded(pairs, "safetensors")
    assert len(body.pictures) == 4
    for sent, came in zip(pairs, decoded(body), strict=True):
        assert (came.prompt, came.criterion) == (sent.prompt, "mood")
        assert torch.equal(came.candidate.frames, sent.candidate.frames)
        assert torch.equal(came.reference.frames, sent.reference.frames)
    clip = Media(torch.rand(3, 3, 8, 8), fps=8.0)
    back = decoded(encoded([Comparison(PROMPT, clip, condition=pictures[0])], "png"))[0]
    assert (back.candidate.fps, back.candidate.num_frames) == (8.0, 3)
    assert torch.allclose(back.condition.frames, pictures[0].frames, atol=0.5 / 255 + 1e-6)
