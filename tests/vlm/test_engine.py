"""The engine equals plain forward passes and processes no more than it must."""

import pytest
import torch

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.vlm.engine import Engine

WORDS = ("yes", "no")


def question(prompt, *images):
    parts = [f"prompt: {prompt}\n"]
    for i, image in enumerate(images):
        parts += [f"image {i + 1}: ", image, "\n"]
    return (*parts, "is image 1 better?")


def plain(backbone, dialogs):
    """One full forward a dialog."""
    ids = [backbone.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in WORDS]
    rows = []
    for d in dialogs:
        e = backbone.encoder.chat([("user", d)])
        pixels = torch.cat([backbone.prepare.frames(m.frames[i][None]) for m, i in e.images]) if e.images else None
        rows.append(backbone.model(input_ids=torch.tensor([e.ids]), pixel_values=pixels).logits[0, -1][ids])
    return torch.stack(rows)


def mixed_dialogs(pictures):
    """1, 2 and 5 pictures, shared and unshared prefixes, a duplicate, and one without a picture."""
    a, b, c, d, e = pictures[:5]
    pairs = [question("a red circle", x, y) for x in (a, b, c) for y in (a, b, c) if x is not y]
    return [*pairs, question("two blue squares on black", a), question("hm", a, b, c, d, e), ("is it?",), pairs[0]]


@pytest.mark.parametrize("budget", [100, 700, 100_000])
def test_logits_equal_plain_forwards(backbone, pictures, budget):
    dialogs = mixed_dialogs(pictures)
    found = Engine(backbone, budget=budget).answer_logits(dialogs, WORDS)
    assert torch.allclose(found.logits, plain(backbone, dialogs), atol=1e-5)


def test_gradients_to_pixels_and_weights_equal_plain_forwards(backbone, pictures):
    media = [Media(m.frames.clone().requires_grad_()) for m in pictures]
    dialogs = mixed_dialogs(media)
    weights = [p for n, p in backbone.module.named_parameters() if "k_proj.bias" not in n]  # those have no gradient
    inputs = [m.frames for m in media[:5]] + weights

    def gradients(logits):
        return torch.autograd.grad((logits[:, 0] - logits[:, 1]).square().sum(), inputs, allow_unused=True)

    ours = gradients(Engine(backbone, budget=700).answer_logits(dialogs, WORDS).logits)
    theirs = gradients(plain(backbone, dialogs))
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b.norm() > 1e-6:
            assert (a - b).norm() / b.norm() < 1e-5


def test_every_picture_is_seen_once_and_every_prefix_read_once(backbone, pictures):
    a, b, c = pictures[:3]
    dialogs = [question("a red circle", a, x) for x in (b, c)]
    engine = Engine(backbone)
    engine.answer_logits(dialogs, WORDS)
    lengths = [len(backbone.encoder.chat([("user", d)]).ids) for d in dialogs]
    keys = [backbone.encoder.chat([("user", d)]) for d in dialogs]
    image_tokens = [i for i, t in enumerate(keys[0].ids) if t == backbone.image_token_id]
    shared = image_tokens[backbone.model.config.image_seq_length]  # everything before the second picture's first token
    assert engine.work.images == 3
    assert engine.work.tokens == shared + sum(n - shared for n in lengths)


def test_equal_pixels_are_one_picture(backbone, pictures):
    a, b = pictures[0], Media(pictures[0].frames.clone())
    engine = Engine(backbone)
    engine.answer_logits([question("x", a, b)], WORDS)
    assert engine.work.images == 1


def test_hidden_states_feed_the_same_head(backbone, pictures):
    dialogs = mixed_dialogs(pictures)
    engine = Engine(backbone)
    logits = backbone.head(engine.answer_hidden(dialogs))
    ids = [engine.word_id(w) for w in WORDS]
    assert torch.allclose(logits[:, ids], engine.answer_logits(dialogs, WORDS).logits, atol=1e-5)


def test_mass_is_the_share_of_the_whole_vocabulary(backbone, pictures):
    found = Engine(backbone).answer_logits([question("x", pictures[0])], WORDS)
    assert torch.allclose(found.mass, found.logp.exp().sum(-1))
    assert (found.mass > 0).all()
    assert (found.mass < 1).all()


def test_a_split_answer_word_is_refused(backbone, pictures):
    with pytest.raises(ConfigError, match="splits the answer word"):
        Engine(backbone).answer_logits([question("x", pictures[0])], ("absolutely", "no"))
