"""Dialogs to answers: every distinct picture is seen once, every shared prefix is read once, long lists stream.

Dialogs that begin alike form a tree (`plan.py`), and a tree is one packed forward pass (`attention.py`). No caches: the
same code serves inference and training, and results and gradients equal those of plain passes up to floating point.

Shapes: N dialogs, W answer words, D hidden width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Dialog
from rewarddance.vlm.attention import lay_out
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.encoding import Encoded, Frame
from rewarddance.vlm.plan import Key, batches, grow

HEAD_ROWS = 512


@dataclass(frozen=True)
class Answers:
    """Logits at the answer position.

    Attributes:
        logits: (N, W) fp32, raw logits of the answer words.
        logp: (N, W) fp32, log-probabilities over the whole vocabulary.
    """

    logits: Tensor
    logp: Tensor

    @property
    def mass(self) -> Tensor:
        """Probability of all answer words together, (N,)."""
        return self.logp.exp().sum(-1)


@dataclass
class Work:
    """What one call processed; tests compare it with what was needed."""

    images: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    forwards: int = 0


@dataclass
class Engine:
    """Drives a backbone.

    Args:
        budget: language-model tokens in one packed pass; a longer list takes several.
        image_budget: pictures in one pass of the vision tower.
        autocast: compute in this type where autocast knows how (weights keep theirs); None computes as stored.
    """

    backbone: Backbone
    budget: int = 16_384
    image_budget: int = 256
    autocast: torch.dtype | None = None
    work: Work = field(default_factory=Work)

    def answer_logits(self, dialogs: Sequence[Dialog], words: Sequence[str]) -> Answers:
        """Logits of the answer words right after each dialog; differentiable to weights and pixels.

        Raises:
            ConfigError: an answer word is more than one token.
        """
        ids = torch.tensor([self.word_id(w) for w in words], device=self.backbone.device)
        chosen, total = [], []  # a whole vocabulary of logits is held for HEAD_ROWS questions at a time
        with self._precision():
            for rows in torch.split(self._hidden(dialogs), HEAD_ROWS):
                logits = self.backbone.head(rows).float()
                chosen.append(logits[:, ids])
                total.append(logits.logsumexp(-1, keepdim=True))
        found = torch.cat(chosen)
        return Answers(found, found - torch.cat(total))

    def answer_hidden(self, dialogs: Sequence[Dialog]) -> Tensor:
        """The last layer's state at the answer position, (N, D) fp32: what scalar heads read."""
        with self._precision():
            return self._hidden(dialogs).float()

    def word_id(self, word: str) -> int:
        """Token id of an answer word."""
        found = self.backbone.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(found) != 1:
            raise ConfigError(f"the tokenizer splits the answer word {word!r} into {len(found)} tokens; choose another")
        return int(found[0])

    def _precision(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.backbone.device.type, self.autocast)

    def _hidden(self, dialogs: Sequence[Dialog]) -> Tensor:
        """(N, D) in the order of the dialogs."""
        encoded = [self.backbone.encoder.chat([("user", d)]) for d in dialogs]
        frames, first_row = _distinct_frames(encoded)
        self.work = Work(images=len(frames))
        seen = self._see(frames)
        asked = [_key(e, self.backbone.image_token_id, first_row) for e in encoded]
        holder = dict(zip(asked, encoded, strict=True))
        keys = sorted(holder)
        place = {key: i for i, key in enumerate(keys)}
        parts = [self._read(keys[b.start : b.stop], holder, seen) for b in batches(keys, self.budget)]
        hidden = torch.cat(parts)
        return hidden[torch.tensor([place[key] for key in asked], device=hidden.device)]

    def _see(self, frames: list[Frame]) -> Tensor | None:
        """All image tokens in one table, one row each."""
        if not frames:
            return None
        step = self.image_budget
        return torch.cat([self.backbone.see(frames[i : i + step]) for i in range(0, len(frames), step)])

    def _read(self, keys: Sequence[Key], holder: Mapping[Key, Encoded], seen: Tensor | None) -> Tensor:
        """Hidden states at the ends of sorted sequences, (len(keys), D), from one packed pass."""
        tree, device = grow(keys), self.backbone.device
        packed = lay_out(tree, device)
        members = sorted({member for member, _ in packed.token_of})
        starts = dict(zip(members, itertools.accumulate((len(keys[m]) for m in members), initial=0), strict=False))
        at = torch.tensor([starts[member] + place for member, place in packed.token_of])
        tokens = torch.tensor([t for m in members for t in keys[m]])[at].to(device)
        positions = torch.cat([self.backbone.positions(holder[keys[m]]) for m in members], 1)[:, at].to(device)
        ends = packed.last[torch.tensor(tree.ends, device=device)]
        self.work.tokens += tree.num_tokens
        self.work.padded_tokens += len(tokens)
        self.work.forwards += 1
        rows = -1 - tokens[tokens < 0]
        pictures = None if seen is None or len(rows) == 0 else seen[rows]
        return self.backbone.read(tokens.clamp(min=-1), pictures, positions, packed, ends)


def _distinct_frames(encoded: Sequence[Encoded]) -> tuple[list[Frame], dict[tuple[str, int], int]]:
    """Frames with different pixels, in order of appearance, and the first row of each in the table of image tokens."""
    frames: list[Frame] = []
    first_row: dict[tuple[str, int], int] = {}
    rows = 0
    for e in encoded:
        for (media, i), count in zip(e.images, e.counts, strict=True):
            if (media.key, i) not in first_row:
                first_row[media.key, i] = rows
                frames.append((media, i))
                rows += count
    return frames, first_row


def _key(encoded: Encoded, image_token: int, first_row: dict[tuple[str, int], int]) -> Key:
    """Token ids, with every image token replaced by -1 - (its row in the table of image tokens)."""
    rows = (first_row[m.key, i] + t for (m, i), n in zip(encoded.images, encoded.counts, strict=True) for t in range(n))
    return tuple(-1 - next(rows) if token == image_token else token for token in encoded.ids)
