"""The arms of a study: what a file may say, and which `align` configuration a run gets."""

import pytest

from rewarddance.core.config import load_recipe, parse_config
from rewarddance.core.errors import ConfigError
from rewarddance.lab.alignment_config import AlignmentStudyConfig, study_of

FILES = ("study-alignment", "study-rates", "study-judges")


def study(**values):
    return parse_config(AlignmentStudyConfig, values, "study")


@pytest.mark.parametrize("name", FILES)
def test_shipped_studies_are_valid(name):
    made = study(**load_recipe(f"recipes/tiny/{name}.yaml"))
    made.check()
    for arm in made.arms:
        config = made.align_config(arm, 7)
        assert config.seed == 7
        assert "{" not in config.judge


def test_the_order_is_recipe_then_study_then_arm_then_seed():
    made = study(
        align={"batch_size": 8, "optim": {"lr": 0.5}},
        arms={"a": {}, "b": {"align": {"optim": {"lr": 0.25}, "judge": "runs/x-{seed}"}, "match_kl": "a"}},
    )
    first, second = (made.align_config(arm, 3) for arm in made.arms)
    assert (first.batch_size, first.optim.lr, first.optim.ema_decay, first.judge) == (8, 0.5, 0.95, "tiny")
    assert (second.batch_size, second.optim.lr, second.judge, second.seed) == (8, 0.25, "runs/x-3", 3)
    assert (first.loop.num_steps, second.loop.num_steps) == (200, 600)


def test_marks_are_work_then_kl_else_the_end():
    budget = {"generator_passes": 10}
    made = study(arms={"a": {}, "b": {"match_kl": "a"}, "c": {"match_kl": "a", "budget": budget}, "d": {}})
    assert [made.marks(arm) for arm in made.arms] == [("end",), ("kl",), ("work", "kl"), ("end",)]
    assert study(arms={"a": {}}, budget=budget).marks("a") == ("work",)
    assert made.baseline_of("c") == "a"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arms": {"a": {"match_kl": "b"}, "b": {}}}, "arm a: match_kl 'b' is not an arm that is listed before it"),
        ({"arms": {"a": {}}, "baseline": "b"}, "baseline 'b': not an arm; known: a"),
        ({"arms": {"../a": {}}}, "arm '../a': a name has letters, digits, _"),
        ({"arms": {"a": {"aling": {}}}}, "unknown key 'arms.a.aling'"),
    ],
)
def test_wrong_arms_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        study(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"align": {"batch_sise": 3}}, r"arm b \(recipes/tiny/refl.yaml\): unknown key 'batch_sise'"),
        ({"align": {"guidance": 2.0}}, "arm b: guidance differs from that of arm a"),
        ({"align": {"task": "embedded-video"}}, "arm b: task differs from that of arm a"),
        ({"align": {"algorithm": "sft"}, "standardise": True}, "arm b: sft asks no judge"),
        ({"align": {"loop": {"num_steps": 0}}}, "arm b: loop.num_steps 0 trains nothing"),
        ({"align": {"loop": {"log_every": 5}}}, "arm b: loop.log_every 5 loses points of the figure; take 1"),
        ({"align": {"optim": {"schedule": "cosine"}}, "match_kl": "a"}, "which would stretch optim.schedule cosine"),
    ],
)
def test_wrong_recipes_of_arms_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        study(arms={"a": {}, "b": change}).check()


def test_a_recipe_of_align_is_the_study_of_before():
    recipe = load_recipe("recipes/tiny/refl.yaml")
    made = study(**study_of(recipe, "recipes/tiny/refl.yaml", "runs/shuffled"))
    assert list(made.arms) == ["refl", "sft", "shuffled"]
    assert [made.align_config(a, 0).judge for a in made.arms] == ["tiny", "tiny", "runs/shuffled"]
    assert made.align_config("sft", 0).algorithm == "sft"
    assert list(study_of(recipe, "recipes/tiny/refl.yaml", None)["arms"]) == ["refl", "sft"]
    with pytest.raises(ConfigError, match="no arm `shuffled`"):
        study_of({"arms": {"a": {}}}, "x.yaml", "runs/shuffled")
