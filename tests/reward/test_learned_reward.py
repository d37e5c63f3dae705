"""The learned reward: its loss, its port, its folder."""

import math

import pytest
import torch
from tiny_clip import tiny_clip

from rewarddance.core.errors import ConfigError, JudgementError, RunError
from rewarddance.core.media import Media
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.jobs.load import load_judge, load_single_judge
from rewarddance.reward.learned import LearnedJudge, new_transformer, ordered_pairs, ranking_loss, rating_loss
from rewarddance.reward.learned_config import LearnedShape, LearnedSpec
from rewarddance.reward.learned_saved import load_learned, save_learned
from rewarddance.vlm.token_embedders import ClipTokens, VlmTokens, load_token_embedder

SHAPE = LearnedShape(width=16, layers=1, heads=2, max_words=24)
COLUMNS = ("fidelity", "style", "overall")


def new_judge(embedder, loss="mse"):
    torch.manual_seed(0)
    spec = LearnedSpec(columns=COLUMNS, loss=loss, shape=SHAPE)
    module = new_transformer(embedder, spec)
    torch.nn.init.normal_(module.heads, std=0.5)
    return LearnedJudge(spec, embedder, module.eval().requires_grad_(False))


@pytest.fixture
def judge(backbone):
    return new_judge(VlmTokens(backbone))


def test_squared_errors_have_a_closed_form():
    outputs = torch.tensor([[1.0, 2.0, 4.0], [3.0, 3.0, 1.0]], dtype=torch.float64)
    ratings = torch.tensor([[2.0, math.nan, 3.0], [3.0, 5.0, 1.5]], dtype=torch.float64)
    out = rating_loss(outputs, ratings, torch.tensor([0, 0]), "mse", criteria_weight=0.5)
    assert out["criteria_loss"].item() == pytest.approx((1 + 0 + 4) / 3)
    assert out["scalar_loss"].item() == pytest.approx((1 + 0.25) / 2)
    assert out["loss"].item() == pytest.approx(0.625 + 0.5 * 5 / 3)
    assert out["accuracy"].item() == 1.0


def test_the_ranking_loss_is_weighted_by_the_gap_of_ratings():
    scores = torch.tensor([0.3, -0.2, 1.0, 0.5], dtype=torch.float64)
    ratings = torch.tensor([4.0, 1.0, 3.0, math.nan], dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 0])

    def nll(gap):
        return math.log1p(math.exp(-gap))

    expected = (3 * nll(0.5) + 1 * nll(0.3 - 1.0) + 2 * nll(1.2)) / 6
    assert ranking_loss(scores, ratings, groups).item() == pytest.approx(expected)
    # pictures of different prompts are never compared, and equal ratings order nothing
    assert ranking_loss(scores, ratings, torch.tensor([0, 1, 2, 3])).item() == 0
    assert ranking_loss(scores, torch.ones(4, dtype=torch.float64), groups).item() == 0
    better, worse = ordered_pairs(ratings, torch.tensor([0, 0, 1, 1]))
    assert (better.tolist(), worse.tolist()) == ([0], [1])


@pytest.mark.parametrize("loss", ["mse", "ranking"])
def test_gradients_of_the_loss_agree_with_finite_differences(loss):
    torch.manual_seed(0)
    outputs = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    ratings = 1 + 4 * torch.rand(6, 3, dtype=torch.float64)
    ratings[0, 0] = ratings[4, 2] = math.nan
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    assert torch.autograd.gradcheck(lambda x: rating_loss(x, ratings, groups, loss, 0.7)["loss"], (outputs,))


def test_the_margin_is_the_rating_or_a_difference_of_two(judge, pictures):
    a, b = pictures[:2]
    assert isinstance(judge, RewardModel)
    comparisons = [
        Comparison("a red circle", a),
        Comparison("a red circle", a, b),
        Comparison("a red circle", b, a),
        Comparison("a red circle", a, b, "style"),
        Comparison("a blue square", b),
    ]
    verdict = judge.judge(comparisons)
    prompts = ["a red circle", "a red circle", "a blue square"]
    expected = judge.ratings(prompts, [a, b, b])
    assert expected.std() > 0.01
    assert verdict.margin.tolist() == pytest.approx(
        [
            expected[0, 2].item() - 3,
            (expected[0, 2] - expected[1, 2]).item(),
            (expected[1, 2] - expected[0, 2]).item(),
            (expected[0, 1] - expected[1, 1]).item(),
            expected[2, 2].item() - 3,
        ],
        abs=1e-5,
    )
    assert verdict.parts["fidelity"][0].item() == pytest.approx(expected[0, 0].item() - 3, abs=1e-5)
    # an answer does not depend on what else is asked: a longer prompt only adds padding
    assert verdict.margin[0].item() == pytest.approx(judge.judge(comparisons[:1]).margin.item(), abs=1e-5)
    assert verdict.margin[0] != verdict.margin[4]
    assert judge.rank("a red circle", pictures[:3]).order == tuple(
        judge.ratings(["a red circle"] * 3, pictures[:3])[:, 2].argsort(descending=True).tolist()
    )
    assert judge.explain(comparisons[:1])[0].startswith("fidelity ")


def test_what_cannot_be_answered_is_refused_and_harms_no_neighbour(judge, pictures):
    good = Comparison("a red circle", pictures[0])
    broken = Media(torch.full((1, 3, 48, 48), torch.nan))
    comparisons = [
        good,
        Comparison("  ", pictures[0]),
        Comparison("red " * 40, pictures[0]),
        Comparison("a red circle", pictures[0], criterion="novelty"),
        Comparison("a red circle", broken),
        Comparison("a red circle", pictures[0], Media(torch.rand(3, 3, 48, 48), 8.0)),
        Comparison("a red circle", Media(torch.rand(1, 3, 1, 300))),
        Comparison("a red circle", pictures[0], condition=pictures[1]),
    ]
    verdict = judge.judge(comparisons)
    assert sorted(verdict.refused) == list(range(1, 8))
    for i, word in enumerate(
        ("empty", "tokens", "no ratings of 'novelty'", "not numbers", "clip", "narrow", "cond"), 1
    ):
        assert word in verdict.refused[i]
    assert verdict.margin.isnan().tolist() == [False] + [True] * 7
    assert verdict.margin[0].item() == pytest.approx(judge.judge([good]).margin.item(), abs=1e-5)
    with pytest.raises(JudgementError, match="7 of 8"):
        judge.judge(comparisons, on_refused="raise")


def test_gradients_reach_the_pixels(judge):
    pixels = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
    judge.judge([Comparison("a red circle", Media(pixels))]).margin.sum().backward()
    slope = pixels.grad.clone()
    assert slope.abs().max() > 0
    direction = slope / slope.norm()
    step = 1e-2

    def value(x):
        return judge.judge([Comparison("a red circle", Media(x))]).margin.item()

    with torch.no_grad():
        change = (value(pixels + step * direction) - value(pixels - step * direction)) / (2 * step)
    assert change == pytest.approx(slope.norm().item(), rel=0.05)


@pytest.mark.parametrize("loss", ["mse", "ranking"])
def test_a_saved_judge_is_the_same_and_loads_by_name(backbone, pictures, tmp_path, loss):
    judge = new_judge(VlmTokens(backbone), loss)
    save_learned(judge, tmp_path)
    again = load_judge(tmp_path)
    assert isinstance(again, LearnedJudge)
    assert again.spec == judge.spec
    comparisons = [
        Comparison("a red circle", pictures[0]),
        Comparison("a red circle", pictures[0], pictures[1], "style"),
    ]
    assert torch.equal(again.judge(comparisons).margin, judge.judge(comparisons).margin)
    with pytest.raises(ConfigError, match="takes no tiles"):
        load_judge(tmp_path, tiles=2)
    with pytest.raises(ConfigError, match="a learned reward"):
        load_single_judge(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"head\.safetensors"):
        load_learned(tmp_path)


def test_clip_gives_embeddings_too(pictures, tmp_path):
    embedder = load_token_embedder(tiny_clip(tmp_path), torch.device("cpu"))
    assert isinstance(embedder, ClipTokens)
    judge = new_judge(embedder)
    save_learned(judge, tmp_path / "saved")
    comparisons = [Comparison("a b", pictures[0]), Comparison("a b c", pictures[1])]
    verdict = load_learned(tmp_path / "saved").judge(comparisons)
    assert torch.equal(verdict.margin, judge.judge(comparisons).margin)
    assert "tokens, and this learned reward reads 6" in judge.problem(Comparison("a b c d e f", pictures[0]))
