"""Dialogs to answers: every distinct picture is seen once, every shared prefix is read once, long lists stream.

Dialogs that begin alike form a tree (`plan.py`), and a tree is one packed forward pass (`attention.py`). No caches: the
same code serves inference and training, and results and gradients equal those of plain passes up to floating point.

Shapes: N dialogs, W answer words, D hidden width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Dialog
from rewarddance.core.parallel import most
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
        lockstep: make as many passes as the data-parallel process that makes most, as sharded weights want it; passes
            too many are the first one again, without effect on results or gradients.
    """

    backbone: Backbone
    budget: int = 16_384
    image_budget: int = 256
    autocast: torch.dtype | None = None
    lockstep: bool = False
    work: Work = field(default_factory=Work)

    def answer_logits(
        self, dialogs: Sequence[Dialog], words: Sequence[str], tails: Sequence[Sequence[int]] | None = None
    ) -> Answers:
        """Logits of the answer words right after each dialog; differentiable to weights and pixels.

        Args:
            tails: token ids that the assistant has written already, before the answer.

        Raises:
            ConfigError: an answer word is more than one token.
        """
        ids = torch.tensor([self.word_id(w) for w in words], device=self.backbone.device)
        with self._precision():
            return self._answers(torch.cat(self._hidden(dialogs, tails)), ids)

    def answer_and_reasons(
        self, dialogs: Sequence[Dialog], tails: Sequence[Sequence[int]], verdicts: Sequence[int], words: Sequence[str]
    ) -> tuple[Answers, list[Tensor]]:
        """For training with reasons: logits of the answer words where the verdict stands, and what the rest is worth.

        Args:
            tails: the whole answer in token ids; verdicts: which of its tokens is the verdict.

        Returns:
            The answers, and the log-probability of every other token of each tail.
        """
        ids = torch.tensor([self.word_id(w) for w in words], device=self.backbone.device)
        with self._precision():
            hidden = self._hidden(dialogs, tails, every=True)
            places = [h[v] for h, v in zip(hidden, verdicts, strict=True)]
            answers = self._answers(torch.stack(places), ids)
            others = [[i for i in range(len(t)) if i != v] for t, v in zip(tails, verdicts, strict=True)]
            rows = torch.cat([h[o] for h, o in zip(hidden, others, strict=True)])
            targets = [t[i] for t, o in zip(tails, others, strict=True) for i in o]
            logp = self._logp(rows, torch.tensor(targets, device=rows.device))
        return answers, list(torch.split(logp, [len(o) for o in others]))

    def token_logprobs(self, dialogs: Sequence[Dialog], tails: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probability of every token of what the assistant says after each dialog, fp32."""
        with self._precision():
            rows = torch.cat([h[:-1] for h in self._hidden(dialogs, tails, every=True)])
            targets = torch.tensor([t for tail in tails for t in tail], device=rows.device)
            return list(torch.split(self._logp(rows, targets), [len(t) for t in tails]))

    def _answers(self, hidden: Tensor, ids: Tensor) -> Answers:
        chosen, total = [], []  # a whole vocabulary of logits is held for HEAD_ROWS questions at a time
        for rows in torch.split(hidden, HEAD_ROWS):
            logits = self.backbone.head(rows).float()
            chosen.append(logits[:, ids])
            total.append(logits.logsumexp(-1, keepdim=True))
        found = torch.cat(chosen)
        return Answers(found, found - torch.cat(total))

    def _logp(self, hidden: Tensor, targets: Tensor) -> Tensor:
        parts = zip(torch.split(hidden, HEAD_ROWS), torch.split(targets, HEAD_ROWS), strict=True)
        return torch.cat([-F.cross_entropy(self.backbone.head(h).float(), t, reduction="none") for h, t in parts])

    def answer_hidden(self, dialogs: Sequence[Dialog]) -> Tensor:
        """The last layer's state at the answer position, (N, D) fp32: what scalar heads read."""
        with self._precision():
            return torch.cat(self._hidden(dialogs)).float()

    def tokens(self, text: str) -> list[int]:
        """Token ids of plain text; nothing in it is read as a special token."""
        found: list[int] = self.backbone.tokenizer(self.backbone.encoder.plain(text), add_special_tokens=False)[
            "input_ids"
        ]
        return found

    @property
    def end_of_turn(self) -> list[int]:
        """What ends an answer."""
        found = self.backbone.tokenizer.eos_token_id
        return [] if found is None else [int(found)]

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

    def _hidden(
        self, dialogs: Sequence[Dialog], tails: Sequence[Sequence[int]] | None = None, every: bool = False
    ) -> list[Tensor]:
        """States at the last token of each dialog and its tail, (1, D) each.

        With `every`, from the token before the tail on, (1 + len(tail), D): the states that its tokens are read from,
        and the last.
        """
        plain = [self.backbone.encoder.chat([("user", d)]) for d in dialogs]
        encoded = plain
        if tails is not None:
            encoded = [
                replace(e, ids=(*e.ids, *t), answers=(*e.answers, *[True] * len(t)))
                for e, t in zip(plain, tails, strict=True)
            ]
        frames, first_row = _distinct_frames(encoded)
        self.work = Work(images=len(frames))
        seen = self._see(frames)
        asked = [_key(e, self.backbone.image_token_id, first_row) for e in encoded]
        starts = [len(p.ids) - 1 if every else len(key) - 1 for p, key in zip(plain, asked, strict=True)]
        wanted: dict[Key, int] = {}
        for key, start in zip(asked, starts, strict=True):
            wanted[key] = min(start, wanted.get(key, start))
        holder = dict(zip(asked, encoded, strict=True))
        keys = sorted(wanted)
        parts: list[Tensor] = []
        planned = batches(keys, self.budget)
        for b in planned:
            part = keys[b.start : b.stop]
            hidden = self._read(part, [wanted[key] for key in part], holder, seen)
            parts += torch.split(hidden, [len(key) - wanted[key] for key in part])
        for _ in range(len(planned), self._passes(len(planned))):
            idle = self._read(keys[:1], [len(keys[0]) - 1], holder, seen)
            parts[0] = parts[0] + 0 * idle.sum()
        found = dict(zip(keys, parts, strict=True))
        return [found[key][start - wanted[key] :] for key, start in zip(asked, starts, strict=True)]

    def _see(self, frames: list[Frame]) -> Tensor | None:
        """All image tokens in one table, one row each."""
        if not frames:
            return None
        step = self.image_budget
        parts = [self.backbone.see(frames[i : i + step]) for i in range(0, len(frames), step)]
        for _ in range(len(parts), self._passes(len(parts))):
            parts[0] = parts[0] + 0 * self.backbone.see(frames[:1]).sum()
        return torch.cat(parts)

    def _passes(self, own: int) -> int:
        return most(own) if self.lockstep else own

    def _read(
        self, keys: Sequence[Key], starts: Sequence[int], holder: Mapping[Key, Encoded], seen: Tensor | None
    ) -> Tensor:
        """Hidden states of sorted sequences from a place on, one after another, from one packed pass."""
        tree, device = grow(keys), self.backbone.device
        packed = lay_out(tree, device)
        members = sorted({member for member, _ in packed.token_of})
        rows_of = dict(zip(members, itertools.accumulate((len(keys[m]) for m in members), initial=0), strict=False))
        at = torch.tensor([rows_of[member] + place for member, place in packed.token_of])
        tokens = torch.tensor([t for m in members for t in keys[m]])[at].to(device)
        positions = torch.cat([self.backbone.positions(holder[keys[m]]) for m in members], 1)[:, at].to(device)
        places = [p for i, start in enumerate(starts) for p in packed.places(tree, i, start)]
        ends = torch.tensor(places, device=device)
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
