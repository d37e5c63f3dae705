"""Measures of pictures with known values: rules of composition, colour harmony, novelty."""

import numpy as np
import pytest
import torch

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.reward.composition import clearness, composition, rules, subject
from rewarddance.reward.harmony import BINS, colour_harmony, template_distances
from rewarddance.reward.novelty import NoveltyIndex


def grey(value=0.5, side=48):
    return Media(torch.full((1, 3, side, side), value))


def square(x, y, size=12, side=48):
    """A dark square on white, by its centre in pixels."""
    pixels = torch.ones(1, 3, side, side)
    pixels[:, :, y - size // 2 : y + size // 2, x - size // 2 : x + size // 2] = 0.1
    return Media(pixels)


def test_rules_of_composition_have_known_values():
    def of(*media):
        return {k: v.tolist() for k, v in rules(subject(torch.cat([m.frames for m in media]))).items()}

    found = of(square(16, 16), square(24, 24), square(6, 24), square(24, 12))
    assert found["thirds"][0] == pytest.approx(1, abs=1e-3)
    assert found["thirds"][1] == pytest.approx(0.5, abs=1e-3)  # the centre lies sqrt(2)/6 from a crossing
    assert found["balance"][1] == pytest.approx(1, abs=1e-3)
    assert found["balance"][3] == pytest.approx(0.5, abs=1e-3)  # a quarter of the side above the centre
    assert found["symmetry"] == pytest.approx([0, 1, 0, 1], abs=1e-3)
    rim = 1 - (42 / 48) ** 2
    assert found["margins"][:2] == pytest.approx([1, 1], abs=1e-3)
    assert found["margins"][2] == pytest.approx(max(0, 1 - 0.25 / rim), abs=1e-3)  # a quarter of it in the border
    noise = Media(torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)))
    values = composition([square(16, 16), noise, grey()], {"thirds": 1, "balance": 1, "margins": 1, "symmetry": 1})
    assert values[0] > 2 * values[1] > values[2] == 0
    assert clearness(subject(grey().frames)).item() == 0


def test_harmony_is_one_inside_a_template_and_none_for_an_even_wheel():
    def picture(*colours):
        pixels = torch.tensor(colours).T.reshape(1, 3, 1, -1).repeat(1, 1, len(colours), 1)
        return Media(pixels.repeat_interleave(8, 2).repeat_interleave(8, 3))

    red, cyan, green = (1.0, 0, 0), (0, 1.0, 1.0), (0, 1.0, 0)
    blue, magenta, yellow = (0, 0, 1.0), (1.0, 0, 1.0), (1.0, 1.0, 0)
    harmony = colour_harmony(
        [picture(red), picture(red, cyan), picture(red, yellow, green, cyan, blue, magenta), grey()]
    )
    assert harmony[:2].tolist() == pytest.approx([0.97] * 2, abs=0.03)
    assert harmony[2] < 0.3
    assert harmony[3].item() == pytest.approx(0.5, abs=1e-3)
    table = template_distances()
    assert table.shape[0] == BINS
    assert table.mean(0).amin().item() == pytest.approx(21.6 * 172.8 / 360, abs=0.1)  # the gaps of template X
    pixels = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0), requires_grad=True)
    colour_harmony([Media(pixels)]).sum().backward()
    assert pixels.grad.isfinite().all()
    assert pixels.grad.abs().sum() > 0


def test_novelty_is_a_distance_to_the_reference_set(tmp_path):
    rng = np.random.default_rng(0)
    reference, queries = (torch.tensor(rng.normal(size=(n, 3)), dtype=torch.float32) for n in (200, 5))
    knn = NoveltyIndex.fit(reference, "knn", 4)
    loop = [sorted((q - r).norm().item() for r in reference)[:4] for q in queries]
    assert knn.distance(queries).tolist() == pytest.approx([np.mean(d) for d in loop], rel=1e-4)
    mahalanobis = NoveltyIndex.fit(reference * torch.tensor([1.0, 5, 0.2]), "mahalanobis")
    x = (reference * torch.tensor([1.0, 5, 0.2])).double()
    covariance = torch.cov(x.T) + 0.05 * torch.cov(x.T).diagonal().mean() * torch.eye(3, dtype=torch.double)
    gap = queries.double() - x.mean(0)
    exact = ((gap @ torch.linalg.inv(covariance) * gap).sum(1) / 3).sqrt()
    assert mahalanobis.distance(queries).tolist() == pytest.approx(exact.tolist(), rel=1e-4)
    for index in (knn, mahalanobis):
        index.save(tmp_path / "index.safetensors")
        assert torch.equal(NoveltyIndex.load(tmp_path / "index.safetensors").distance(queries), index.distance(queries))
    with pytest.raises(ConfigError, match="fitted on 3 features, but got 2"):
        knn.distance(queries[:, :2])
