"""The embedded CLIP: its loss, the towers that it begins from, and a training of two steps."""

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection

from rewarddance.core.errors import StoppedError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.runs import RunFolder
from rewarddance.jobs.load import ASSETS
from rewarddance.vlm.embedders import ClipEmbedder
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.world.build.contrastive import (
    ContrastiveConfig,
    begin_from,
    contrastive_batch,
    contrastive_loss,
    new_clip,
    retrieval,
    train_clip,
)
from rewarddance.world.build.tiny_generator import new_prompt_tokenizer, text_config
from rewarddance.world.build.tiny_vlm import new_tokenizer, new_vlm
from rewarddance.world.oracle import fidelity

VISION = ASSETS / "reader-tiny" / "vision.safetensors"
TEXT = ASSETS / "generator-tiny" / "text_encoder" / "model.safetensors"


def test_the_loss_is_the_mean_of_two_cross_entropies():
    pictures = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    texts = torch.tensor([[1.0, 0], [0.6, 0.8]])
    rows = [
        math.log(math.e**2 + 2 + math.e**-2) - 2,
        math.log(sum(math.exp(2 * c) for c in (0.6, 0.8, -0.6, -0.8))) - 1.6,
    ]
    columns = [math.log(math.exp(2) + math.exp(1.2)) - 2, math.log(1 + math.exp(1.6)) - 1.6]
    expected = (sum(rows) / 2 + sum(columns) / 2) / 2
    assert float(contrastive_loss(pictures, texts, torch.tensor(2.0))) == pytest.approx(expected, abs=1e-6)
    found = retrieval(pictures, texts)
    assert (float(found["val_found"]), float(found["val_told"])) == (1.0, 1.0)
    assert float(retrieval(pictures, texts.flip(1))["val_found"]) == 0.0


def test_a_batch_has_right_pictures_and_then_others():
    config = ContrastiveConfig(batch_size=6, damaged=0)
    prompts, pictures = contrastive_batch(config, 3)
    assert pictures.shape == (12, 48, 48, 3)
    assert [fidelity(x, p) for x, p in zip(pictures[:6], prompts, strict=True)] == [1.0] * 6
    wrong = [fidelity(x, p) < 1 for x, p in zip(pictures[6:], prompts, strict=True)]
    assert sum(wrong) >= 4  # an object that is moved may still be where the prompt wants it
    again = contrastive_batch(config, 3)
    assert again[0] == prompts
    assert (again[1] == pictures).all()


@torch.no_grad()
def test_towers_begin_where_the_reader_and_the_text_encoder_are():
    tokenizer, prepare = new_prompt_tokenizer(), Preprocessor.square(48)
    prompts, pictures = contrastive_batch(ContrastiveConfig(batch_size=4, damaged=0), 0)
    pixels = prepare.frames(torch.cat([Media.from_numpy(x).frames for x in pictures]))
    model = new_clip(tokenizer)
    begin_from(model, VISION, TEXT, pixels)
    encoder = CLIPTextModelWithProjection(text_config(tokenizer)).eval()
    encoder.load_state_dict(load_file(TEXT))
    tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    expected = encoder(tokens.input_ids, attention_mask=tokens.attention_mask).text_embeds
    pooled = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)[1]
    assert torch.allclose(model.text_projection(pooled), expected, atol=1e-5)
    tower = new_vlm("tiny-2m", new_tokenizer()).model.vision_tower
    tower.load_state_dict(load_file(VISION))
    theirs = tower(pixel_values=pixels).last_hidden_state
    ours = model.vision_model(pixel_values=pixels).last_hidden_state
    theirs, ours = (x - x.mean(-1, keepdim=True) for x in (theirs, ours))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).mean() > 0.9


def test_training_writes_a_folder_that_loads_and_resumes(tmp_path):
    def train(out, steps, resume=False):
        optim = OptimConfig(name="muon", lr=1e-3, ema_decay=0.9)
        loop = LoopConfig(num_steps=2, validate_every=2, save_every=1, max_seconds=None if steps == 2 else 0.0)
        return train_clip(ContrastiveConfig(batch_size=4, optim=optim, loop=loop), VISION, TEXT, out, resume=resume)

    whole = load_file(train(tmp_path / "whole", 2) / "model.safetensors")
    clip = ClipEmbedder.load(tmp_path / "whole" / "model")
    prompts, pictures = contrastive_batch(ContrastiveConfig(batch_size=2), 0)
    vectors = clip([Media.from_numpy(x) for x in pictures])
    assert (vectors.shape, clip.texts(prompts).shape) == ((4, 96), (2, 96))
    assert {"loss", "val_found", "val_told"} <= RunFolder(tmp_path / "whole").metrics()[-1].keys()
    with pytest.raises(StoppedError):
        train(tmp_path / "parts", 1)
    parts = load_file(train(tmp_path / "parts", 2, resume=True) / "model.safetensors")
    assert all(torch.allclose(parts[k], w, atol=1e-6) for k, w in whole.items())
