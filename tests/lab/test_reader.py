"""The reader, the oracle's second opinion: patches to objects, and what it says of pictures that we drew."""

import numpy as np
import pytest

from rewarddance.core.media import Media
from rewarddance.core.streams import stream
from rewarddance.jobs.load import ASSETS
from rewarddance.lab.reader import PictureReader, Reading, _cluster, _score
from rewarddance.world.build.vision import NOTHING, patch_targets
from rewarddance.world.render import render
from rewarddance.world.sampling import sample_pair
from rewarddance.world.scene import BACKGROUNDS, CANVAS, COLOURS, SHAPES

PATCH = 6


def read_truth(scene) -> Reading:
    """What a reader without errors would see."""
    kinds, facts = patch_targets(scene, PATCH)
    sure = np.eye(NOTHING + 1)[kinds] * 0.98 + 0.02 / (NOTHING + 1)
    logits = np.concatenate([facts[:, :2], (facts[:, 2:] - 0.5) * 12], 1)
    return Reading(
        _cluster(sure, logits.astype(np.float64)), np.eye(len(BACKGROUNDS))[BACKGROUNDS.index(scene.background)]
    )


def test_patches_become_the_objects_of_the_scene():
    rng = stream(0, "test-reader")
    for _ in range(60):
        spec, scene = sample_pair(rng)
        reading = read_truth(scene)
        assert len(reading.objects) == len(scene.objects)
        for o in scene.objects:
            found = min(reading.objects, key=lambda r: np.hypot(r.x - o.x, r.y - o.y))
            assert np.hypot(found.x - o.x, found.y - o.y) < 0.5
            colour, shape = np.unravel_index(found.kinds.argmax(), found.kinds.shape)
            assert (COLOURS[colour], SHAPES[shape], found.large > 0.5) == (o.colour, o.shape, o.large)
        assert _score(reading, spec) > 0.9


def test_an_empty_picture_has_no_objects():
    nothing = np.zeros((64, NOTHING + 1))
    nothing[:, NOTHING] = 1
    assert _cluster(nothing, np.zeros((64, 3))) == ()


@pytest.fixture(scope="module")
def reader():
    return PictureReader.open(ASSETS / "reader-tiny")


def test_the_shipped_reader_knows_renders_from_mismatches(reader):
    rng = stream(1, "test-reader")
    pairs = [sample_pair(rng) for _ in range(40)]
    media = [Media.from_numpy(render(scene)) for _, scene in pairs]
    own = [reader.fidelity(spec, [m])[0] for (spec, _), m in zip(pairs, media, strict=True)]
    other = [reader.fidelity(spec, [m])[0] for (spec, _), m in zip(pairs, media[1:] + media[:1], strict=True)]
    assert np.mean(own) > 0.85
    assert np.mean(other) < 0.3


def test_any_picture_is_read(reader):
    noise = Media.from_numpy(np.random.default_rng(0).integers(0, 256, (CANVAS, CANVAS, 3), np.uint8))
    blank = Media.from_numpy(np.full((CANVAS, CANVAS, 3), 245, np.uint8))
    spec = sample_pair(stream(2, "test-reader"))[0]
    values = reader.fidelity(spec, [noise, blank])
    assert ((values >= 0) & (values <= 1)).all()
