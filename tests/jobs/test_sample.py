"""Pictures of several prompts to a folder, and what the judge said of those that were not kept."""

import json

from rewarddance.core.media import Media
from rewarddance.jobs.sample import sample_to_folder

SETTING = {"adapter": None, "criterion": "fidelity", "num_steps": 2, "guidance": 1.0, "seed": 0, "judge": "tiny"}


def test_winners_and_margins_of_every_prompt(pipeline_folder, tmp_path):
    prompts = ["flat drawing of a red circle on white", "flat drawing of a blue square on grey"]
    found = sample_to_folder(prompts, tmp_path, num=2, best_of=3, generator=str(pipeline_folder), batch=4, **SETTING)
    assert found == json.loads((tmp_path / "samples.json").read_text())
    assert [x["prompt"] for x in found] == [p for p in prompts for _ in range(2)]
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [x["file"] for x in found]
    for x in found:
        assert len(x["margins"]) == 3
        assert x["kept"] == max(range(3), key=x["margins"].__getitem__)
        assert Media.open(tmp_path / x["file"]).size == (48, 48)


def test_without_best_of_no_judge_is_asked(pipeline_folder, tmp_path):
    setting = SETTING | {"judge": "nowhere"}
    found = sample_to_folder(["a dog"], tmp_path, num=3, best_of=1, generator=str(pipeline_folder), **setting)
    assert [set(x) for x in found] == [{"file", "prompt"}] * 3
