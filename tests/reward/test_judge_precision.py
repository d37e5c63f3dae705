"""What a small judge computes in on a CPU that has bf16: fp32, unless it is told otherwise."""

import pytest

from rewarddance.core import device
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.judge import new_judge
from rewarddance.reward.saved import load_judge_folder, save_judge


@pytest.fixture
def native(monkeypatch):
    device.native_bf16.cache_clear()
    monkeypatch.setenv(device.SWITCH, "1")
    yield
    device.native_bf16.cache_clear()


@pytest.mark.parametrize(("asked", "computed"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")])
def test_a_small_judge_computes_in_fp32_unless_told_otherwise(asked, computed, backbone, native, tmp_path):
    judge = new_judge(JudgeSpec(precision=asked), backbone)
    assert judge.precision == computed
    save_judge(judge, tmp_path)
    assert load_judge_folder(tmp_path).precision == "fp32"
    assert load_judge_folder(tmp_path, precision="bf16").precision == "bf16"


def test_a_judge_of_more_parameters_computes_in_bf16(backbone, native, monkeypatch):
    monkeypatch.setattr(device, "SMALL_MODEL", device.num_parameters(backbone.module) - 1)
    assert new_judge(JudgeSpec(), backbone).precision == "bf16"
    monkeypatch.setattr(device, "SMALL_MODEL", device.num_parameters(backbone.module))
    assert new_judge(JudgeSpec(), backbone).precision == "fp32"
