"""Names of public backbones: what is meant for the hub, and one clear line where it cannot be had."""

import json

import pytest
import torch

from rewarddance.core.errors import ConfigError
from rewarddance.jobs.load import find, load_backbone
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.patches import PatchPreprocessor
from rewarddance.vlm.preprocess import processor_settings
from rewarddance.vlm.presets import HUB, fetched, is_hub_name


def test_short_names_and_names_on_the_hub_are_told_from_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "judge").mkdir(parents=True)
    assert all(map(is_hub_name, [*HUB, "OpenGVLab/InternVL3_5-1B-HF"]))
    assert not any(map(is_hub_name, ["runs/judge", "./a", "/models/a", "a/b/c", "tiny"]))
    assert HUB["internvl3.5-8b"] == "OpenGVLab/InternVL3_5-8B-HF"


def test_what_is_in_the_cache_is_found_and_what_cannot_be_had_is_said(tmp_path, monkeypatch):
    asked = []

    def download(repository, allow_patterns):
        asked.append(repository)
        if "38B" in repository:
            raise OSError("offline\nlong story")
        return str(tmp_path)

    monkeypatch.setattr("rewarddance.vlm.presets.snapshot_download", download)
    assert find("internvl3.5-1b", "vlm") == tmp_path
    assert asked == ["OpenGVLab/InternVL3_5-1B-HF"]
    with pytest.raises(ConfigError, match=r"no such folder, and OpenGVLab/InternVL3_5-38B-HF cannot .*\(offline\)"):
        fetched("internvl3.5-38b")


def test_sizes_that_are_not_shipped_grow_from_the_one_that_is(pictures):
    assert find("tiny-2m", "vlm") == find("tiny", "vlm")
    small, large = load_backbone("tiny-2m"), load_backbone("tiny-20m")
    sizes = [sum(p.numel() for p in b.module.parameters()) for b in (small, large)]
    assert sizes[1] > 8 * sizes[0]
    asked = [("image 1: ", pictures[0], "\nis there a red circle?")]
    found = [Engine(b).answer_logits(asked, ("yes", "no")).logits for b in (small, large)]
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-4)


def test_a_folder_that_says_nothing_of_its_pictures_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no preprocessor_config"):
        processor_settings(tmp_path)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 4096, "longest_edge": 65536}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": half}))
    found = PatchPreprocessor.load(tmp_path, 16, 2, 2)
    assert (found.mean, found.std, found.min_pixels) == ((0.5,) * 3, (0.5,) * 3, 4096)
