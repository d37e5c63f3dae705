"""From dialogs to answers: every distinct picture is encoded once, and every shared prefix is computed once.

Dialogs with the same beginning form a tree (`plan.py`). One packed forward pass computes a whole tree (`attention.py`).
No keys and values are kept between passes, so inference and training run the same code. Results and gradients equal
those of one plain pass for each dialog, up to rounding. Without gradients, a long list is computed in portions.

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
"""Largest number of questions whose logits over the whole vocabulary are in memory at once."""
PORTION_IMAGE_TOKENS = 1 << 18
"""Largest number of image tokens that a portion of a long list needs. As many more may be kept for later portions. Each
of the two takes 2 GiB at 4,096 channels in bf16; the tokens of Qwen3-VL are four times as wide."""
TRIAL_TOKENS = 1024
"""Tokens of the trial pass, which measures the memory of a token once. A list of at most four times as many tokens has
no trial pass."""

BUDGETS = defaultdict(lambda: 16_384, cuda=131_072)
"""Tokens of a pass, by device. On a CPU such a pass fits the processor's caches well. On a GPU it is so large that
launching its kernels takes little of the time."""

Word = str | Sequence[str]
"""An answer word, or several spellings of it."""


@dataclass(frozen=True)
class Answers:
    """Logits and log-probabilities of the answer words. Those of a word cover all its spellings.

    Attributes:
        logits: (N, W) fp32, the `logsumexp` of the logits of a word's spellings.
        logp: (N, W) fp32, log-probabilities over the whole vocabulary.
    """

    logits: Tensor
    logp: Tensor

    @property
    def mass(self) -> Tensor:
        """Probability of all answer words together, (N,)."""
        return self.logp.exp().sum(-1)


@dataclass
class PassCounts:
    """What the last call computed. Tests compare it with the least that the call needs."""

    images: int = 0
    """Images that went through the vision tower."""
    tokens: int = 0
    """Tokens that went through the language model."""
    scores: int = 0
    """Pairs of tokens of which one attends to the other, in one head of one layer."""
    forwards: int = 0
    """Packed passes of the language model."""


PackedPass = Callable[[Sequence[Sequenced]], list[Tensor]]
"""Runs one packed pass. It returns the hidden states of every sequence from its `start` on, (len - start, D) each."""


@dataclass
class Engine:
    """Answers dialogs with a backbone.

    Args:
        budget: largest number of language-model tokens in one packed pass; a longer list takes several passes. A single
            sequence and its branches may be longer (`plan.batches`). 0 takes `BUDGETS` of the device. Without
            gradients, a pass takes fewer tokens if memory is short.
        image_budget: largest number of pictures in one pass of the vision tower.
        memory_share: the share of the free memory that a pass without gradients may take. The first long list measures
            the bytes of a token. If a pass still does not fit, it is halved.
        image_cache: number of images (pictures, frames of clips, temporal patches) whose tokens are kept for later
            calls. The least recently used are dropped first. While weights are trained, no tokens are kept.
        portion: largest number of dialogs in memory at once, without gradients and with unsharded weights.
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
    counts: PassCounts = field(default_factory=PassCounts)
    _memory: MemoryBudget = field(init=False, repr=False)
    _vision: VisionPass = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.budget = self.budget or BUDGETS[self.backbone.device.type]
        self._memory = MemoryBudget(self.memory_share)
        self._vision = VisionPass(self.backbone, self.image_budget, self.image_cache, self._memory, self.lockstep)

    def in_lockstep(self) -> None:
        """Make as many passes in every process as in the process with the most; sharded weights need this.

        It holds from now on. An additional pass repeats a sequence, and changes neither results nor gradients.
        """
        self.lockstep = self._vision.lockstep = True
        self._memory.measured = False

    def answer_logits(
        self, dialogs: Sequence[Dialog], words: Sequence[Word], tails: Sequence[Sequence[int]] | None = None
    ) -> Answers:
        """Logits of the answer words right after each dialog, with gradients to weights and pixels.

        Args:
            tails: for each dialog, the token ids that the assistant has already written. The answer follows them.

        Raises:
            ConfigError: no spelling of a word is a single token.
        """
        word_ids = [self.word_ids(word) for word in words]
        with self._precision():
            return self._answers(torch.cat(self._hidden(dialogs, tails)), word_ids)

    def answer_and_reasons(
        self,
        dialogs: Sequence[Dialog],
        tails: Sequence[Sequence[int]],
        verdict_at: Sequence[int],
        words: Sequence[Word],
    ) -> tuple[Answers, list[Tensor]]:
        """The verdict and the reasons of given answers. Training with reasons uses it.

        Args:
            tails: for each dialog, the token ids of the assistant's whole answer.
            verdict_at: for each dialog, the index of the verdict among these tokens.

        Returns:
            The answer words at the place of the verdict; for each dialog the log-probabilities of all other tokens.
        """
        word_ids = [self.word_ids(word) for word in words]
        with self._precision():
            states = self._hidden(dialogs, tails, whole_tail=True)
            verdict_states = torch.stack([s[at] for s, at in zip(states, verdict_at, strict=True)])
            answers = self._answers(verdict_states, word_ids)
            reason_at = [[i for i in range(len(t)) if i != at] for t, at in zip(tails, verdict_at, strict=True)]
            reason_states = torch.cat([s[places] for s, places in zip(states, reason_at, strict=True)])
            reason_ids = [tail[i] for tail, places in zip(tails, reason_at, strict=True) for i in places]
            logp = self._logp(reason_states, torch.tensor(reason_ids, device=reason_states.device))
        return answers, list(torch.split(logp, [len(places) for places in reason_at]))

    def _answers(self, states: Tensor, word_ids: Sequence[Sequence[int]]) -> Answers:
        """The answer words at N answer positions, from their hidden states, (N, D)."""
        all_ids = torch.tensor([i for ids in word_ids for i in ids], device=states.device)
        spelling_logits, log_sums = [], []
        for rows in torch.split(states, HEAD_ROWS):
            logits = self.backbone.logits(rows).float()
            if self.autocast is not None:
                # The sum over the vocabulary needs the exact logits too. Else a word's probability could exceed 1.
                logits = logits.index_copy(1, all_ids, self._exact_logits(rows, all_ids))
            spelling_logits.append(logits[:, all_ids])
            log_sums.append(logits.logsumexp(-1, keepdim=True))
        by_word = torch.split(torch.cat(spelling_logits), [len(ids) for ids in word_ids], -1)
        word_logits = torch.stack([logits.logsumexp(-1) for logits in by_word], -1)
        return Answers(word_logits, word_logits - torch.cat(log_sums))

    def _exact_logits(self, states: Tensor, ids: Tensor) -> Tensor:
        """Logits of the given tokens in fp32. In bf16, margins would be multiples of 1/16."""
        with torch.autocast(states.device.type, enabled=False):
            return states.float() @ self.backbone.head_rows(ids).float().T

    def _logp(self, states: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of one target token after each hidden state, (N,)."""
        parts = zip(torch.split(states, HEAD_ROWS), torch.split(targets, HEAD_ROWS), strict=True)
        logits = self.backbone.logits
        return torch.cat([-F.cross_entropy(logits(rows).float(), t, reduction="none") for rows, t in parts])

    def answer_hidden(self, dialogs: Sequence[Dialog]) -> Tensor:
        """The last layer's hidden state at the answer position, (N, D) fp32. Scalar heads read it."""
        with self._precision():
            return torch.cat(self._hidden(dialogs)).float()

    def tokens(self, text: str) -> list[int]:
        """Token ids of plain text. Names of special tokens in it are read as plain characters."""
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
        """Number of images with tokens of their own: 1 for a picture; the frames or temporal patches of a clip."""
        return len(set(self.backbone.encoder.images_of(media)))

    def keep_images(self, num: int) -> None:
        """Change `image_cache` to `num` images."""
        self.image_cache = self._vision.cache = num

    @property
    def end_of_turn(self) -> list[int]:
        """The id of the token that ends an answer; empty if the tokenizer has none."""
        end = self.backbone.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    def word_ids(self, word: Word) -> list[int]:
        """Token ids of those spellings of a word that are a single token.

        Raises:
            ConfigError: no spelling is a single token.
        """
        spellings = (word,) if isinstance(word, str) else word
        ids = [self.backbone.tokenizer(s, add_special_tokens=False)["input_ids"] for s in spellings]
        single_tokens = list(dict.fromkeys(int(i[0]) for i in ids if len(i) == 1))
        if not single_tokens:
            names = " or ".join(map(repr, spellings))
            raise ConfigError(f"the tokenizer has no single token for the answer word {names}; choose another word")
        return single_tokens

    def _precision(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.backbone.device.type, self.autocast)

    def _hidden(
        self, dialogs: Sequence[Dialog], tails: Sequence[Sequence[int]] | None = None, whole_tail: bool = False
    ) -> list[Tensor]:
        """The hidden state at the last token of each dialog with its tail, (1, D) each.

        With `whole_tail`, the states from the last token before the tail to the last token of the tail,
        (1 + len(tail), D) each. The first len(tail) of them predict the tail's tokens.
        """
        self.counts = PassCounts()
        self._vision.begin_call()
        all_tails = tails if tails is not None else [()] * len(dialogs)
        if self.lockstep or self._needs_gradient(dialogs):
            return self._all_states(dialogs, all_tails, whole_tail)
        states: dict[int, Tensor] = {}
        with torch.no_grad():
            if len(dialogs) <= self.portion and self._most_image_tokens(dialogs) <= PORTION_IMAGE_TOKENS:
                return self._all_states(dialogs, all_tails, whole_tail)
            for portion in portions(dialogs, self.portion, self._image_token_counts, PORTION_IMAGE_TOKENS):
                self._vision.needed_later = portion.needed_later
                some_dialogs, some_tails = [dialogs[i] for i in portion.rows], [all_tails[i] for i in portion.rows]
                some_states = self._all_states(some_dialogs, some_tails, whole_tail)
                states.update(zip(portion.rows, some_states, strict=True))
        return [states[i] for i in range(len(dialogs))]

    def _most_image_tokens(self, dialogs: Sequence[Dialog]) -> int:
        """Image tokens of the dialogs; fewer are needed if two `Media` show the same frames."""
        media = {id(p): p for d in dialogs for p in d if isinstance(p, Media)}
        return sum(map(self.num_image_tokens, media.values()))

    def _image_token_counts(self, media: Media) -> dict[Name, int]:
        """Number of image tokens of every image of a picture or clip, by the image's name."""
        encoder = self.backbone.encoder
        count = encoder.count(media)
        return {name_of((media, frames), count): count for frames in encoder.images_of(media)}

    def _needs_gradient(self, dialogs: Sequence[Dialog]) -> bool:
        """Whether gradients are enabled and a weight or a picture requires one."""
        if not torch.is_grad_enabled():
            return False
        pictures = (p.frames for d in dialogs for p in d if isinstance(p, Media))
        return any(x.requires_grad for x in itertools.chain(self.backbone.module.parameters(), pictures))

    def _all_states(self, dialogs: Sequence[Dialog], tails: Sequence[Sequence[int]], whole_tail: bool) -> list[Tensor]:
        """The states of `_hidden` for dialogs that are in memory at once."""
        distinct = distinct_frames(dialogs, self.backbone.encoder)
        image_tokens = self._vision.table(distinct)  # a GPU computes it while the host plans the tree
        self.counts.images = self._vision.num_encoded
        encoded_dialogs = [self.backbone.encoder.chat(messages_of(d)) for d in dialogs]
        with_tails = [_with_tail(e, tail) for e, tail in zip(encoded_dialogs, tails, strict=True)]
        first_row = np.array([0, *itertools.accumulate(distinct.sizes)])
        contexts = self.backbone.encoder.context_ids
        sequences = [
            sequenced(whole, contexts, distinct, len(before.ids) if whole_tail else len(whole.ids))
            for before, whole in zip(encoded_dialogs, with_tails, strict=True)
        ]
        unique: dict[Key, Sequenced] = {}  # equal sequences are computed once, from the earliest start among them
        for s in sequences:
            if s.key not in unique or s.start < unique[s.key].start:
                unique[s.key] = s
        in_order = sorted(unique.values(), key=lambda s: s.key)
        states = self._all_passes(in_order, lambda some: self._packed_pass(some, image_tokens, first_row))
        by_key = {s.key: (s.start, state) for s, state in zip(in_order, states, strict=True)}
        return [state[s.start - first :] for s in sequences for first, state in [by_key[s.key]]]

    def _tree(self, sequences: Sequence[Sequenced]) -> Tree:
        return build_tree([s.key for s in sequences], [s.offsets for s in sequences])

    def _batches(self, sequences: Sequence[Sequenced], budget: int) -> list[range]:
        return batches([s.key for s in sequences], budget, [s.offsets for s in sequences])

    def _all_passes(self, sequences: Sequence[Sequenced], run_pass: PackedPass) -> list[Tensor]:
        """The states of all sequences, from as many passes as the budget requires."""
        device = self.backbone.device
        limit = self._memory.units("language", self.budget, lambda: self._trial(sequences, run_pass), device)
        states: list[Tensor] = []
        planned = self._batches(sequences, limit)
        # all_reduce must come before the first pass: after it, each process is inside a pass of its own.
        num_passes = all_reduce_max(len(planned)) if self.lockstep else len(planned)
        for batch in planned:
            states += self._pass_or_halves(sequences[batch.start : batch.stop], run_pass, limit)
        for _ in range(len(planned), num_passes):
            states[0] = states[0] + 0 * run_pass(sequences[:1])[0].sum()
        return states

    def _trial(self, sequences: Sequence[Sequenced], run_pass: PackedPass) -> TrialPass | None:
        """A small pass that measures memory, with the number of its tokens; None if the list is short."""
        if len(self._batches(sequences, 4 * TRIAL_TOKENS)) == 1:
            return None
        batch = self._batches(sequences, TRIAL_TOKENS)[0]
        few = sequences[batch.start : batch.stop]

        def trial() -> None:
            counts_before = replace(self.counts)
            run_pass(few)
            self.counts = counts_before

        return trial, self._tree(few).num_tokens

    def _pass_or_halves(self, sequences: Sequence[Sequenced], run_pass: PackedPass, limit: int) -> list[Tensor]:
        """The states of one pass. If it does not fit in memory, the budget is halved, for later calls too."""
        try:
            return run_pass(sequences)
        except RuntimeError as error:
            if not out_of_memory(error) or self.lockstep or torch.is_grad_enabled() or len(sequences) == 1:
                raise
        self.budget = limit // 2
        parts = [sequences[batch.start : batch.stop] for batch in self._batches(sequences, self.budget)]
        if len(parts) == 1:  # the shared prefix fills the budget: halve the list, and compute the prefix twice
            parts = [sequences[: len(sequences) // 2], sequences[len(sequences) // 2 :]]
        return [state for part in parts for state in self._pass_or_halves(part, run_pass, self.budget)]

    def _packed_pass(
        self, sequences: Sequence[Sequenced], image_tokens: Tensor | None, first_row: Ints
    ) -> list[Tensor]:
        """The hidden states of sorted sequences, each from its start on, from one packed pass.

        Args:
            image_tokens: the image tokens of all distinct images, one below the other.
            first_row: for each distinct image, the row of its first token there.
        """
        device, tree = self.backbone.device, self._tree(sequences)
        packed = lay_out(tree, device, self.backbone.attention_kernel(self.autocast or self.backbone.model.dtype))
        members = {n.member for n in tree.nodes}
        empty = np.zeros(0, np.int64)
        tokens = packed.gather([s.tokens(first_row) if i in members else empty for i, s in enumerate(sequences)])
        positions = packed.gather(
            [self.backbone.positions(s.encoded) if i in members else empty for i, s in enumerate(sequences)]
        )
        is_image = tokens < 0  # an image token holds -1 - its row in `image_tokens`
        answer_places = np.array([p for i, s in enumerate(sequences) for p in packed.places(i, s.start)])
        self.counts.tokens += len(tokens)
        self.counts.scores += sum(n.length * n.start + n.length * (n.length + 1) // 2 for n in tree.nodes)
        self.counts.forwards += 1
        arrays = (np.maximum(tokens, -1), positions, np.flatnonzero(is_image), -1 - tokens[is_image], answer_places)
        ids, axes, image_places, rows, places = on_device(arrays, device)
        pass_images = None if image_tokens is None or len(rows) == 0 else image_tokens[rows]
        states = self.backbone.hidden_states(ids, pass_images, image_places, axes, packed.visible, places)
        return list(torch.split(states, [s.offsets[-1] - s.start for s in sequences]))


def _with_tail(encoded: Encoded, tail: Sequence[int]) -> Encoded:
    """The dialog, followed by the tokens that the assistant has written."""
    if not tail:
        return encoded
    answers = (*encoded.answers, *[True] * len(tail))
    return replace(encoded, ids=(*encoded.ids, *tail), units=(*encoded.units, *tail), answers=answers)
