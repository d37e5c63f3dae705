"""Dialogs to answers: every distinct picture is seen once, every shared prefix is read once, long lists stream.

The schedule has two levels: prefixes (with keys and values kept) and suffixes that branch from them. The same
code serves inference and training; in training the prefix's keys and values carry gradients, so results and
gradients equal those of plain forward passes up to floating point.

Shapes: N dialogs, W answer words, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Dialog
from rewarddance.vlm.encoding import Encoded, Frame
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.plan import Group, Key, group_by_prefix, pack

HEAD_ROWS = 512
WIDTH_STEP = 8
"""Rows are padded to a multiple of this, so that kernels meet few shapes (building one costs more than padding)."""


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
        budget: padded language-model tokens in one forward pass.
        image_budget: pictures in one pass of the vision tower.
        autocast: compute in this type where autocast knows how (weights keep theirs); None computes as stored.
    """

    backbone: InternVLBackbone
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
        frames, index = _distinct_frames(encoded)
        self.work = Work(images=len(frames))
        seen = self._see(frames)
        asked = [_key(e, self.backbone.image_token_id, index) for e in encoded]
        distinct = {key: i for i, key in enumerate(dict.fromkeys(asked))}
        keys = list(distinct)
        lengths = [len(k) for k in keys]
        hidden: list[Tensor] = []
        order: list[int] = []
        for batch in pack(group_by_prefix(keys), lengths, self.budget):
            hidden.append(self._branch(batch, keys, seen))
            order += [m for g in batch for m in g.members]
        back = torch.tensor(order).argsort()[[distinct[key] for key in asked]]
        return torch.cat(hidden)[back.to(self.backbone.device)]

    def _see(self, frames: list[Frame]) -> Tensor | None:
        """All image tokens in one table, (images * T, D)."""
        if not frames:
            return None
        step = self.image_budget
        parts = [self.backbone.see(frames[i : i + step]) for i in range(0, len(frames), step)]
        return torch.cat(parts).flatten(0, 1)

    def _branch(self, batch: list[Group], keys: list[Key], seen: Tensor | None) -> Tensor:
        """Hidden states at the answer positions of a batch, in the order of its members."""
        device = self.backbone.device
        rows = torch.tensor([r for r, g in enumerate(batch) for _ in g.members], device=device)
        past, prefix_mask = None, torch.zeros(len(batch), 0, dtype=torch.long, device=device)
        if any(g.shared for g in batch):
            # a group without prefix gets one fully masked row: its suffixes see nothing there
            prefixes = [keys[g.members[0]][: g.shared] for g in batch]
            embeds, prefix_mask = self._embed(prefixes, seen)
            positions = (prefix_mask.cumsum(1) - 1).clamp(min=0)
            _, past = self.backbone.read(embeds, prefix_mask, positions, cache=True)
            past = self.backbone.branch(past, rows)
            self._count(prefix_mask)
        suffixes = [keys[m][g.shared :] for g in batch for m in g.members]
        embeds, mask = self._embed(suffixes, seen)
        self._count(mask)
        before = prefix_mask[rows]
        positions = before.sum(1, keepdim=True) + (mask.cumsum(1) - 1).clamp(min=0)
        hidden, _ = self.backbone.read(embeds, torch.cat([before, mask], 1), positions, past)
        last = mask.sum(1) - 1
        return hidden[torch.arange(len(hidden), device=device), last]

    def _embed(self, keys: Sequence[Key], seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Right-padded embeddings (B, S, D) and mask (B, S); image tokens come from the table `seen`."""
        device = self.backbone.device
        width = -(-max(len(k) for k in keys) // WIDTH_STEP) * WIDTH_STEP
        table = torch.tensor([[*k, *[0] * (width - len(k))] for k in keys], device=device)
        sizes = torch.tensor([len(k) for k in keys], device=device)
        mask = (torch.arange(width, device=device)[None] < sizes[:, None]).long()
        is_image = table < 0
        embeds = self.backbone.embed(table.masked_fill(is_image, 0))
        if seen is not None and bool(is_image.any()):
            picked = seen[(-1 - table).clamp(min=0)].to(embeds.dtype)
            embeds = torch.where(is_image[..., None], picked, embeds)
        return embeds, mask

    def _count(self, mask: Tensor) -> None:
        self.work.tokens += int(mask.sum())
        self.work.padded_tokens += mask.numel()
        self.work.forwards += 1


def _distinct_frames(encoded: Sequence[Encoded]) -> tuple[list[Frame], dict[tuple[str, int], int]]:
    """Frames with different pixels, in order of appearance, and their numbers."""
    frames: list[Frame] = []
    index: dict[tuple[str, int], int] = {}
    for e in encoded:
        for media, i in e.images:
            if (media.key, i) not in index:
                index[media.key, i] = len(frames)
                frames.append((media, i))
    return frames, index


def _key(encoded: Encoded, image_token: int, index: dict[tuple[str, int], int]) -> Key:
    """Token ids, with every image token replaced by -1 - (its row in the table of image tokens)."""
    per_image = encoded.ids.count(image_token) // max(1, len(encoded.images))
    rows = (index[m.key, i] * per_image + t for m, i in encoded.images for t in range(per_image))
    return tuple(-1 - next(rows) if token == image_token else token for token in encoded.ids)
