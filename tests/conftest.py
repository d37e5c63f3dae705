"""Small random models of the real classes: no weights are needed to test the code."""

from __future__ import annotations

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)  # the models are tiny; more threads only wait for one another


@pytest.fixture(scope="session")
def tokenizer():
    from rewarddance.world.build.tiny_vlm import new_tokenizer

    return new_tokenizer()


@pytest.fixture
def backbone(tokenizer):
    """A fresh, random, tiny InternVL."""
    from rewarddance.vlm.internvl import InternVLBackbone
    from rewarddance.vlm.preprocess import Preprocessor
    from rewarddance.world.build.tiny_vlm import SIZES, Size, new_vlm

    SIZES["test"] = Size(64, 2, 64, 2, 2)
    return InternVLBackbone(new_vlm("test", tokenizer, seed=1), tokenizer, Preprocessor.square(48))


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A random embedded pipeline on disk, with output layers that do something."""
    from rewarddance.world.build.tiny_generator import new_autoencoder, new_pipeline

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


QWEN_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def qwen_tokenizer():
    from rewarddance.vlm.qwen import CLIP_CONTEXT, MARKS
    from rewarddance.world.build.tiny_vlm import new_tokenizer

    tokenizer = new_tokenizer()
    marks = [*MARKS, CLIP_CONTEXT]
    tokenizer.add_special_tokens({"additional_special_tokens": marks}, replace_extra_special_tokens=False)
    return tokenizer


def qwen_model(kind, tokenizer):
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    from rewarddance.vlm.qwen import CLASSES, CLIP_CONTEXT, MARKS

    torch.manual_seed(3)
    ids = {
        name: tokenizer.convert_tokens_to_ids(mark) for name, mark in zip(("start", "image", "end"), MARKS, strict=True)
    }
    common = {"image_token_id": ids["image"], "vision_start_token_id": ids["start"], "vision_end_token_id": ids["end"]}
    common["video_token_id"] = tokenizer.convert_tokens_to_ids(CLIP_CONTEXT)
    text = QWEN_TEXT | {"vocab_size": len(tokenizer)}
    if kind == "qwen2_5_vl":
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64}
        vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision, **common)
    else:
        rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}
        vision = {"depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64}
        vision |= {"patch_size": 16, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
        text |= {"rope_parameters": rope, "head_dim": 16}
        config = Qwen3VLConfig(text_config=text, vision_config=vision, **common)
    return CLASSES[kind](config).eval()


@pytest.fixture(scope="session")
def new_qwen():
    """A random, tiny Qwen2.5-VL or Qwen3-VL by its kind."""
    from rewarddance.vlm.patches import PatchPreprocessor
    from rewarddance.vlm.qwen import QwenBackbone

    def make(kind):
        tokenizer = qwen_tokenizer()
        model = qwen_model(kind, tokenizer)
        patch = model.config.vision_config.patch_size
        prepare = PatchPreprocessor(patch, min_pixels=16, max_pixels=120_000, whole_clips=kind == "qwen3_vl")
        return QwenBackbone(model, tokenizer, prepare)

    return make


@pytest.fixture(scope="session")
def vlm_folder(tokenizer, tmp_path_factory):
    from rewarddance.vlm.internvl import InternVLBackbone
    from rewarddance.vlm.preprocess import Preprocessor
    from rewarddance.world.build.tiny_vlm import SIZES, Size, new_vlm

    SIZES["test"] = Size(64, 2, 64, 2, 2)
    backbone = InternVLBackbone(new_vlm("test", tokenizer, seed=1), tokenizer, Preprocessor.square(48))
    return backbone.save(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    from rewarddance.data.parquet import row_of, write_rows
    from rewarddance.world.build.preferences import PreferencesConfig, embedded_records

    folder = tmp_path_factory.mktemp("data")
    for split, name, num in (("train", "train", 24), ("held_out", "id", 8), ("ood", "ood", 8)):
        config = PreferencesConfig(num_prompts=num, split=split, pictures=3)
        write_rows((row_of(r) for r in embedded_records(config)), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="session")
def quick():
    """Loop and optimizer of a few steps."""
    from rewarddance.core.loop_config import LoopConfig, OptimConfig

    def make(num_steps=6, **changes):
        loop = {"num_steps": num_steps, "validate_every": 3, "save_every": 2, **changes}
        return {"loop": LoopConfig(**loop), "optim": OptimConfig(lr=1e-3, warmup_steps=2, ema_decay=0.9)}

    return make


@pytest.fixture
def quick_align(pipeline_folder):
    """Two steps of reward feedback on a small random generator and eight prompts."""
    from rewarddance.align.config import AlignConfig, ReferenceConfig, ReflConfig
    from rewarddance.core.loop_config import LoopConfig

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
            **{"num_prompts": 8, **changes},
        )

    return make
