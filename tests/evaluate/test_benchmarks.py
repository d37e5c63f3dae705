"""Result files of GenEval, T2I-CompBench and VBench, in the layouts of their scorers."""

import json

import pytest

from rewarddance.apps.cli import main
from rewarddance.core.errors import InputError
from rewarddance.evaluate.benchmarks import benchmark_results


def test_geneval_counts_right_pictures_by_tag(tmp_path, capsys):
    rows = [
        {
            "filename": f"{i:05d}/samples/{j:04d}.png",
            "tag": tag,
            "prompt": f"prompt {i}",
            "correct": right,
            "reason": "",
        }
        for i, (tag, rights) in enumerate(
            [("counting", (True, False)), ("colors", (True, True)), ("counting", (False,))]
        )
        for j, right in enumerate(rights)
    ]
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    results = benchmark_results(file)
    assert (results["benchmark"], results["num_samples"]) == ("geneval", 5)
    assert results["mean"] == pytest.approx((1 / 3 + 1) / 2)  # over tags, and not over pictures
    assert results["categories"]["counting"] == {"mean": pytest.approx(1 / 3), "ci": None, "num_prompts": 2}
    assert main(["evaluate", "--results", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == results


def test_compbench_knows_the_prompts_of_its_answers(tmp_path):
    answers = [0.1, 0.3, 0.8, 0.6, 0.5, 0.5, 0.2, 0.4]
    file = tmp_path / "vqa_result.json"
    file.write_text(json.dumps([{"question_id": i, "answer": f"{a:.4f}"} for i, a in enumerate(answers)]))
    (tmp_path / "samples.json").write_text(json.dumps([{"file": "f", "prompt": f"p{i // 2}"} for i in range(8)]))
    results = benchmark_results(file, tmp_path)
    level = results["categories"]["all"]
    assert results["mean"] == level["mean"] == pytest.approx(sum(answers) / 8)
    assert level["num_prompts"] == 4
    assert level["ci"][0] < level["mean"] < level["ci"][1]
    assert benchmark_results(file)["categories"]["all"]["num_prompts"] == 8


def test_vbench_has_dimensions_with_clips(tmp_path):
    content = {
        "subject_consistency": [
            0.9,
            [{"video_path": f"/v/a well-lit room-{i}.mp4", "video_results": r} for i, r in enumerate((0.8, 1.0))],
        ],
        "imaging_quality": [0.7, [{"video_path": f"/v/q-{i}.mp4", "video_results": r} for i, r in enumerate((60, 80))]],
        # a success rate over frames, of clips with different numbers of frames
        "object_class": [0.4, [{"video_path": f"/v/o{i}-0.mp4", "video_results": float(i)} for i in range(2)]],
        "dynamic_degree": [0.5, [{"video_path": f"/v/p{i}-0.mp4", "video_results": bool(i)} for i in range(2)]],
    }
    file = tmp_path / "x_eval_results.json"
    file.write_text(json.dumps(content))
    results = benchmark_results(file)
    assert "mean" not in results  # dimensions have scales of their own
    assert results["categories"]["imaging_quality"]["mean"] == pytest.approx(0.7)
    assert results["categories"]["subject_consistency"] == {"mean": pytest.approx(0.9), "ci": None, "num_prompts": 1}
    assert results["categories"]["object_class"]["mean"] == 0.5
    assert results["categories"]["dynamic_degree"]["num_prompts"] == 2


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("absent.json", None, "no such file of results"),
        ("x.json", "{", "no results of GenEval, T2I-CompBench or VBench"),
        ("x.json", '{"a": 1}', "no results of"),
        ("x.jsonl", '{"correct": true}', "no results of"),
        ("x.json", "[]", "holds no results"),
        ("x.json", '[{"question_id": 0, "answer": "nan"}]', "not a number"),
        ("x.json", '[{"question_id": -1, "answer": "0.5"}]', "no results of"),
    ],
)
def test_other_files_are_one_line(name, content, reason, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=reason):
        benchmark_results(tmp_path / name)


def test_a_folder_without_samples_is_named(tmp_path):
    file = tmp_path / "vqa_result.json"
    file.write_text(json.dumps([{"question_id": 0, "answer": "0.5"}]))
    with pytest.raises(InputError, match=r"samples\.json: cannot read it \(No such file"):
        benchmark_results(file, tmp_path)
