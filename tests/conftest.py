"""Small random models of the real classes: no weights are needed to test the code."""

from __future__ import annotations

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)  # the models are tiny; more threads only wait for one another


@pytest.fixture(scope="session")
def tokenizer():
    from rewarddance.vlm.tiny import new_tokenizer

    return new_tokenizer()


@pytest.fixture
def backbone(tokenizer):
    """A fresh, random, tiny InternVL."""
    from rewarddance.vlm.internvl import InternVLBackbone
    from rewarddance.vlm.preprocess import Preprocessor
    from rewarddance.vlm.tiny import SIZES, Size, new_vlm

    SIZES["test"] = Size(64, 2, 64, 2, 2)
    return InternVLBackbone(new_vlm("test", tokenizer, seed=1), tokenizer, Preprocessor.square(48))


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A random embedded pipeline on disk, with output layers that do something."""
    from rewarddance.generator.tiny import new_autoencoder, new_pipeline

    torch.manual_seed(0)
    vae = new_autoencoder().eval()
    vae.register_to_config(shift_factor=0.1, scaling_factor=0.7)
    pipeline = new_pipeline(vae, seed=0, num_layers=2)
    for name, p in pipeline.transformer.named_parameters():
        if name.endswith("linear.weight") or name == "proj_out.weight":
            torch.nn.init.normal_(p, std=0.05)
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def generator(pipeline_folder):
    from rewarddance.generator.sd3 import Sd3Generator

    return Sd3Generator.load(pipeline_folder)


@pytest.fixture
def pictures():
    """Eight different random pictures."""
    from rewarddance.core.media import Media

    rng = torch.Generator().manual_seed(0)
    return [Media(torch.rand(1, 3, 48, 48, generator=rng)) for _ in range(8)]
