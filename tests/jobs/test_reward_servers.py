"""Reward calls of other trainers: our server answers them, and their servers may judge; a failure is never a number."""

import base64
import io
import json
import math
import urllib.request

import pytest
import torch
from judge_servers import PROMPT, moody, served_judge
from small_runs import trajectory
from test_rollout_runs import configured

from rewarddance.apps.cli import main
from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media
from rewarddance.core.task import Prompt
from rewarddance.core.types import Comparison, Verdict
from rewarddance.data.prompt_task import PromptTask
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.load import load_judge, same_judge
from rewarddance.reward.trainer_wire import (
    ComputeBody,
    ScoreBody,
    answer_compute,
    answer_score,
    compute_request,
    score_request,
)

HEALTH = {"status": "ok", "rewards": {"hpsv2": ["hpsv2:ready"]}}


@pytest.fixture(scope="module")
def server():
    with served_judge() as address:
        yield address


@pytest.fixture(scope="module")
def local():
    return load_judge("tiny", precision="fp32")


def posted(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read())


def file_of(media, kind="PNG"):
    buffer = io.BytesIO()
    media.to_pil().save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def rounded(media):
    return media and Media.from_bytes(media.to_bytes())


class Rounded:
    """The local judge on pictures of 8 bits, asked about each alone; a comparison is the difference of two margins."""

    differentiable = False

    def __init__(self, judge, criterion):
        self.inner, self.criterion = judge, criterion

    def judge(self, comparisons):
        asked = [
            Comparison(c.prompt, rounded(media), None, self.criterion)
            for c in comparisons
            for media in (c.candidate, c.reference)
            if media is not None
        ]
        margins = iter(self.inner.judge(asked).margin.tolist())
        return Verdict.from_margin(
            torch.tensor([next(margins) - (0.0 if c.reference is None else next(margins)) for c in comparisons])
        )


def test_scores_are_the_local_judges_and_comparisons_their_differences(server, local, pictures):
    asked = [
        Comparison(PROMPT, pictures[0]),
        Comparison(PROMPT, pictures[1], pictures[0], "overall"),
        Comparison(PROMPT, Media(torch.rand(1, 3, 1, 300)), pictures[0]),
        Comparison("flat drawing of a blue square on white", pictures[2], pictures[0]),
    ]
    judge = load_judge(f"{server}/score?reward=fidelity&batch=3")
    assert (judge.criterion, judge.own_or("overall"), judge.precision) == ("fidelity", "fidelity", "unknown")
    assert not judge.differentiable
    assert not judge.parts_are_judges
    verdict = judge.judge(asked)
    assert list(verdict.refused) == [2]
    expected = Rounded(local, "fidelity").judge([asked[0], asked[1], asked[3]]).margin
    assert verdict.margin[2].isnan()
    assert verdict.margin[[0, 1, 3]].tolist() == pytest.approx(expected.tolist(), abs=2e-4)
    own = load_judge(f"{server}/compute").judge([asked[0], asked[1]])
    criterion = local.criterion
    assert own.margin.tolist() == pytest.approx(Rounded(local, criterion).judge(asked[:2]).margin.tolist(), abs=2e-4)
    assert load_judge(f"{server}/judge").judge(asked[:1]).margin.item() == pytest.approx(
        local.judge(asked[:1]).margin.item(), abs=2e-4
    )


def test_a_request_of_unirl_is_answered_item_by_item(server, local, pictures):
    jpeg = Media.open_picture(io.BytesIO(base64.b64decode(file_of(pictures[0], "JPEG"))))
    identity = {"request_id": "r0", "sample_id": "s0", "group_id": "g0", "source_rank": 3, "policy_version": 7}
    identity["idempotency_key"] = "0a"
    turn = {"text": PROMPT, "image_b64": file_of(pictures[0], "JPEG")}
    wide = {"text": PROMPT, "image_b64": file_of(pictures[1])}
    items = [
        {"history": [turn], "required_rewards": ["fidelity", "overall", "beauty"], "metadata": {"a": 1}, **identity},
        {"history": [{"text": PROMPT, "image_b64": "bm90IGEgcGljdHVyZQ=="}], "required_rewards": ["fidelity"]},
        {"history": [{"text": PROMPT, "video_path": "/etc/passwd"}], "required_rewards": ["fidelity"]},
        {"history": [wide, wide, turn], "required_rewards": ["fidelity"]},
        {"history": [], "required_rewards": ["fidelity"]},
    ]
    answer = posted(f"{server}/score", {"protocol_version": "1", "requests": items})
    assert answer["protocol_version"] == "1"
    named = ("fidelity", "overall")
    values = local.judge([Comparison(PROMPT, jpeg, None, criterion) for criterion in named]).margin.tolist()
    expected = {name: {"margin": pytest.approx(v, abs=2e-4)} for name, v in zip(named, values, strict=True)}
    assert answer["results"][0] == expected
    assert answer["results"][1:] == [{}] * 4
    assert "no such reward here; there are: " in answer["errors"][0]["beauty"]
    reasons = ("not a picture", "this server opens none", "2 pictures before the sample", "no image_b64")
    for reason, errors in zip(reasons, answer["errors"][1:], strict=True):
        assert reason in errors["fidelity"]
    weights = load_judge(server).info.weights
    assert answer["identities"][0] == identity | {"scorer_version": weights}
    with urllib.request.urlopen(f"{server}/health") as health:
        listed = json.loads(health.read())
    assert listed["status"] == "ok"
    assert "fidelity" in listed["rewards"]


def test_a_request_of_flow_factory_with_a_failed_item_has_an_error(server, local, pictures):
    good = {"prompt": [PROMPT, PROMPT], "image": [file_of(p) for p in pictures[:2]], "video": None, "kwargs": {"a": 1}}
    answer = posted(f"{server}/compute", good)
    expected = local.judge([Comparison(PROMPT, rounded(p)) for p in pictures[:2]]).margin.tolist()
    assert answer == {"rewards": pytest.approx(expected, abs=2e-4), "error": None}
    narrow = file_of(Media(torch.rand(1, 3, 1, 300)))
    answer = posted(f"{server}/compute", {**good, "image": [good["image"][0], narrow]})
    assert answer["rewards"] == [pytest.approx(expected[0], abs=2e-4), None]
    assert answer["error"].startswith("item 1: ")
    answer = posted(f"{server}/compute", {**good, "image": ["bm90IGEgcGljdHVyZQ==", good["image"][0]]})
    assert answer["rewards"] == [None, pytest.approx(expected[0], abs=2e-4)]
    assert answer["error"].startswith("item 0: sample: not a picture")
    with pytest.raises(InputError, match="as many prompts"):
        answer_compute(ComputeBody(prompt=(PROMPT,), image=()), local.judge)


@pytest.mark.parametrize(("algorithm", "score"), [("nft", "pointwise"), ("grpo", "round_robin"), ("ppo", "pointwise")])
def test_an_alignment_by_scores_repeats_the_one_by_the_local_judge(
    server, local, pipeline_folder, tmp_path, algorithm, score
):
    config = configured(algorithm, score, num_steps=1)
    task = PromptTask([Prompt(f"{PROMPT} {i}") for i in range(9)])
    judges = {"here": Rounded(local, "fidelity"), "there": load_judge(f"{server}/score?reward=fidelity")}
    for name, judge in judges.items():
        align_generator(config, Sd3Generator.load(pipeline_folder), judge, tmp_path / name, task=task)
    keys = ("loss", "within_std", "probe/proxy") + (("reward",) if score == "pointwise" else ())
    here, there = (trajectory(tmp_path / name, *keys) for name in judges)
    for key in keys:
        assert there[key] == pytest.approx(here[key], rel=1e-3, abs=1e-4), key
        assert there[key]
        assert all(math.isfinite(value) for value in there[key])


def test_refl_refuses_scores(server, tmp_path, capsys):
    address = f"{server}/score?reward=fidelity"
    assert main(["align", "--judge", address, "--algorithm", "refl", "--out", str(tmp_path / "run")]) == 1
    assert "algorithm refl: needs the judge's gradient" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def results(*values):
    return {"results": list(values), "errors": [{} for _ in values]}


@pytest.mark.parametrize(
    ("protocol", "mood", "reason"),
    [
        ("score", results({"hpsv2": {"score": 0.25}}), None),
        ("score", {"results": [{"hpsv2": {"score": 1}}]}, None),
        ("score", 503, "503"),
        ("score", "slow", "Request timed out"),
        ("score", results({"hpsv2": {"score": float("nan")}}), "is not a number"),
        ("score", results({"hpsv2": {"score": None}}), "is not a number"),
        ("score", results({"hpsv2": {"score": "0.5"}}), "is not a number"),
        ("score", results({"hpsv2": {"score": True}}), "is not a number"),
        ("score", results({"hpsv2": {}}), "no hpsv2 in the answer"),
        ("score", results({"clip": {"score": 0.5}}), "no hpsv2 in the answer"),
        ("score", results({"hpsv2": {"a": 0.5, "b": 0.7}}), "several values (a, b)"),
        ("score", results({"hpsv2": {"score": 0.5}}, {"hpsv2": {"score": 0.5}}), "has not 1 items"),
        ("score", {"results": [], "errors": []}, "has not 1 items"),
        ("score", {"results": [{"hpsv2": {"score": 0.5}}], "errors": [{"hpsv2": "out of memory"}]}, "out of memory"),
        ("score", {"protocol_version": "2", **results({"hpsv2": {"score": 0.5}})}, "cannot be read"),
        ("score", {"scores": [0.5]}, "cannot be read"),
        ("compute", {"rewards": [0.25]}, None),
        ("compute", {"rewards": [float("nan")]}, "is not a number"),
        ("compute", {"rewards": [0.5, 0.5]}, "has not 1 items"),
        ("compute", {"rewards": [0.5], "error": "out of memory"}, "out of memory"),
    ],
)
def test_a_bad_answer_of_a_reward_server_is_refused(protocol, mood, reason, pictures):
    with moody([mood] * 2) as server:
        server.info = HEALTH
        judge = load_judge(f"http://127.0.0.1:{server.server_port}/{protocol}?attempts=2&timeout=0.4")
        verdict = judge.judge([Comparison(PROMPT, pictures[0])])
    if reason is None:
        assert verdict.refused == {}
        assert verdict.margin.item() in (0.25, 1.0)
    else:
        assert verdict.margin.isnan().all()
        assert reason in verdict.refused[0]


def test_a_failed_item_leaves_the_others_and_a_named_value_is_taken(pictures):
    asked = [Comparison(PROMPT, pictures[0], pictures[1]), Comparison(PROMPT, pictures[2])]
    answer = {
        "results": [{"hpsv2": {"a": 0.5, "b": 3.0}}, {"hpsv2": {"a": 0.5, "b": 1.0}}, {}],
        "errors": [None, {}, {"hpsv2": "out of memory"}],
    }
    with moody([answer]) as server:
        server.info = HEALTH
        address = f"http://127.0.0.1:{server.server_port}"
        judge = load_judge(f"{address}/score?value=b&attempts=1")
        verdict = judge.judge(asked)
        assert verdict.margin[0].item() == pytest.approx(2.0, abs=1e-6)
        assert verdict.refused == {1: "out of memory"}
    dead = judge.judge(asked)
    assert dead.margin.isnan().all()
    assert f"{address}: Connection error" in dead.refused[1]


def test_addresses_of_reward_servers_are_checked():
    with moody([]) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        server.info = {"status": "ok", "rewards": {"hpsv2": [], "clip": []}}
        for end, message in (
            ("/score", "several rewards; choose one .*there are: hpsv2, clip"),
            ("/score?reward=hpsv", "no reward 'hpsv'; choose one .*there are: hpsv2, clip"),
            ("?reward=hpsv2", "settings of an address that ends in /score"),
            ("/compute?value=a", "settings of an address that ends in /score"),
            ("/score?reward=clip&pictures=safetensors", "takes encoded pictures only"),
        ):
            with pytest.raises(ConfigError, match=message):
                load_judge(address + end)
        assert load_judge(f"{address}/score?reward=clip").info.criteria == ("clip",)
    with pytest.raises(ConfigError, match="no answer from a reward server with /score there"):
        load_judge(f"{address}/score?attempts=1")


@pytest.mark.parametrize(
    ("address", "is_same"),
    [
        ("http://127.0.0.1:1/score?timeout=9&reward=hpsv2", True),
        ("http://127.0.0.1:1/score?reward=clip", False),
        ("http://127.0.0.1:1/score?reward=hpsv2&value=b", False),
        ("http://127.0.0.1:2/score?reward=hpsv2", False),
        ("http://127.0.0.1:1/compute", False),
        ("tiny", False),
    ],
)
def test_two_rewards_of_one_server_are_two_judges(address, is_same):
    assert same_judge("http://127.0.0.1:1/score?reward=hpsv2", address) is is_same
    assert same_judge("http://127.0.0.1:1/judge?batch=2", "http://127.0.0.1:1/")


def test_clips_and_condition_pictures_arrive_as_they_were_sent(pictures):
    pytest.importorskip("av")
    clip = Media.from_bytes(torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), fps=8.0)
    came = []

    def judge(comparisons):
        came.extend(comparisons)
        return Verdict.from_margin(torch.arange(1.0, 1 + len(comparisons)))

    asked = [Comparison(PROMPT, clip, condition=rounded(pictures[0])), Comparison(PROMPT, Media(clip.frames))]
    body, read = score_request(asked, "motion", None)
    assert len(body["requests"]) == 1
    answer = read(answer_score(ScoreBody.model_validate(body), ("motion",), "0", judge).model_dump())
    assert answer.margins == (1.0, None)
    assert "frames per second" in answer.refused[1]
    assert (came[0].prompt, came[0].candidate.fps, came[0].criterion) == (PROMPT, 8.0, "motion")
    assert torch.equal(came[0].candidate.to_bytes(), clip.to_bytes())
    assert torch.equal(came[0].condition.to_bytes(), pictures[0].to_bytes())
    came.clear()
    body, read = compute_request([asked[0]])
    assert read(answer_compute(ComputeBody.model_validate(body), judge).model_dump()).margins == (1.0,)
    assert torch.equal(came[0].candidate.to_bytes(), clip.to_bytes())
    assert torch.equal(came[0].condition.to_bytes(), pictures[0].to_bytes())
    with pytest.raises(InputError, match="only pictures or only clips"):
        compute_request([asked[0], Comparison(PROMPT, pictures[0])])


def test_equal_samples_are_asked_about_once(pictures):
    pairs = [Comparison(PROMPT, pictures[i], pictures[j]) for i in range(4) for j in range(i)]
    body, read = score_request(pairs, "hpsv2", None)
    assert len(body["requests"]) == 4
    order = [
        next(i for i, p in enumerate(pictures) if file_of(p) == r["history"][0]["image_b64"]) for r in body["requests"]
    ]
    answer = read({"results": [{"hpsv2": {"score": float(i * i)}} for i in order]})
    assert answer.margins == tuple(float(i * i - j * j) for i in range(4) for j in range(i))
