"""Dialogs to answers: every distinct picture is seen once, every shared prefix is read once, long lists stream.

Dialogs that begin alike form a tree (`plan.py`), and a tree is one packed forward pass (`attention.py`). No caches: the
same code serves inference and training, and results and gradients equal those of plain passes up to floating point.

Shapes: N dialogs, W answer words, D hidden width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Dialog, Media
from rewarddance.core.memory import out_of_memory
from rewarddance.core.parallel import max_over_processes
from rewarddance.vlm.attention import lay_out
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.encoding import Encoded
from rewarddance.vlm.memory import Probe, Room
from rewarddance.vlm.pictures import Eyes, distinct
from rewarddance.vlm.plan import Key, batches, grow
from rewarddance.vlm.portions import portions

HEAD_ROWS = 512
PORTION_IMAGE_TOKENS = 1 << 18
"""Image tokens of a portion of a long list where no gradient is wanted, and as many again for later ones: 2 GiB each at
4,096 channels in bf16 (Qwen3-VL's tokens are four times as wide)."""
PROBE_TOKENS = 1024
"""Size of the pass on which memory is measured, once, when there is more than four times as much to do."""


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
    forwards: int = 0


@dataclass(frozen=True)
class Asked:
    """A dialog to be read.

    Attributes:
        key: its tokens, with -1 - row in place of every image token: dialogs that begin alike have keys that do.
        start: the first token whose state is wanted; all later ones are too.
    """

    key: Key
    encoded: Encoded
    start: int


Read = Callable[[Sequence[Asked]], list[Tensor]]
"""One packed pass: states of every sequence from its start on, (len - start, D) each."""


@dataclass
class Engine:
    """Drives a backbone.

    Args:
        budget: language-model tokens in one packed pass at most, but for a single sequence and what branches from it
            (`plan.batches`); a longer list takes several.
        image_budget: pictures in one pass of the vision tower at most.
        memory_share: without gradients, a pass takes at most this share of the free memory; bytes a token are measured
            on the first long list. One that does not fit all the same is halved, of pictures as of words.
        image_cache: pictures whose tokens are kept for later calls, the least recently used go first; only while no
            weight is trained.
        portion: without gradients (and unsharded), dialogs that are held in memory at once.
        autocast: compute in this type where autocast knows how (weights keep theirs); None computes as stored.
    """

    backbone: Backbone
    budget: int = 16_384
    image_budget: int = 256
    memory_share: float = 0.5
    image_cache: int = 0
    portion: int = 4096
    autocast: torch.dtype | None = None
    lockstep: bool = field(default=False, init=False)
    work: Work = field(default_factory=Work)
    _room: Room = field(init=False, repr=False)
    _eyes: Eyes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._room = Room(self.memory_share)
        self._eyes = Eyes(self.backbone, self.image_budget, self.image_cache, self._room, self.lockstep)

    def in_lockstep(self) -> None:
        """From now on make as many passes as the data-parallel process that makes most, as sharded weights want it.

        Surplus passes repeat the first one, without effect on results or gradients.
        """
        self.lockstep = self._eyes.lockstep = True
        self._room.measured = False

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
            if self.autocast is not None:
                logits = logits.index_copy(1, ids, self._exact(rows, ids))  # in the sum too, or a share could pass 1
            chosen.append(logits[:, ids])
            total.append(logits.logsumexp(-1, keepdim=True))
        found = torch.cat(chosen)
        return Answers(found, found - torch.cat(total))

    def _exact(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Logits of some words in fp32: in bf16 margins would come in steps of a sixteenth."""
        with torch.autocast(rows.device.type, enabled=False):
            return rows.float() @ self.backbone.words(ids).float().T

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
        and the last. Where nothing wants a gradient, a long list is read in portions, in passes that fit the memory.
        """
        self.work = Work()
        self._eyes.begin()
        ends = tails if tails is not None else [()] * len(dialogs)
        if self.lockstep or self._wants_gradient(dialogs):
            return self._together(dialogs, ends, every)
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for p in portions(dialogs, self.portion, self._image_tokens, PORTION_IMAGE_TOKENS):
                self._eyes.later = p.later
                states = self._together([dialogs[i] for i in p.rows], [ends[i] for i in p.rows], every)
                found.update(zip(p.rows, states, strict=True))
        return [found[i] for i in range(len(dialogs))]

    def _wants_gradient(self, dialogs: Sequence[Dialog]) -> bool:
        """Is there anything to differentiate by, a weight or a picture? (A frozen judge is often asked without.)"""
        if not torch.is_grad_enabled():
            return False
        pictures = (p.frames for d in dialogs for p in d if isinstance(p, Media))
        return any(x.requires_grad for x in itertools.chain(self.backbone.module.parameters(), pictures))

    def _image_tokens(self, media: Media) -> int:
        return self.backbone.encoder.count(media) * media.num_frames

    def _together(self, dialogs: Sequence[Dialog], tails: Sequence[Sequence[int]], every: bool) -> list[Tensor]:
        """Those states, of dialogs whose pictures and tokens are held at once."""
        asked, seen = self._look(dialogs, tails, every)
        earliest: dict[Key, Asked] = {}  # alike dialogs are read once, from where any of them wants it
        for a in asked:
            if a.key not in earliest or a.start < earliest[a.key].start:
                earliest[a.key] = a
        todo = sorted(earliest.values(), key=lambda a: a.key)
        states = self._all_passes(todo, lambda part: self._read(part, seen))
        found = {a.key: (a.start, own) for a, own in zip(todo, states, strict=True)}
        return [own[a.start - first :] for a in asked for first, own in [found[a.key]]]

    def _look(
        self, dialogs: Sequence[Dialog], tails: Sequence[Sequence[int]], every: bool
    ) -> tuple[list[Asked], Tensor | None]:
        """Dialogs as token sequences, and the tokens of their distinct pictures, (P, D); None without pictures."""
        plain = [self.backbone.encoder.chat([("user", d)]) for d in dialogs]
        whole = [_with_tail(e, t) for e, t in zip(plain, tails, strict=True)]
        shown = distinct(whole)
        seen = self._eyes.table(shown)
        self.work.images = self._eyes.looked
        asked = []
        for before, encoded in zip(plain, whole, strict=True):
            start = len(before.ids) - 1 if every else len(encoded.ids) - 1
            asked.append(Asked(_key(encoded, self.backbone.image_token_id, shown.first_row), encoded, start))
        return asked, seen

    def _all_passes(self, todo: Sequence[Asked], read: Read) -> list[Tensor]:
        """Read all sequences in as many passes as the budget asks for."""
        limit = self._room.units("language", self.budget, lambda: _probe(todo, read, self.work), self.backbone.device)
        parts: list[Tensor] = []
        planned = batches([a.key for a in todo], limit)
        # everyone says how many passes it makes before the first of them
        passes = max_over_processes(len(planned)) if self.lockstep else len(planned)
        for b in planned:
            parts += self._halving(todo[b.start : b.stop], read, limit)
        for _ in range(len(planned), passes):
            parts[0] = parts[0] + 0 * read(todo[:1])[0].sum()
        return parts

    def _halving(self, todo: Sequence[Asked], read: Read, limit: int) -> list[Tensor]:
        """One pass, or passes of half the size where it does not fit in memory, from then on."""
        try:
            return read(todo)
        except RuntimeError as error:
            if not out_of_memory(error) or self.lockstep or torch.is_grad_enabled() or len(todo) == 1:
                raise
        self.budget = limit // 2
        parts = [todo[b.start : b.stop] for b in batches([a.key for a in todo], self.budget)]
        if len(parts) == 1:  # a prefix as long as that is read twice then
            parts = [todo[: len(todo) // 2], todo[len(todo) // 2 :]]
        return [t for part in parts for t in self._halving(part, read, self.budget)]

    def _read(self, todo: Sequence[Asked], seen: Tensor | None) -> list[Tensor]:
        """Hidden states of sorted sequences, each from its start on, from one packed pass."""
        keys, device = [a.key for a in todo], self.backbone.device
        tree = grow(keys)
        packed = lay_out(tree, device)
        members = sorted({member for member, _ in packed.token_of})
        rows_of = dict(zip(members, itertools.accumulate((len(keys[m]) for m in members), initial=0), strict=False))
        at = torch.tensor([rows_of[member] + place for member, place in packed.token_of])
        tokens = torch.tensor([t for m in members for t in keys[m]])[at].to(device)
        positions = torch.cat([self.backbone.positions(todo[m].encoded) for m in members], 1)[:, at].to(device)
        places = [p for i, a in enumerate(todo) for p in packed.places(tree, i, a.start)]
        ends = torch.tensor(places, device=device)
        self.work.tokens += len(tokens)
        self.work.forwards += 1
        rows = -1 - tokens[tokens < 0]
        pictures = None if seen is None or len(rows) == 0 else seen[rows]
        hidden = self.backbone.read(tokens.clamp(min=-1), pictures, positions, packed, ends)
        return list(torch.split(hidden, [len(a.key) - a.start for a in todo]))


def _with_tail(encoded: Encoded, tail: Sequence[int]) -> Encoded:
    """The dialog with what the assistant has written already."""
    return replace(encoded, ids=(*encoded.ids, *tail), answers=(*encoded.answers, *[True] * len(tail)))


def _probe(todo: Sequence[Asked], read: Read, work: Work) -> Probe | None:
    """A pass small enough to be thrown away, and its tokens; None where the whole list is not much longer."""
    keys = [a.key for a in todo]
    if len(batches(keys, 4 * PROBE_TOKENS)) == 1:
        return None
    b = batches(keys, PROBE_TOKENS)[0]

    def run() -> None:
        before = replace(work)
        read(todo[b.start : b.stop])
        work.tokens, work.forwards = before.tokens, before.forwards

    return run, grow(keys[b.start : b.stop]).num_tokens


def _key(encoded: Encoded, image_token: int, first_row: dict[tuple[str, int], int]) -> Key:
    """Token ids, with every image token replaced by -1 - (its row in the table of image tokens)."""
    key, place = list(encoded.ids), 0
    for (media, i), num in zip(encoded.images, encoded.counts, strict=True):
        place, row = encoded.ids.index(image_token, place), first_row[media.key, i]
        key[place : place + num] = range(-1 - row, -1 - row - num, -1)
        place += num
    return tuple(key)
