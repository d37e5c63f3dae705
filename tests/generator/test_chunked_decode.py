"""Decoding with gradient chunk by chunk: the same pixels, nearly the same gradient, less memory."""

import pytest
import torch
from tiny_wan import tiny_wan

from rewarddance.core.errors import ConfigError


def loss_of(generator, z, probe):
    """A smooth function of the clip, as a judge's reward is."""
    return (generator.decode_tensor(z) * probe).mean() + generator.decode_tensor(z).square().mean()


def kept_bytes(generator, z):
    """Bytes that one decode keeps for its backward pass, weights left out."""
    weights = {p.data_ptr() for p in generator.vae.parameters()}
    storages = {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in weights:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        clips = generator.decode_tensor(z)
        return sum(s.nbytes() for s in storages.values()), clips


@pytest.mark.parametrize("chunk", [1, 2])
def test_pixels_are_the_same_and_the_gradient_nearly_is(chunk):
    generator = tiny_wan()
    rng = torch.Generator().manual_seed(1)
    z = (0.5 * generator.noise(1, rng)).requires_grad_()
    probe = torch.randn(1, 9, 3, 6, 6, generator=rng).repeat_interleave(8, 3).repeat_interleave(8, 4)
    (whole,) = torch.autograd.grad(loss_of(generator, z, probe), z)
    kept, pixels = kept_bytes(generator, z)
    generator.decode_in_chunks(chunk)
    (parts,) = torch.autograd.grad(loss_of(generator, z, probe), z)
    kept_in_chunks, again = kept_bytes(generator, z)
    assert torch.allclose(again, pixels, atol=1e-5)
    assert torch.cosine_similarity(parts.flatten(), whole.flatten(), 0) >= 0.9
    assert parts.norm() / whole.norm() == pytest.approx(1, abs=0.2)
    assert kept_in_chunks < kept / 4
    generator.decode_in_chunks(z.shape[2])
    (one_chunk,) = torch.autograd.grad(loss_of(generator, z, probe), z)
    assert torch.allclose(one_chunk, whole, atol=1e-6)


def test_pictures_have_no_chunks(generator):
    with pytest.raises(ConfigError, match="this generator draws pictures; leave it at 0"):
        generator.decode_in_chunks(1)
