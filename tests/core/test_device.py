"""In which precision a model computes: what is asked, what the hardware has, and how large the model is."""

import os

import pytest
import torch

from rewarddance.core import device
from rewarddance.core.device import SMALL_MODEL, SWITCH, autocast, native_bf16, num_parameters, resolve_precision
from rewarddance.core.errors import ConfigError

LARGE = SMALL_MODEL + 1


@pytest.fixture
def hardware(monkeypatch):
    def says(native):
        monkeypatch.setattr(device, "native_bf16", lambda kind: native)

    return says


@pytest.fixture
def forget():
    """Ask the hardware anew in the test, and after it."""
    native_bf16.cache_clear()
    yield
    native_bf16.cache_clear()


@pytest.mark.parametrize(
    ("asked", "kind", "size", "computed"),
    [
        ("fp32", "cpu", LARGE, "fp32"),
        ("fp32", "cuda", LARGE, "fp32"),
        ("bf16", "cpu", 1, "bf16"),
        ("bf16", "cuda", 1, "bf16"),
        ("auto", "cpu", SMALL_MODEL, "fp32"),
        ("auto", "cpu", LARGE, "bf16"),
        ("auto", "cuda", 1, "bf16"),
    ],
)
def test_hardware_with_bf16_computes_in_what_is_asked_for(asked, kind, size, computed, hardware):
    hardware(True)
    assert resolve_precision(asked, kind, size) == computed
    assert resolve_precision(asked, torch.device(kind), size) == computed


@pytest.mark.parametrize("asked", ["auto", "fp32", "bf16"])
@pytest.mark.parametrize("size", [1, LARGE])
def test_hardware_without_bf16_computes_in_fp32(asked, size, hardware):
    hardware(False)
    assert resolve_precision(asked, "cpu", size) == "fp32"


@pytest.mark.parametrize(("value", "native"), [("0", False), ("1", True)])
def test_the_switch_overrides_the_cpu(value, native, monkeypatch, forget):
    monkeypatch.setenv(SWITCH, value)
    assert native_bf16("cpu") is native
    assert resolve_precision("bf16", "cpu", 1) == ("bf16" if native else "fp32")


@pytest.mark.parametrize("value", ["", None])
def test_without_the_switch_the_cpu_is_asked(value, monkeypatch, forget):
    monkeypatch.delenv(SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(SWITCH, value)
    assert native_bf16("cpu") is torch.cpu._is_avx512_bf16_supported()


def test_a_wrong_switch_is_named(monkeypatch, forget):
    monkeypatch.setenv(SWITCH, "yes")
    with pytest.raises(ConfigError, match=f"{SWITCH}=yes: must be 0, 1 or unset"):
        native_bf16("cpu")


@pytest.mark.skipif(not os.environ.get(SWITCH), reason=f"{SWITCH} is not set")
def test_the_switch_of_these_tests_is_obeyed(forget):
    assert native_bf16("cpu") is (os.environ[SWITCH] == "1")


@pytest.mark.parametrize("computed", ["fp32", "bf16"])
def test_a_pass_computes_in_the_precision_whatever_surrounds_it(computed):
    """The product of 1 + 2^-10 with 1 is exact in fp32 and rounds to 1 in bf16, which has 8 bits."""
    weight, one = torch.tensor([[1 + 2**-10]]), torch.ones(1, 1)
    for around in ("fp32", "bf16"):
        with autocast("cpu", around), autocast("cpu", computed):
            product = one @ weight
        assert product.dtype == (torch.bfloat16 if computed == "bf16" else torch.float32)
        assert float(product) == (1.0 if computed == "bf16" else 1 + 2**-10)


def test_parameters_of_several_modules_are_counted_and_none_is_no_module():
    assert num_parameters(torch.nn.Linear(3, 4), None, torch.nn.Linear(2, 1, bias=False)) == 3 * 4 + 4 + 2
    assert num_parameters() == 0
