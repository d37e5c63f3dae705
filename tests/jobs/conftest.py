"""Small folders that stand in for the shipped models: random weights, real classes."""

from __future__ import annotations

import pytest

from rewarddance.align.config import AlignConfig, ReferenceConfig, ReflConfig
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.data.parquet import row_of, write_rows
from rewarddance.jobs.build.preferences import PreferencesConfig, embedded_records


@pytest.fixture(scope="session")
def vlm_folder(tokenizer, tmp_path_factory):
    from rewarddance.vlm.internvl import InternVLBackbone
    from rewarddance.vlm.preprocess import Preprocessor
    from rewarddance.vlm.tiny import SIZES, Size, new_vlm

    SIZES["test"] = Size(64, 2, 64, 2, 2)
    backbone = InternVLBackbone(new_vlm("test", tokenizer, seed=1), tokenizer, Preprocessor.square(48))
    return backbone.save(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, name, num in (("train", "train", 24), ("held_out", "id", 8), ("ood", "ood", 8)):
        config = PreferencesConfig(num_prompts=num, split=split, pictures=3)
        write_rows((row_of(r) for r in embedded_records(config)), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="session")
def quick():
    """Loop and optimizer of a few steps."""

    def make(num_steps=6, **changes):
        loop = {"num_steps": num_steps, "validate_every": 3, "save_every": 2, **changes}
        return {"loop": LoopConfig(**loop), "optim": OptimConfig(lr=1e-3, warmup_steps=2, ema_decay=0.9)}

    return make


@pytest.fixture
def quick_align(pipeline_folder):
    """Two steps of reward feedback on a small random generator."""

    def make(judge, **changes):
        return AlignConfig(
            generator=str(pipeline_folder),
            judge=str(judge),
            batch_size=2,
            lora_rank=2,
            probe_prompts=2,
            references=ReferenceConfig(num_candidates=2),
            refl=ReflConfig(num_steps=4),
            loop=LoopConfig(num_steps=2, validate_every=2),
            **changes,
        )

    return make
