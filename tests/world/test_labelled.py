"""The oracle's eyes against human ones: 100 pictures drawn by the shipped generator, labelled by eye.

`labelled/pictures.png` is a 10 by 10 sheet; in `labelled/labels.json` null means that an eye cannot name it
(blends, fragments), which is then no decision.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from rewarddance.world.detect import detect
from rewarddance.world.scene import CANVAS

FOLDER = Path(__file__).parent / "labelled"


@pytest.fixture(scope="module")
def decisions():
    """Whether the oracle decided as the eye did, by kind of decision."""
    sheet = np.asarray(Image.open(FOLDER / "pictures.png").convert("RGB"))
    pictures = sheet.reshape(10, CANVAS, 10, CANVAS, 3).swapaxes(1, 2).reshape(100, CANVAS, CANVAS, 3)
    found = defaultdict(list)
    for picture, label in zip(pictures, json.loads((FOLDER / "labels.json").read_text()), strict=True):
        seen, wanted = detect(picture).objects, label["objects"]
        if label["count"] is not None:
            found["count"].append(len(seen) == label["count"])
        likeness = [[sum(w[k] in (None, getattr(s, k)) for k in ("colour", "shape")) for s in seen] for w in wanted]
        rows, columns = linear_sum_assignment(-np.array(likeness, float).reshape(len(wanted), len(seen)))
        partner = dict(zip(rows, columns, strict=True))
        for i, w in enumerate(wanted):
            for what in ("colour", "shape"):
                if w[what] is not None:
                    found[what].append(i in partner and getattr(seen[partner[i]], what) == w[what])
    return found


def test_the_oracle_agrees_with_the_eye_on_nine_of_ten_decisions(decisions):
    together = [d for kind in decisions.values() for d in kind]
    assert len(together) > 450
    assert np.mean(together) >= 0.90


@pytest.mark.parametrize(("kind", "least"), [("colour", 0.97), ("count", 0.97), ("shape", 0.91)])
def test_each_kind_of_decision(decisions, kind, least):
    assert np.mean(decisions[kind]) >= least
