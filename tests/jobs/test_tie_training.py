"""Bradley-Terry with ties on the real training path: the strength of ties becomes that of the data."""

import math

import pytest
import torch

from rewarddance.core.errors import InputError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.types import Comparison
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.jobs.load import load_backbone, load_judge
from rewarddance.jobs.train import train_from_data, train_judge
from rewarddance.reward.train_config import RewardConfig
from rewarddance.reward.training import share_of_ties

LIGHT, DARK = (Media(torch.full((1, 3, 48, 48), v)) for v in (0.8, 0.2))


def record(name, labels, prompt="a red circle"):
    """Everybody judged the same two pictures."""
    return PreferenceRecord(name, prompt, (LIGHT, DARK), tuple(Choice(0, 1, v) for v in labels), "fidelity")


def config(folder, num_steps=200, **changes):
    """The learning rate and the schedule of the recipes, in a third of their steps."""
    optim = OptimConfig(lr=7e-4, warmup_steps=10, schedule="cosine", ema_decay=0.99, weight_decay=0.01)
    return RewardConfig(
        backbone=str(folder),
        paradigm="bradley_terry_ties",
        prompts_per_step=1,
        precision="fp32",
        optim=optim,
        loop=LoopConfig(num_steps=num_steps, save_every=1000),
        **changes,
    )


@pytest.mark.parametrize(("wins", "ties", "defeats"), [(79, 2, 19), (7, 2, 1)], ids=["few ties", "some ties"])
def test_a_trained_judge_gives_the_shares_of_the_data(wins, ties, defeats, vlm_folder, tmp_path):
    """One pair determines both parameters: k^2 = 1 + P(tie) / (P(win) P(loss)), and P(yes) = P(win) + P(tie) / 2."""
    labels = [1.0] * wins + [0.5] * ties + [0.0] * defeats
    train_judge(config(vlm_folder), load_backbone(vlm_folder), [record("r", labels)], {}, tmp_path)
    judge = load_judge(tmp_path / "model", precision="fp32")
    num = len(labels)
    win, tie, loss = wins / num, ties / num, defeats / num
    assert judge.single.tie_strength.item() == pytest.approx(math.sqrt(1 + tie / (win * loss)), rel=0.03)
    with torch.no_grad():
        verdict = judge.judge([Comparison("a red circle", LIGHT, DARK, "fidelity")])
    assert verdict.reward.item() == pytest.approx(win + tie / 2, abs=0.01)


def test_k_starts_where_equal_pictures_tie_as_often_as_in_the_data(vlm_folder, tmp_path):
    """A rate of almost nothing leaves k at its start: with a share s of ties (1 + s) / (1 - s)."""
    started = config(vlm_folder, 1).model_copy(update={"optim": OptimConfig(lr=1e-9)})
    labels = [1.0, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0]
    train_judge(started, load_backbone(vlm_folder), [record("r", labels)], {}, tmp_path)
    assert load_judge(tmp_path / "model").single.tie_strength.item() == pytest.approx(1.5 / 0.5, rel=1e-3)


def test_soft_labels_and_smoothing_are_ties_in_part(vlm_folder):
    records = [record("a", [1.0, 0.75]), record("b", [0.1, 0.5])]
    share = (0 + 0.5 + 0.2 + 1) / 4
    assert share_of_ties(records, config(vlm_folder)) == pytest.approx(share)
    smoothed = config(vlm_folder, label_smoothing=0.2)  # targets 0.9, 0.7, 0.18 and 0.5
    assert share_of_ties(records, smoothed) == pytest.approx((0.2 + 0.6 + 0.36 + 1) / 4)


def test_data_without_a_tie_is_refused_before_anything_is_written(vlm_folder, tmp_path):
    records = [record(f"r{i}", [1.0, 0.0, 1.0], f"prompt {i}") for i in range(4)]
    write_rows((row_of(r) for r in records), tmp_path / "data" / "train.parquet")
    smoothed = config(vlm_folder, 1, data=str(tmp_path / "data"), label_smoothing=0.1)
    said = "paradigm bradley_terry_ties: none of the 9 training choices is a tie; use bradley_terry"
    with pytest.raises(InputError) as error:
        train_from_data(smoothed, tmp_path / "out")
    assert str(error.value) == said
    assert not (tmp_path / "out").exists()
    table = RecordTable.open(tmp_path / "data" / "train.parquet")
    with pytest.raises(InputError, match="none of the 12 training choices"):
        share_of_ties(table, smoothed)
