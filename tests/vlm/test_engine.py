"""The engine equals plain forward passes and processes no more than it must."""

import pytest
import torch
from dialogs import WORDS, mixed_dialogs, question
from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig, Qwen3Config

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.memory import peak_bytes
from rewarddance.vlm.plan import FEW
from rewarddance.vlm.preprocess import Preprocessor


def plain(backbone, dialogs):
    """One full forward a dialog."""
    ids = [backbone.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in WORDS]
    rows = []
    for d in dialogs:
        e = backbone.encoder.chat([("user", d)])
        pixels = torch.cat([backbone.prepare.frames(m.frames[i][None]) for m, i in e.images]) if e.images else None
        rows.append(backbone.model(input_ids=torch.tensor([e.ids]), pixel_values=pixels).logits[0, -1][ids])
    return torch.stack(rows)


@pytest.fixture(params=["InternVL3", "InternVL3.5", "InternVL2.5-26B"])
def either(request, backbone, tokenizer):
    """Language models of three generations: Qwen2 as the embedded one; Qwen3 (norms of queries and keys, keys shared by
    heads of a width of their own, a head of its own); Llama, which transformers' converter makes of InternLM2."""
    if request.param == "InternVL3":
        return backbone
    base = backbone.model.config
    kind, own = (Qwen3Config, {"head_dim": 32}) if request.param == "InternVL3.5" else (LlamaConfig, {})
    text = kind(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
        **own,
    )
    config = InternVLConfig(
        vision_config=base.vision_config,
        text_config=text,
        image_token_id=base.image_token_id,
        image_seq_length=base.image_seq_length,
        tie_word_embeddings=False,
    )
    torch.manual_seed(1)
    model = InternVLForConditionalGeneration(config).eval()
    return InternVLBackbone(model, tokenizer, Preprocessor.square(48))


@pytest.mark.parametrize("budget", [100, 700, 100_000])
def test_logits_equal_plain_forwards(either, pictures, budget):
    backbone = either
    dialogs = mixed_dialogs(pictures)
    found = Engine(backbone, budget=budget).answer_logits(dialogs, WORDS)
    assert torch.allclose(found.logits, plain(backbone, dialogs), atol=1e-5)


def test_gradients_to_pixels_and_weights_equal_plain_forwards(either, pictures):
    backbone = either
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
    assert engine.counts.images == 3
    assert engine.counts.tokens == shared + sum(n - shared for n in lengths)


def test_the_model_itself_sees_and_reads_no_more_than_the_engine_says(backbone, pictures):
    """Counted where they arrive: pictures at the vision tower, tokens at the first layer, answers at the last."""
    seen, read, answered = [], [], []
    model = backbone.model.model
    model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])),
        with_kwargs=True,
    )
    layers = model.language_model.layers
    layers[0].register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    layers[-1].mlp.register_forward_pre_hook(lambda _, args: answered.append(args[0].shape[1]))
    dialogs = [d for d in mixed_dialogs(pictures) if len(d) > 1]
    engine = Engine(backbone, budget=200, image_budget=2)
    engine.answer_logits(dialogs, WORDS)
    assert sum(seen) == engine.counts.images == 5
    assert sum(read) == engine.counts.tokens
    assert sum(answered) == len(set(dialogs))
    assert len(read) == engine.counts.forwards > 1


def test_tokens_read_are_those_of_the_tree_however_many_lengths_there_are(backbone, pictures):
    """Fourteen lengths of questions: more than attention keeps apart."""
    read = []
    backbone.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args: read.append(args[0].shape[1])
    )
    dialogs = [question("a circle" + " and a red square" * i, x) for i in range(7) for x in pictures[:2]]
    ids = [backbone.encoder.chat([("user", d)]).ids for d in dialogs]
    assert len(set(map(len, ids))) * 2 > FEW
    Engine(backbone).answer_logits(dialogs, WORDS)
    image = backbone.image_token_id
    row = {d: [p.key for p in d if isinstance(p, Media)] for d in dialogs}
    keys = [tuple((t, row[d][0]) if t == image else t for t in i) for i, d in zip(ids, dialogs, strict=True)]
    assert sum(read) == len({k[:n] for k in keys for n in range(1, len(k) + 1)})


def test_equal_pixels_are_one_picture(backbone, pictures):
    a, b = pictures[0], Media(pictures[0].frames.clone())
    engine = Engine(backbone)
    engine.answer_logits([question("x", a, b)], WORDS)
    assert engine.counts.images == 1


def test_hidden_states_feed_the_same_head(backbone, pictures):
    dialogs = mixed_dialogs(pictures)
    engine = Engine(backbone)
    logits = backbone.logits(engine.answer_hidden(dialogs))
    ids = [engine.word_ids(w)[0] for w in WORDS]
    assert torch.allclose(logits[:, ids], engine.answer_logits(dialogs, WORDS).logits, atol=1e-5)


def test_mass_is_the_share_of_the_whole_vocabulary(backbone, pictures):
    found = Engine(backbone).answer_logits([question("x", pictures[0])], WORDS)
    assert torch.allclose(found.mass, found.logp.exp().sum(-1))
    assert (found.mass > 0).all()
    assert (found.mass < 1).all()


def test_a_split_answer_word_is_refused(backbone, pictures):
    with pytest.raises(ConfigError, match="no single token for the answer word 'absolutely'"):
        Engine(backbone).answer_logits([question("x", pictures[0])], ("absolutely", "no"))


def test_the_spellings_of_a_word_are_one_answer(backbone, pictures):
    dialogs = mixed_dialogs(pictures)
    engine = Engine(backbone)
    single = engine.answer_logits(dialogs, ("yes", "red", "no"))
    summed = engine.answer_logits(dialogs, (("yes", "red", "absolutely"), "no"))
    torch.testing.assert_close(summed.logits[:, 0], single.logits[:, :2].logsumexp(1))
    torch.testing.assert_close(summed.logits[:, 1], single.logits[:, 2])
    torch.testing.assert_close(summed.mass, single.logp.exp().sum(1))
    assert engine.word_ids(("yes", "yes", "absolutely")) == engine.word_ids("yes")


def frozen(backbone):
    backbone.module.requires_grad_(False)
    return backbone


def test_pictures_are_remembered_across_calls_while_nothing_is_trained(backbone, pictures):
    a, b, c = pictures[:3]
    engine = Engine(frozen(backbone), image_cache=2)
    first = engine.answer_logits([question("x", a, b)], WORDS).logits
    assert engine.counts.images == 2
    again = engine.answer_logits([question("x", a, b)], WORDS).logits
    assert engine.counts.images == 0
    assert torch.equal(first, again)
    engine.answer_logits([question("x", c)], WORDS)
    engine.answer_logits([question("x", b)], WORDS)
    assert engine.counts.images == 0
    engine.answer_logits([question("x", a)], WORDS)  # least recently used, gone
    assert engine.counts.images == 1
    backbone.module.requires_grad_(True)
    for _ in range(2):
        engine.answer_logits([question("x", a)], WORDS)
        assert engine.counts.images == 1
    assert Engine(frozen(backbone))._vision.cache == 0


def test_a_candidates_gradient_is_the_same_beside_a_remembered_reference(backbone, pictures):
    candidate, reference = Media(pictures[0].frames.clone().requires_grad_()), pictures[1]
    found = []
    for engine in (Engine(backbone), Engine(backbone, image_cache=4)):
        logits = engine.answer_logits([question("x", reference, candidate)], WORDS).logits
        found.append(torch.autograd.grad(logits[0, 0] - logits[0, 1], candidate.frames)[0])
        frozen(backbone)
    assert found[0].norm() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-8)


def test_passes_keep_to_the_memory_that_was_measured(backbone, pictures, monkeypatch):
    dialogs = [question(f"prompt {i} {'very ' * (i % 7)}long", *pictures[:3]) for i in range(60)]
    with torch.no_grad():
        roomy = Engine(backbone)
        whole = roomy.answer_logits(dialogs, WORDS).logits
        assert roomy.counts.forwards == 1
        monkeypatch.setattr("rewarddance.vlm.memory.free_bytes", lambda _: 64 << 20)
        tight = Engine(backbone, memory_share=0.125)
        parts = tight.answer_logits(dialogs, WORDS).logits
    assert tight.counts.forwards > 1
    assert tight.counts.tokens >= roomy.counts.tokens
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        in_passes = peak_bytes(lambda: tight.answer_logits(dialogs, WORDS), backbone.device)
        at_once = peak_bytes(lambda: roomy.answer_logits(dialogs, WORDS), backbone.device)
    assert in_passes < 1.2 * (8 << 20)  # an eighth of the 64 MiB, and what lies between passes
    assert at_once > 2 * in_passes


def test_copies_of_weights_that_autocast_keeps_are_not_taken_for_a_passs_own(backbone, pictures):
    dialogs = [question(f"prompt {i}", *pictures[:3]) for i in range(60)]
    found = []
    for trained in (False, True):
        backbone.module.requires_grad_(trained)
        engine = Engine(backbone, autocast=torch.bfloat16)
        with torch.no_grad():
            engine.answer_logits(dialogs, WORDS)
        found.append(engine._memory._bytes["language"])
    backbone.module.requires_grad_(True)
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_a_pass_that_does_not_fit_is_halved_from_then_on(backbone, pictures, monkeypatch):
    dialogs = [question(f"prompt {i}", *pictures[:2]) for i in range(12)]
    engine, run = Engine(backbone), Engine._packed_pass

    def small(self, keys, *args):
        if len(keys) > 3:
            raise torch.OutOfMemoryError("no")
        return run(self, keys, *args)

    with torch.no_grad():
        whole = engine.answer_logits(dialogs, WORDS).logits
        monkeypatch.setattr(Engine, "_packed_pass", small)
        torch.testing.assert_close(engine.answer_logits(dialogs, WORDS).logits, whole, rtol=1e-4, atol=1e-5)
    assert engine.budget < 16_384
    with pytest.raises(torch.OutOfMemoryError):
        Engine(backbone).answer_logits(dialogs, WORDS)  # with gradients, the caller makes smaller passes


def test_pictures_that_do_not_fit_are_seen_in_halves_from_then_on(backbone, pictures, monkeypatch):
    dialogs = [question("x", p) for p in pictures[:5]]
    engine, encode = Engine(backbone), InternVLBackbone.image_tokens

    def small(self, frames):
        if len(frames) > 2:
            raise torch.OutOfMemoryError("no")
        return encode(self, frames)

    with torch.no_grad():
        whole = engine.answer_logits(dialogs, WORDS).logits
        monkeypatch.setattr(InternVLBackbone, "image_tokens", small)
        torch.testing.assert_close(engine.answer_logits(dialogs, WORDS).logits, whole, rtol=1e-4, atol=1e-5)
        assert engine._vision.budget == 2
        assert engine.counts.images == 5
    with pytest.raises(torch.OutOfMemoryError):
        Engine(backbone).answer_logits(dialogs, WORDS)  # with gradients, the caller makes smaller passes
