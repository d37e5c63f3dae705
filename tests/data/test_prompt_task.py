"""A file of prompts behind the task port: what is trained on, what is probed, and what it has not got."""

import pytest
import torch

from rewarddance.align.probes import judge_gold
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.task import Drawn, Prompt
from rewarddance.data.prompt_task import PromptTask

TRAIN = tuple(Prompt(f"prompt {i}", "a" if i % 2 else "b") for i in range(5))
PROBE = tuple(Prompt(f"probe {i}") for i in range(3))


@pytest.mark.parametrize(("num_train", "num_probe"), [(5, 3), (2, 1), (9, 9), (5, 0)])
def test_the_first_prompts_of_each_file_are_taken(num_train, num_probe):
    for seed in (0, 7):
        train, probe = PromptTask(TRAIN, PROBE).prompts(num_train, num_probe, seed)
        assert train == TRAIN[:num_train]
        assert probe == PROBE[:num_probe]


def test_without_a_file_for_probes_the_first_training_prompts_are_probed():
    train, probe = PromptTask(TRAIN).prompts(4, 2, 0)
    assert (train, probe) == (TRAIN[:4], TRAIN[:2])
    assert PromptTask(TRAIN).prompts(1, 3, 0) == (TRAIN[:1], TRAIN[:3])


def test_it_has_no_gold_standard_but_a_second_judges():
    assert PromptTask(TRAIN).gold is None
    gold = judge_gold(None, "overall")
    task = PromptTask(TRAIN, gold=gold)
    assert task.gold is gold
    assert task.gold_name == "second judge's P(better than the start)"
    assert (task.name, task.features) == ("prompts", None)


def test_what_it_has_not_got_is_said_with_what_to_do():
    task = PromptTask(TRAIN)
    with pytest.raises(ConfigError, match=r"no benchmark; evaluate with --prompts HELD_OUT\.txt"):
        task.benchmark()
    with pytest.raises(ConfigError, match="trains on captioned pictures of the embedded world"):
        task.supervised_batch(0, "sft-control", 0, 1)
    with pytest.raises(ConfigError, match="has no preferences; `rewarddance data import` reads your own"):
        task.build_preferences(None, 0)


def test_any_generator_that_begins_as_the_prompts_do_can_do_it():
    pictured = [Prompt("a", condition=Media(torch.zeros(1, 3, 8, 8)))]
    for side in (48, 512, 1024):
        PromptTask(TRAIN).check(Drawn(side))
    PromptTask(pictured).check(Drawn(48, 9, 8.0, from_picture=True))
    with pytest.raises(ConfigError, match="1 of 1 prompts have a picture to begin with"):
        PromptTask(pictured).check(Drawn(48, 9, 8.0))
    with pytest.raises(ConfigError, match=rf"{len(TRAIN)} of {len(TRAIN) + 1} prompts have no picture"):
        PromptTask(TRAIN, pictured).check(Drawn(48, 9, 8.0, from_picture=True))
