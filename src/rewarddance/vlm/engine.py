"""From dialogs to answers: every distinct picture is encoded once, and every shared prefix is computed once.

Dialogs with the same beginning form a tree (`plan.py`), and a tree is one packed forward pass (`attention.py`). There
are no caches, so the same code serves inference and training, and results and gradients equal those of plain passes up
to floating point. Long lists are streamed.

Shapes: N dialogs, W answer words, D hidden width.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Dialog, Media
from rewarddance.core.memory import out_of_memory
from rewarddance.core.parallel import all_reduce_max
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.encoding import Encoded, messages_of
from rewarddance.vlm.layout import Ints, lay_out, on_device
from rewarddance.vlm.memory import MemoryBudget, TrialPass
from rewarddance.vlm.plan import Key, Tree, batches, build_tree
from rewarddance.vlm.portions import portions
from rewarddance.vlm.sequenced import Sequenced, sequenced
from rewarddance.vlm.vision_pass import Name, VisionPass, distinct_frames, name_of

HEAD_ROWS = 512
"""Questions whose logits over the whole vocabulary are in memory at once."""
PORTION_IMAGE_TOKENS = 1 << 18
"""Image tokens of a portion of a long list if no gradient is wanted, and as many again that are kept for later
portions: 2 GiB each at 4,096 channels in bf16 (Qwen3-VL's tokens are four times as wide)."""
TRIAL_TOKENS = 1024
"""Size of the pass that memory is measured on, once, if there are more than four times as many tokens."""

BUDGETS = defaultdict(lambda: 16_384, cuda=131_072)
"""Tokens of a pass: on a CPU as many as fit its caches well, on a GPU so many that launching kernels takes little
time."""

Word = str | Sequence[str]
"""An answer word, or several spellings of it."""


@dataclass(frozen=True)
class Answers:
    """Logits at the answer position, summed over the spellings of each word.

    Attributes:
        logits: (N, W) fp32, log of the sum of the exponentials of the spellings' logits.
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
    """Counts of the work of one call; tests compare them with the work that is needed."""

    images: int = 0
    tokens: int = 0
    scores: int = 0
    """Pairs of tokens in which one attends to the other (for each layer and head)."""
    forwards: int = 0


PackedPass = Callable[[Sequence[Sequenced]], list[Tensor]]
"""One packed pass: states of every sequence from its start on, (len - start, D) each."""


@dataclass
class Engine:
    """Runs a backbone.

    Args:
        budget: largest number of language-model tokens in one packed pass; a longer list takes several passes. A single
            sequence and its branches may be longer (`plan.batches`). 0 takes `BUDGETS` of the device; without gradients
            a pass takes fewer if memory is short.
        image_budget: largest number of pictures in one pass of the vision tower.
        memory_share: without gradients, the share of the free memory that a pass may take. Bytes a token are measured
            on the first long list. A pass that still does not fit is halved.
        image_cache: images (pictures, frames of clips, temporal patches) whose tokens are kept for later calls; the
            least recently used are dropped first. Not used while weights are trained.
        portion: without gradients (and unsharded), dialogs that are in memory at once.
        autocast: the type that autocast computes in; weights keep theirs. None computes in the stored types.
    """

    backbone: Backbone
    budget: int = 0
    image_budget: int = 256
    memory_share: float = 0.5
    image_cache: int = 0
    portion: int = 4096
    autocast: torch.dtype | None = None
    lockstep: bool = field(default=False, init=False)
    work: Work = field(default_factory=Work)
    _memory: MemoryBudget = field(init=False, repr=False)
    _vision: VisionPass = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.budget = self.budget or BUDGETS[self.backbone.device.type]
        self._memory = MemoryBudget(self.memory_share)
        self._vision = VisionPass(self.backbone, self.image_budget, self.image_cache, self._memory, self.lockstep)

    def in_lockstep(self) -> None:
        """From now on every process makes as many passes as the process with the most, because sharded weights need
        this.

        Surplus passes repeat the first pass, without effect on results or gradients.
        """
        self.lockstep = self._vision.lockstep = True
        self._memory.measured = False

    def answer_logits(
        self, dialogs: Sequence[Dialog], words: Sequence[Word], tails: Sequence[Sequence[int]] | None = None
    ) -> Answers:
        """Logits of the answer words right after each dialog; differentiable to weights and pixels.

        Args:
            tails: token ids that the assistant has written before the answer, for each dialog.

        Raises:
            ConfigError: no spelling of a word is a single token.
        """
        ids = [self.word_ids(w) for w in words]
        with self._precision():
            return self._answers(torch.cat(self._hidden(dialogs, tails)), ids)

    def answer_and_reasons(
        self,
        dialogs: Sequence[Dialog],
        tails: Sequence[Sequence[int]],
        verdict_at: Sequence[int],
        words: Sequence[Word],
    ) -> tuple[Answers, list[Tensor]]:
        """For training with reasons.

        Args:
            tails: the whole answer to each dialog, in token ids; verdict_at: which of its tokens is the verdict.

        Returns:
            Logits of the answer words where the verdict stands, and the log-probability of every other token.
        """
        ids = [self.word_ids(w) for w in words]
        with self._precision():
            hidden = self._hidden(dialogs, tails, every=True)
            answers = self._answers(torch.stack([h[v] for h, v in zip(hidden, verdict_at, strict=True)]), ids)
            others = [[i for i in range(len(t)) if i != v] for t, v in zip(tails, verdict_at, strict=True)]
            rows = torch.cat([h[o] for h, o in zip(hidden, others, strict=True)])
            targets = [t[i] for t, o in zip(tails, others, strict=True) for i in o]
            logp = self._logp(rows, torch.tensor(targets, device=rows.device))
        return answers, list(torch.split(logp, [len(o) for o in others]))

    def _answers(self, hidden: Tensor, ids: Sequence[Sequence[int]]) -> Answers:
        flat = torch.tensor([i for group in ids for i in group], device=hidden.device)
        chosen, total = [], []
        for rows in torch.split(hidden, HEAD_ROWS):
            logits = self.backbone.logits(rows).float()
            if self.autocast is not None:
                # also in the sum over the vocabulary, or a word's share could be above 1
                logits = logits.index_copy(1, flat, self._exact_logits(rows, flat))
            chosen.append(logits[:, flat])
            total.append(logits.logsumexp(-1, keepdim=True))
        groups = torch.split(torch.cat(chosen), [len(group) for group in ids], -1)
        words = torch.stack([g.logsumexp(-1) for g in groups], -1)
        return Answers(words, words - torch.cat(total))

    def _exact_logits(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Logits of some tokens in fp32; in bf16 margins would be multiples of a sixteenth."""
        with torch.autocast(rows.device.type, enabled=False):
            return rows.float() @ self.backbone.head_rows(ids).float().T

    def _logp(self, hidden: Tensor, targets: Tensor) -> Tensor:
        parts = zip(torch.split(hidden, HEAD_ROWS), torch.split(targets, HEAD_ROWS), strict=True)
        logits = self.backbone.logits
        return torch.cat([-F.cross_entropy(logits(h).float(), t, reduction="none") for h, t in parts])

    def answer_hidden(self, dialogs: Sequence[Dialog]) -> Tensor:
        """The last layer's state at the answer position, (N, D) fp32: the input of scalar heads."""
        with self._precision():
            return torch.cat(self._hidden(dialogs)).float()

    def tokens(self, text: str) -> list[int]:
        """Token ids of plain text; nothing in it counts as a special token."""
        plain = self.backbone.encoder.plain(text)
        ids: list[int] = self.backbone.tokenizer(plain, add_special_tokens=False)["input_ids"]
        return ids

    def num_tokens(self, dialog: Dialog) -> int:
        """Length of a dialog in tokens."""
        return len(self.backbone.encoder.chat(messages_of(dialog)).ids)

    def num_image_tokens(self, media: Media) -> int:
        """Image tokens of a picture, or of all images of a clip."""
        return self.backbone.encoder.count(media) * len(self.backbone.encoder.images_of(media))

    def num_images(self, media: Media) -> int:
        """Images with tokens of their own: 1 for a picture, frames or temporal patches of a clip."""
        return len(set(self.backbone.encoder.images_of(media)))

    def keep_images(self, num: int) -> None:
        """Set `image_cache` from now on."""
        self.image_cache = self._vision.cache = num

    @property
    def end_of_turn(self) -> list[int]:
        """The token that ends an answer, if the tokenizer has one."""
        end = self.backbone.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    def word_ids(self, word: Word) -> list[int]:
        """Token ids of a word's spellings that are single tokens.

        Raises:
            ConfigError: none of them is.
        """
        spellings = (word,) if isinstance(word, str) else word
        ids = [self.backbone.tokenizer(s, add_special_tokens=False)["input_ids"] for s in spellings]
        single = list(dict.fromkeys(int(i[0]) for i in ids if len(i) == 1))
        if not single:
            shown = " or ".join(map(repr, spellings))
            raise ConfigError(f"the tokenizer has no single token for the answer word {shown}; choose another word")
        return single

    def _precision(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.backbone.device.type, self.autocast)

    def _hidden(
        self, dialogs: Sequence[Dialog], tails: Sequence[Sequence[int]] | None = None, every: bool = False
    ) -> list[Tensor]:
        """States at the last token of each dialog and its tail, (1, D) each.

        With `every`, states from the token before the tail on, (1 + len(tail), D): those that the tail's tokens are
        predicted from, and the last one. If nothing wants a gradient, a long list is processed in portions.
        """
        self.work = Work()
        self._vision.begin_call()
        ends = tails if tails is not None else [()] * len(dialogs)
        if self.lockstep or self._wants_gradient(dialogs):
            return self._all_states(dialogs, ends, every)
        states: dict[int, Tensor] = {}
        with torch.no_grad():
            if len(dialogs) <= self.portion and self._image_tokens_at_most(dialogs) <= PORTION_IMAGE_TOKENS:
                return self._all_states(dialogs, ends, every)
            for p in portions(dialogs, self.portion, self._named_tokens, PORTION_IMAGE_TOKENS):
                self._vision.needed_later = p.needed_later
                part = self._all_states([dialogs[i] for i in p.rows], [ends[i] for i in p.rows], every)
                states.update(zip(p.rows, part, strict=True))
        return [states[i] for i in range(len(dialogs))]

    def _image_tokens_at_most(self, dialogs: Sequence[Dialog]) -> int:
        shown = {id(p): p for d in dialogs for p in d if isinstance(p, Media)}
        return sum(map(self.num_image_tokens, shown.values()))

    def _named_tokens(self, media: Media) -> dict[Name, int]:
        """Image tokens of every image of a picture or clip, by its name."""
        encoder = self.backbone.encoder
        count = encoder.count(media)
        return {name_of((media, frames), count): count for frames in encoder.images_of(media)}

    def _wants_gradient(self, dialogs: Sequence[Dialog]) -> bool:
        """Whether gradients are on and a weight or a picture requires one."""
        if not torch.is_grad_enabled():
            return False
        pictures = (p.frames for d in dialogs for p in d if isinstance(p, Media))
        return any(x.requires_grad for x in itertools.chain(self.backbone.module.parameters(), pictures))

    def _all_states(self, dialogs: Sequence[Dialog], tails: Sequence[Sequence[int]], every: bool) -> list[Tensor]:
        """The states of `_hidden` for dialogs that are in memory at once."""
        distinct = distinct_frames(dialogs, self.backbone.encoder)
        image_tokens = self._vision.table(distinct)  # on CUDA it is computed while the host plans the tree
        self.work.images = self._vision.num_encoded
        plain = [self.backbone.encoder.chat(messages_of(d)) for d in dialogs]
        whole = [_with_tail(e, t) for e, t in zip(plain, tails, strict=True)]
        first_row = np.array([0, *itertools.accumulate(distinct.sizes)])
        contexts = self.backbone.encoder.context_ids
        sequences = [
            sequenced(encoded, contexts, distinct, len(before.ids) if every else len(encoded.ids))
            for before, encoded in zip(plain, whole, strict=True)
        ]
        earliest: dict[Key, Sequenced] = {}  # equal dialogs are computed once, from the earliest start that is wanted
        for s in sequences:
            if s.key not in earliest or s.start < earliest[s.key].start:
                earliest[s.key] = s
        todo = sorted(earliest.values(), key=lambda s: s.key)
        states = self._all_passes(todo, lambda part: self._packed_pass(part, image_tokens, first_row))
        by_key = {s.key: (s.start, state) for s, state in zip(todo, states, strict=True)}
        return [state[s.start - first :] for s in sequences for first, state in [by_key[s.key]]]

    def _tree(self, todo: Sequence[Sequenced]) -> Tree:
        return build_tree([s.key for s in todo], [s.offsets for s in todo])

    def _batches(self, todo: Sequence[Sequenced], budget: int) -> list[range]:
        return batches([s.key for s in todo], budget, [s.offsets for s in todo])

    def _all_passes(self, todo: Sequence[Sequenced], run: PackedPass) -> list[Tensor]:
        """Compute all sequences, in as many passes as the budget needs."""
        limit = self._memory.units("language", self.budget, lambda: self._trial(todo, run), self.backbone.device)
        parts: list[Tensor] = []
        planned = self._batches(todo, limit)
        # all_reduce before the first pass: afterwards the processes are in the middle of different passes
        passes = all_reduce_max(len(planned)) if self.lockstep else len(planned)
        for b in planned:
            parts += self._pass_or_halves(todo[b.start : b.stop], run, limit)
        for _ in range(len(planned), passes):
            parts[0] = parts[0] + 0 * run(todo[:1])[0].sum()
        return parts

    def _trial(self, todo: Sequence[Sequenced], run: PackedPass) -> TrialPass | None:
        """A small pass to measure memory on, and its tokens; None if the whole list is not much longer."""
        if len(self._batches(todo, 4 * TRIAL_TOKENS)) == 1:
            return None
        b = self._batches(todo, TRIAL_TOKENS)[0]
        few = todo[b.start : b.stop]

        def trial() -> None:
            before = replace(self.work)
            run(few)
            self.work = before

        return trial, self._tree(few).num_tokens

    def _pass_or_halves(self, todo: Sequence[Sequenced], run: PackedPass, limit: int) -> list[Tensor]:
        """One pass. If it does not fit in memory: passes of half the size, also in later calls."""
        try:
            return run(todo)
        except RuntimeError as error:
            if not out_of_memory(error) or self.lockstep or torch.is_grad_enabled() or len(todo) == 1:
                raise
        self.budget = limit // 2
        parts = [todo[b.start : b.stop] for b in self._batches(todo, self.budget)]
        if len(parts) == 1:  # a prefix as long as the budget: halve the list and compute the prefix twice
            parts = [todo[: len(todo) // 2], todo[len(todo) // 2 :]]
        return [t for part in parts for t in self._pass_or_halves(part, run, self.budget)]

    def _packed_pass(self, todo: Sequence[Sequenced], image_tokens: Tensor | None, first_row: Ints) -> list[Tensor]:
        """Hidden states of sorted sequences, each from its start on, from one packed pass."""
        device, tree = self.backbone.device, self._tree(todo)
        packed = lay_out(tree, device, self.backbone.attention_kernel(self.autocast or self.backbone.model.dtype))
        members = {n.member for n in tree.nodes}
        empty = np.zeros(0, np.int64)
        tokens = packed.gather([s.tokens(first_row) if i in members else empty for i, s in enumerate(todo)])
        positions = packed.gather(
            [self.backbone.positions(s.encoded) if i in members else empty for i, s in enumerate(todo)]
        )
        is_image = tokens < 0
        answer_places = np.array([p for i, s in enumerate(todo) for p in packed.places(i, s.start)])
        self.work.tokens += len(tokens)
        self.work.scores += sum(n.length * n.start + n.length * (n.length + 1) // 2 for n in tree.nodes)
        self.work.forwards += 1
        arrays = (np.maximum(tokens, -1), positions, np.flatnonzero(is_image), -1 - tokens[is_image], answer_places)
        ids, axes, image_places, rows, places = on_device(arrays, device)
        shown = None if image_tokens is None or len(rows) == 0 else image_tokens[rows]
        hidden = self.backbone.hidden_states(ids, shown, image_places, axes, packed.visible, places)
        return list(torch.split(hidden, [s.offsets[-1] - s.start for s in todo]))


def _with_tail(encoded: Encoded, tail: Sequence[int]) -> Encoded:
    """The dialog, followed by what the assistant has written."""
    if not tail:
        return encoded
    answers = (*encoded.answers, *[True] * len(tail))
    return replace(encoded, ids=(*encoded.ids, *tail), units=(*encoded.units, *tail), answers=answers)
