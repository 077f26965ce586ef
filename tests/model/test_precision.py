"""One answer to which number type is computed in: names, aliases, and what "auto" means on which machine."""

import pytest
import torch

from alip.caption.choice import weights_type
from alip.distributed import World
from alip.errors import UserError
from alip.eval.features import Encoding
from alip.model import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name, expected",
    [("amp_bfloat16", "amp_bf16"), ("bf16", "amp_bf16"), ("fp16", "amp"), ("amp", "amp"), ("fp32", "fp32")],
)
def test_open_clips_names(name, expected):
    assert precision.resolve(name, CPU) == expected


def test_weights_in_16_bits_are_refused_with_what_to_use():
    with pytest.raises(UserError, match="amp_bf16 computes in that type"):
        precision.canonical("pure_bf16")
    with pytest.raises(UserError, match="amp computes in that type"):
        precision.canonical("pure_fp16")
    with pytest.raises(UserError, match=r"'int8'.*auto, amp_bf16, amp, fp32"):
        precision.canonical("int8")


@pytest.mark.parametrize("has_bf16, expected", [(True, "amp_bf16"), (False, "fp32")])
def test_auto_is_the_same_for_training_evaluation_and_captioning(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    assert precision.resolve("auto", CPU) == expected
    assert Encoding(World(), precision="auto").resolved_precision() == expected
    assert weights_type("auto", CPU) == precision.dtype_of(expected, CPU)


@pytest.mark.parametrize("has_bf16, expected", [(True, "amp_bf16"), (False, "amp")])
def test_auto_on_a_gpu(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert precision.resolve("auto", torch.device("cuda", 0)) == expected


def test_autocast_computes_in_the_type():
    a = torch.ones(2, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("amp", torch.float16)):
        with precision.autocast(name, CPU):
            assert (a @ a).dtype == dtype
