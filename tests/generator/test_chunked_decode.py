"""Decoding with gradient chunk by chunk: the same pixels and gradient, less memory."""

import pytest
import torch
from tiny_wan import tiny_wan

from rewarddance.core.errors import ConfigError
from rewarddance.generator.whole_clip import decode_clips, decode_part


def gradient(generator, z, probe):
    pixels = generator.decode_tensor(z)
    (slope,) = torch.autograd.grad((pixels * probe).mean() + pixels.square().mean(), z)
    return slope, pixels.detach()


def kept_bytes(vae, decode):
    """Bytes that a decode keeps for its backward pass, weights left out, and its result."""
    weights = {p.untyped_storage().data_ptr() for p in vae.parameters()}
    storages = {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in weights:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = decode()
        return sum(s.nbytes() for s in storages.values()), result


@pytest.fixture
def video():
    return tiny_wan()


@pytest.mark.parametrize("chunk", [1, 2])
def test_pixels_and_gradient_are_those_of_the_whole_decode(video, chunk):
    rng = torch.Generator().manual_seed(1)
    z = (0.5 * video.noise(1, rng)).requires_grad_()
    probe = torch.randn(1, 9, 3, 6, 6, generator=rng).repeat_interleave(8, 3).repeat_interleave(8, 4)
    whole, pixels = gradient(video, z, probe)
    video.decode_in_chunks(chunk)
    parts, again = gradient(video, z, probe)
    assert torch.allclose(again, pixels, atol=1e-5)
    assert torch.cosine_similarity(parts.flatten(), whole.flatten(), 0) >= 0.999
    assert float(parts.norm()) == pytest.approx(float(whole.norm()), rel=1e-3)


def test_a_backward_pass_holds_the_caches_and_the_activations_of_one_chunk(video):
    vae, z = video.vae, video.noise(1, torch.Generator().manual_seed(1)).requires_grad_()
    whole, _ = kept_bytes(vae, lambda: decode_clips(vae, z))
    cache, caches, most = (None,) * vae._cached_conv_counts["decoder"], 0, 0
    for i in range(z.shape[2]):
        x = vae.post_quant_conv(z)[:, :, i : i + 1].detach().requires_grad_()
        kept, (_, cache) = kept_bytes(vae, lambda x=x, c=cache, i=i: decode_part(vae, x, c, i == 0))
        cache = tuple(c.detach() if torch.is_tensor(c) else c for c in cache)
        caches += sum(c.untyped_storage().nbytes() for c in cache if torch.is_tensor(c))
        most = max(most, kept)
    print(f"whole {whole / 2**20:.1f} MiB; one chunk {most / 2**20:.1f} MiB, caches {caches / 2**20:.1f} MiB")
    assert most + caches < 0.8 * whole


def test_pictures_have_no_chunks(generator):
    with pytest.raises(ConfigError, match="this generator draws pictures; leave it at 0"):
        generator.decode_in_chunks(1)
