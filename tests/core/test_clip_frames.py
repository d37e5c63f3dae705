"""Which frames of a clip a judge sees."""

import pytest
from pydantic import ValidationError

from rewarddance.core.clip_frames import ClipFrames


@pytest.mark.parametrize(("rule", "num", "fps", "indices", "rate", "even"), [
    ({"fps": 4}, 9, 8.0, (0, 2, 4, 6, 8), 4, True),
    ({"fps": 4}, 17, 16.0, (0, 4, 8, 12, 16), 4, True),  # the same clip, saved at twice the rate
    ({"fps": 4}, 9, 16.0, (0, 4, 8), 4, True),  # twice as fast
    ({"fps": 4}, 3, 2.0, (0, 0, 1, 1, 2), 4, True),  # a player shows each frame for two of the times
    ({"fps": 4}, 25, 24000 / 1001, (0, 5, 11, 17, 23), 4, True),
    ({"fps": 3}, 25, 24.0, (0, 8, 16, 24), 3, True),  # 1 / 3 * 24 is a little under 8
    ({"fps": 2}, 3, 30.0, (0, 2), 15, False),  # shorter than two frames of the rule
    ({"fps": 2, "max_frames": 3}, 101, 10.0, (0, 50, 100), 0.2, False),
    ({"num_frames": 3}, 9, 8.0, (0, 4, 8), 2, False),
    ({"num_frames": 5}, 9, 16.0, (0, 2, 4, 6, 8), 8, False),
    ({"num_frames": 5}, 3, 8.0, (0, 1, 2), 8, False),
    ({"num_frames": 4}, 9, 8.0, (0, 3, 5, 8), 3, False),
])  # fmt: skip
def test_frames_of_a_rule(rule, num, fps, indices, rate, even):
    sampled = ClipFrames(**rule).of(num, fps)
    assert sampled.indices == indices
    assert sampled.rate == pytest.approx(rate)
    assert sampled.even == even
    assert sampled.seconds == pytest.approx([i / fps for i in indices])


def test_one_rule():
    assert ClipFrames(num_frames=4).fps is None
    for rule in ({"fps": 2, "num_frames": 4}, {"fps": None}):
        with pytest.raises(ValidationError, match="give one of them"):
            ClipFrames(**rule)
    for rule in ({"fps": 0}, {"num_frames": 1}):
        with pytest.raises(ValidationError):
            ClipFrames(**rule)
