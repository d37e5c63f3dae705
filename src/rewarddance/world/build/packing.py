"""Lessons as packed sequences: the opening (prompt and pictures) once, then each turn as a branch.

A branch attends to the opening and to itself, but to no other turn. So an answer depends on the pictures alone: the
answer "nothing is missing" cannot reveal that the picture matches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from rewarddance.core.media import Media
from rewarddance.core.prefetch import on_device
from rewarddance.vlm.clip_forms import numbered_lines
from rewarddance.vlm.encoding import ChatEncoder
from rewarddance.vlm.plan import common_prefix
from rewarddance.world.lessons import Lesson
from rewarddance.world.render import Image
from rewarddance.world.scene import CANVAS

Ints = NDArray[np.integer[Any]]
WIDTH_STEP = 8
MAX_RESTS = 1 << 16
"""Texts of a question and its answer whose tokens are cached."""


@dataclass(frozen=True)
class PackedLesson:
    """One lesson of S tokens.

    Attributes:
        ids: token ids (S,), int32.
        images: pictures, and frames of clips, in the order of their runs of context tokens.
        branch: 0 in the opening, 1, 2, ... in the turns (S,), int16.
        positions: index of each token in its own dialog (S,), int16.
        weights: weight of the loss at each token (S,), float32; 0 outside answers.
    """

    ids: Ints
    images: tuple[Image, ...]
    branch: Ints
    positions: Ints
    weights: NDArray[np.float32]


class LessonPacker:
    """Encodes each turn as a whole dialog, and keeps the tokens that all dialogs begin with once.

    It holds no model and no transformers object, so worker processes start fast. A special token separates the texts
    before and after it, so a dialog is tokenized in two parts: the opening up to its last special token, and the rest.
    The tokens of the rest are cached, because questions repeat.

    Args:
        encoder: with the chat template and the tokenizer.
        verdict_weight: weight of one-word answers; words of longer answers and end tokens weigh 1.
    """

    def __init__(self, encoder: ChatEncoder, verdict_weight: float) -> None:
        self.verdict_weight = verdict_weight
        self.tokenizer_json: str = encoder.tokenizer.backend_tokenizer.to_str()
        self.before, self.between, self.after = encoder.around(("user", "assistant"), False)
        self.picture = f"{encoder.start}{encoder.context}{encoder.end}"
        self.context_id = encoder.context_id
        self.image_tokens = encoder.count(Media.from_numpy(np.zeros((CANVAS, CANVAS, 3), np.uint8)))
        self.special = re.compile("|".join(map(re.escape, encoder.special)))
        self._rests: dict[tuple[str, int, int], tuple[tuple[int, ...], tuple[bool, ...]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "tokenizer"} | {"_rests": {}}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def __call__(self, lesson: Lesson) -> PackedLesson:
        opening = self.before + (f"{lesson.request}\n" if lesson.request else "")
        opening += f"prompt: {lesson.prompt}\n" if lesson.prompt else ""
        opening += "".join(f"image {i}: {self._shown(image)}\n" for i, image in enumerate(lesson.images, 1))
        cut = max((m.end() for m in self.special.finditer(opening)), default=0)
        head = self._head(opening[:cut])
        rests = [self._rest(opening[cut:], question, answer) for question, answer in lesson.turns]
        common = min(min(common_prefix(rests[0][0], ids), answers.index(True)) for ids, answers in rests)
        shared = len(head) + common
        ids, branch = [*head, *rests[0][0][:common]], [0] * shared
        positions, weights = list(range(shared)), [0.0] * shared
        for k, (rest, answers) in enumerate(rests, 1):
            num = len(rest) - common
            ids += rest[common:]
            branch += [k] * num
            positions += range(shared, shared + num)
            single = sum(answers) == 2
            first = answers.index(True)
            weights += [
                self.verdict_weight if single and i == first else float(answers[i]) for i in range(common, len(rest))
            ]
        return PackedLesson(
            np.array(ids, np.int32),
            tuple(frame for image in lesson.images for frame in image.reshape(-1, *image.shape[-3:])),
            np.array(branch, np.int16),
            np.array(positions, np.int16),
            np.array(weights, np.float32),
        )

    def _shown(self, image: Image) -> str:
        """The text of a picture, or of a clip as judges see it: one line for each frame."""
        if image.ndim == 3:
            return self.picture
        return numbered_lines(self.picture, [""] * len(image))

    def _head(self, text: str) -> list[int]:
        ids: list[int] = []
        for token in self.tokenizer.encode(text, add_special_tokens=False).ids if text else []:
            ids += [token] * (self.image_tokens if token == self.context_id else 1)
        return ids

    def _rest(self, tail: str, question: str, answer: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Token ids after the opening's last special token, and whether each one belongs to the answer.

        The token after the answer, which ends it, belongs to it.
        """
        before = tail + question + self.between
        low, high = len(before), len(before) + len(answer) + 1
        key = (before + answer + self.after, low, high)
        if key not in self._rests:
            if len(self._rests) >= MAX_RESTS:
                self._rests.clear()
            tokens = self.tokenizer.encode(key[0], add_special_tokens=False)
            answers = tuple(low <= a < high and b > a for a, b in tokens.offsets)
            self._rests[key] = tuple(tokens.ids), answers
        return self._rests[key]


@dataclass(frozen=True)
class PackedBatch:
    """Lessons of one pass as arrays, right-padded, as a worker process sends them.

    Attributes:
        ids, branch, positions, weights: (B, S), as in `PackedLesson`; `branch` is -1 in the padding.
        pictures: uint8 (N, H, W, 3), in the order of their context tokens.
    """

    ids: Ints
    branch: Ints
    positions: Ints
    weights: NDArray[np.float32]
    pictures: Image

    def to(self, device: torch.device) -> LessonTensors:
        """The batch on a device. Nothing waits for the copy."""
        # the positions before a token of an answer
        places = np.flatnonzero(np.pad(self.weights[:, 1:] > 0, ((0, 0), (0, 1))))
        values = (places, self.ids.ravel()[places + 1].astype(np.int64), self.weights.ravel()[places + 1])
        before, targets, weights = (on_device(v, device) for v in values)
        branch = on_device(self.branch, device)
        width = branch.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        visible = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
        mask = (visible & causal) | torch.eye(width, dtype=torch.bool, device=device)
        return LessonTensors(
            on_device(self.ids, device).long(),
            on_device(self.positions, device).long(),
            mask[:, None],
            on_device(self.pictures, device).permute(0, 3, 1, 2).contiguous().float() / 255,
            before,
            targets,
            weights,
        )


@dataclass(frozen=True)
class LessonTensors:
    """A `PackedBatch` on a device.

    Attributes:
        ids, positions: (B, S).
        mask: (B, 1, S, S), True where a query attends.
        pixels: (N, 3, H, W) in [0, 1].
        before: indices (A,) into B * S tokens: each one's next token belongs to an answer.
        targets, weights: those next tokens (A,), and their weights.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    pixels: Tensor
    before: Tensor
    targets: Tensor
    weights: Tensor


def collate(batch: Sequence[PackedLesson], pad: int) -> PackedBatch:
    """Pad to a multiple of `WIDTH_STEP`."""
    width = -(-max(len(p.ids) for p in batch) // WIDTH_STEP) * WIDTH_STEP

    def table(rows: Sequence[NDArray[Any]], fill: int) -> NDArray[Any]:
        out = np.full((len(rows), width), fill, rows[0].dtype)
        for target, row in zip(out, rows, strict=True):
            target[: len(row)] = row
        return out

    pictures = [image for p in batch for image in p.images]
    return PackedBatch(
        table([p.ids for p in batch], pad),
        table([p.branch for p in batch], -1),
        table([p.positions for p in batch], 0),
        table([p.weights for p in batch], 0),
        np.stack(pictures) if pictures else np.empty((0, CANVAS, CANVAS, 3), np.uint8),
    )
