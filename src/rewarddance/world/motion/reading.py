"""Reads from a clip's pixels what it shows, whatever was asked. Uncertain parts are not named."""

from __future__ import annotations

from rewarddance.world.motion.acts import Doing, read
from rewarddance.world.motion.render import Clip
from rewarddance.world.motion.scene import ACTIONS, FAMILY, RATES, Act, MotionSpec
from rewarddance.world.motion.splits import is_ood, split_of
from rewarddance.world.motion.tracks import Track, Watched, watch
from rewarddance.world.reading import CLEAR, MAX_BACKGROUND_DISTANCE, MAX_SPECKS
from rewarddance.world.scene import COLOURS, SHAPES, STYLES, Colour, Shape

SURE = 0.6
"""Least agreement of a track with the best action for the action to be named."""
BRIEF = 0.25
"""A track that lasts for a smaller share of the frames is noise and not an object."""


def _kind(track: Track, frame: int) -> tuple[Colour, Shape] | None:
    """Colour and shape in a frame, or None if one is uncertain. The shape is that of the whole track."""
    colours, shapes = track.colours[frame], track.shapes[track.present].mean(0)
    if min(float(colours.max()), float(shapes.max())) < CLEAR:
        return None
    return COLOURS[int(colours.argmax())], SHAPES[int(shapes.argmax())]


def readings(
    tracks: list[Track],
    index: int,
    kind: tuple[Colour, Shape],
    last: Colour,
    seconds: float,
) -> dict[Act, Doing]:
    """What `read` says about a track for each action that its colours allow, at any speed.

    Args:
        kind: its first colour, and its shape. last: its last colour.
    """
    other = 1 - index if len(tracks) == 2 else None
    found = {}
    for action in ACTIONS:
        if (action == "turning") == (kind[0] != last):
            act = Act(*kind, action, None, last if action == "turning" else None)
            found[act] = read(tracks, index, act, seconds, other)
    return found


def _act(tracks: list[Track], index: int, seconds: float) -> Act | None:
    """What a track does, with its speed, or None if that is uncertain."""
    track = tracks[index]
    begin, end = _kind(track, track.first), _kind(track, track.last)
    if begin is None or end is None:
        return None
    other = 1 - index if len(tracks) == 2 else None
    done = {act: doing.done for act, doing in readings(tracks, index, begin, end[0], seconds).items()}
    act = max(done, key=done.__getitem__)
    if done[act] < SURE:
        return None
    if FAMILY[act.action] not in RATES:
        return act
    fast = Act(act.colour, act.shape, act.action, "fast")
    is_fast = read(tracks, index, fast, seconds, other).paced > 0.5
    return fast if is_fast else Act(act.colour, act.shape, act.action, "slow")


def read_content(clip: Clip, fps: float) -> tuple[list[Act | None], MotionSpec | None]:
    """What every object of a clip does, and the whole content with every speed; each is None if it is uncertain.

    Args:
        clip: uint8 (F, CANVAS, CANVAS, 3), 2 frames or more.
        fps: frames per second.
    """
    watched = watch(clip, fps)
    tracks = [t for t in watched.tracks if t.share >= BRIEF]
    acts = [_act(tracks, i, watched.seconds) for i in range(len(tracks))]
    return acts, _spec(watched, tracks, acts)


def _spec(watched: Watched, tracks: list[Track], acts: list[Act | None]) -> MotionSpec | None:
    known = [a for a in acts if a is not None]
    styles = {STYLES[int(t.styles[t.present].mean(0).argmax())] for t in tracks}
    grounds = {s.background for s in watched.frames}
    uncertain = any(s.specks > MAX_SPECKS or s.background_distance > MAX_BACKGROUND_DISTANCE for s in watched.frames)
    if len(known) < len(acts) or len(styles) != 1 or len(grounds) != 1 or uncertain:
        return None
    known.sort(key=lambda act: act.action != "circling")  # the object that circles stands first
    try:
        return MotionSpec(tuple(known), styles.pop(), grounds.pop())  # type: ignore[arg-type]
    except ValueError:  # no object, too many, or two of one kind
        return None


def shows_held_out(clip: Clip, fps: float) -> bool:
    """Does a generator's clip show held-out content, even by mistake?

    This is an object, an action or a style that training never sees, or content that is held out as a whole. Uncertain
    parts do not count.
    """
    acts, whole = read_content(clip, fps)
    if whole is not None:
        return split_of(whole) != "train"
    return any(is_ood(MotionSpec((act,))) for act in acts if act is not None and act.action != "circling")
