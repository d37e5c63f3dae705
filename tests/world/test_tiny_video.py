"""The embedded Wan pipelines run as they come, with random weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_wan import CALL, tiny_video_pipeline

from rewarddance.core.streams import stream
from rewarddance.world.build.tiny_video import PROMPT_TOKENS, new_video_tokenizer
from rewarddance.world.motion.benchmark import action_set
from rewarddance.world.motion.grammar import HELD_OUT_WORDINGS, WORDINGS, phrase
from rewarddance.world.motion.oracle import CRITERIA, judge
from rewarddance.world.motion.sampling import sample_spec
from rewarddance.world.motion.scene import FPS


def test_every_prompt_fits_and_has_no_unknown_word():
    tokenizer, rng = new_video_tokenizer(), stream(0, "video-tokenizer")
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    for split in ("train", "ood"):
        for _ in range(100):
            spec = sample_spec(rng, split=split)
            for wording in (*WORDINGS, *HELD_OUT_WORDINGS):
                ids = tokenizer(phrase(spec, wording)).input_ids
                assert unknown not in ids
                assert ids[-1] == tokenizer.eos_token_id
                assert len(ids) <= PROMPT_TOKENS


@pytest.mark.parametrize("from_picture", [False, True])
def test_the_pipelines_run_and_their_clips_can_be_judged(from_picture, tmp_path):
    pipeline = tiny_video_pipeline(from_picture=from_picture, num_layers=1)
    pipeline.set_progress_bar_config(disable=True)
    prompt = action_set("i2v")[0]
    given = {"image": Image.fromarray(prompt.first_frame)} if from_picture else {}
    # The image-to-video pipeline cleans prompts with ftfy, which is not installed; embedded prompts need no cleaning.
    ids = pipeline.tokenizer([prompt.text], padding="max_length", max_length=PROMPT_TOKENS, return_tensors="pt")
    with torch.no_grad():
        embedded = pipeline.text_encoder(ids.input_ids, ids.attention_mask).last_hidden_state
    clip = pipeline(
        prompt_embeds=embedded * ids.attention_mask[..., None],
        negative_prompt_embeds=torch.zeros_like(embedded),
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **given,
        **CALL,
    ).frames[0]
    assert clip.shape == (9, 48, 48, 3)
    verdict = judge((clip * 255).astype(np.uint8), prompt.spec, FPS, prompt.first_frame)
    assert all(0 <= verdict[c] <= 1 for c in CRITERIA)
    pipeline.save_pretrained(tmp_path)
    again = type(pipeline).from_pretrained(tmp_path)
    for name, weights in pipeline.transformer.state_dict().items():
        assert torch.equal(weights, again.transformer.state_dict()[name])
