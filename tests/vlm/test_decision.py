"""transformers' own `DecisionPipeline` as an independent implementation: the same question, the same probability."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.baselines import Processor
from transformers import DecisionPipeline
from transformers.decision import DecisionConfig

from rewarddance.core.media import Media
from rewarddance.vlm.engine import Engine


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
