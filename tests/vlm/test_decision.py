"""transformers' own `DecisionPipeline` as an independent implementation: the same question, the same probability."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DecisionPipeline
from transformers.decision import DecisionConfig

from rewarddance.core.media import Media
from rewarddance.vlm.engine import Engine


class Processor:
    """What the pipeline asks of a processor. transformers' own for InternVL cannot be made without torchvision."""

    chat_template = ""

    def __init__(self, backbone):
        self.backbone, self.tokenizer, self.image_processor = backbone, backbone.tokenizer, backbone.prepare

    def apply_chat_template(self, conversation, **kwargs):
        text, pixels = f"<|{conversation[0]['role']}|>", []
        for part in conversation[0]["content"]:
            if part["type"] == "text":
                text += part["text"]
                continue
            pixels.append(Media.from_pil(part["image"]))
            text += "<img>" + "<IMG_CONTEXT>" * self.backbone.model.config.image_seq_length + "</img>"
        found = self.tokenizer(f"{text}<|assistant|>", add_special_tokens=False, return_tensors="pt")
        return {"input_ids": found["input_ids"], "pixel_values": self.backbone.prepare(pixels)}


def test_the_engine_answers_as_the_decision_pipeline_does(backbone):
    decide = DecisionPipeline(
        model=backbone.model, tokenizer=backbone.tokenizer, processor=Processor(backbone),
        decision_config=DecisionConfig(labels={"noul": ["yes", "no"]}),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, 48, 3), np.uint8) for _ in range(4)]
    media = [Media.from_numpy(p) for p in pictures]
    question = "is the candidate better than the reference?"
    dialogs, wanted = [], []
    for i in range(4):
        for j in range(4):
            if i == j:
                continue
            request = {
                "state": "prompt: a red circle\nreference: ref-img\ncandidate: cand-img",
                "questions": {"better": {"type": "noul", "instructions": question}},
                "assets": {"ref-img": Image.fromarray(pictures[j]), "cand-img": Image.fromarray(pictures[i])},
            }
            wanted.append(decide(request)["better"]["noul"])
            text = f"\n\n{question}\nyes: true\nno: false\nAnswer yes or no only."
            dialogs.append(("prompt: a red circle\nreference: ", media[j], "\ncandidate: ", media[i], text))
    with torch.no_grad():
        found = Engine(backbone).answer_logits(dialogs, ("yes", "no")).logits.softmax(-1)[:, 0]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    assert found.std() > 0
