"""The embedded world behind the task port: prompts, what is held out, the gold standard, pictures to train on."""

import numpy as np
import pytest
import torch

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.task import Drawn
from rewarddance.jobs.load import load_task
from rewarddance.world.batches import captioned_batch
from rewarddance.world.benchmark import benchmark_prompts
from rewarddance.world.grammar import parse
from rewarddance.world.oracle import fidelity
from rewarddance.world.splits import meaning, split_of
from rewarddance.world.task import EmbeddedTask


def test_the_name_in_a_configuration_finds_it():
    task = load_task("embedded")
    assert isinstance(task, EmbeddedTask)
    assert (task.name, task.gold_name, task.features) == ("embedded", "oracle fidelity", "tiny")


def test_prompts_are_distinct_in_meaning_and_a_function_of_the_seed():
    train, probe = EmbeddedTask().prompts(30, 10, 5)
    assert (len(train), len(probe)) == (30, 10)
    specs = [parse(p.text) for p in (*train, *probe)]
    assert len({meaning(s) for s in specs}) == 40
    assert {split_of(s) for s in specs} == {"train"}
    assert [p.category for p in (*train, *probe)] == [s.category for s in specs]
    assert EmbeddedTask().prompts(30, 10, 5) == (train, probe)
    assert EmbeddedTask().prompts(30, 10, 6) != (train, probe)
    more, _ = EmbeddedTask().prompts(40, 0, 5)
    assert more == (*train, *probe)


def test_the_benchmark_is_held_out_of_what_is_trained_on():
    task = EmbeddedTask()
    held_out = task.benchmark()
    assert [(p.category, p.text) for p in held_out] == list(benchmark_prompts())
    train, probe = task.prompts(200, 40, 0)
    trained = {meaning(parse(p.text)) for p in (*train, *probe)}
    assert not trained & {meaning(parse(p.text)) for p in held_out}
    assert {split_of(parse(p.text)) for p in held_out} <= {"held_out", "ood"}


def test_a_second_benchmark_shares_no_meaning_with_what_was_measured_or_chosen_on_before():
    task = EmbeddedTask()
    second = task.second_benchmark(2)
    meanings = [{meaning(parse(p.text)) for p in own} for own in (second, task.benchmark(), task.development())]
    assert len(meanings[0]) == len(second)
    assert not meanings[0] & (meanings[1] | meanings[2])
    assert {split_of(parse(p.text)) for p in second} == {"held_out"}
    categories = [p.category for p in second]
    assert [categories.count(c) for c in ("object", "attribute", "count", "relation")] == [48] * 4
    assert 10 < categories.count("concept") < 48
    assert task.second_benchmark(2) == second
    assert {p.text for p in task.second_benchmark(3)} != {p.text for p in second}


def test_gold_is_the_oracles_fidelity_of_each_picture_to_its_own_prompt():
    task = EmbeddedTask()
    prompts, pixels = task.supervised_batch(0, "test", 0, 4)
    media = [Media(x[None]) for x in pixels]
    right, wrong = task.gold(prompts, media, media), task.gold(prompts, media[::-1], media)
    assert right == [fidelity(m.to_numpy(), p) for m, p in zip(media, prompts, strict=True)]
    assert min(right) > 0.9
    assert wrong == [fidelity(m.to_numpy(), p) for m, p in zip(media[::-1], prompts, strict=True)]
    assert np.mean(wrong) < np.mean(right) - 0.2
    with pytest.raises(ValueError, match="zip"):
        task.gold(prompts[:1], media, media)


def test_a_supervised_batch_is_a_pure_function_of_its_arguments():
    task = EmbeddedTask()
    prompts, pixels = task.supervised_batch(3, "sft-control", 7, 5)
    assert len(prompts) == 5
    assert pixels.shape == (5, 3, 48, 48)
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() < pixels.max() <= 1
    texts, images = captioned_batch(3, "sft-control", 7, 5)
    assert prompts == texts
    for x, image in zip(pixels, images, strict=True):
        assert np.array_equal(Media(x[None]).to_numpy(), image)
    again = task.supervised_batch(3, "sft-control", 7, 5)
    assert again[0] == prompts
    assert torch.equal(again[1], pixels)
    for other in ((4, "sft-control", 7, 5), (3, "other", 7, 5), (3, "sft-control", 8, 5)):
        assert not torch.equal(task.supervised_batch(*other)[1], pixels)


def test_only_generators_of_its_own_pictures_can_do_it():
    EmbeddedTask().check(Drawn(48))
    with pytest.raises(ConfigError, match=r"draws 512 pixels and the embedded world has 48, .* --prompts FILE"):
        EmbeddedTask().check(Drawn(512))


def test_preferences_are_built_by_the_data_job(tmp_path, monkeypatch):
    from rewarddance.jobs.data import build

    asked = []
    monkeypatch.setattr(build, "build_embedded", lambda folder, seed: asked.append((folder, seed)))
    EmbeddedTask().build_preferences(tmp_path, 4)
    assert asked == [(tmp_path, 4)]
