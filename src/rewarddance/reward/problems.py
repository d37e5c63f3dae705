"""Why a comparison cannot be asked: found before the engine runs, so that one bad item never stops the others."""

from __future__ import annotations

import torch

from rewarddance.core.errors import InputError
from rewarddance.core.media import Dialog, Media, check_size
from rewarddance.core.types import Comparison
from rewarddance.reward.context import Context
from rewarddance.vlm.encoding import NO_RATE
from rewarddance.vlm.engine import Engine


def problem_of(comparison: Comparison, context: Context, engine: Engine, examples: Dialog = ()) -> str | None:
    """The reason to refuse a comparison; None if it can be asked.

    Args:
        examples: the examples before every question; they count towards the number of tokens.
    """
    if problem := context.problem(comparison):
        return problem
    if not engine.backbone.encoder.plain(comparison.prompt).strip():
        return "a comparison needs a prompt; this one holds special tokens only"
    pictures = [m for m in (comparison.candidate, comparison.reference, comparison.condition) if m is not None]
    for media in pictures:
        try:
            check_size(*media.size, media.origin)
        except InputError as error:
            return str(error)
        if media.is_clip and media.fps is None:
            return f"{media.origin or 'clip'}: {NO_RATE.format(media.num_frames)}"
    return _too_long(context, engine, (*examples, *context.render(comparison)))


def _too_long(context: Context, engine: Engine, dialog: Dialog) -> str | None:
    limit = engine.backbone.max_tokens
    if context.layout == "listwise":  # the other pictures of the list stand in the same dialog
        limit -= (context.max_pictures - 2) * max(engine.num_image_tokens(m) for m in dialog if isinstance(m, Media))
    bound = sum(
        engine.num_image_tokens(p) if isinstance(p, Media) else len(str(getattr(p, "text", p)).encode()) for p in dialog
    )
    if bound <= limit:  # a token is a byte or more
        return None
    num = engine.num_tokens(dialog)
    return f"the question has {num:,} tokens, and the model takes {limit:,}" if num > limit else None


def unusable(comparison: Comparison) -> str | None:
    """Why the pictures of a comparison cannot be measured; None if they can."""
    for media in (comparison.candidate, comparison.reference):
        if media is None:
            continue
        try:
            check_size(*media.size, media.origin)
        except InputError as error:
            return str(error)
        if media.num_frames > 1:
            return f"{media.origin or 'media'}: a clip of {media.num_frames} frames; this part measures pictures"
        if not bool(torch.isfinite(media.frames.detach()).all()):
            return f"{media.origin or 'picture'}: some pixels are not numbers"
    return None
