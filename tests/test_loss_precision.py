"""The loss's products are fp32 whatever the process allows for others, and its settings are left as they were."""

import subprocess
import sys

import pytest
import torch

from alip import infonce
from alip.loss import AdaptiveContrastiveLoss
from tests.helpers.loss_reference import make_features
from tests.helpers.shards import ROOT

BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def settings():
    return [backend.fp32_precision for backend in BACKENDS]


@pytest.fixture(autouse=True)
def settings_restored():
    before = settings()
    yield
    for backend, setting in zip(BACKENDS, before):
        backend.fp32_precision = setting


def allow_by_the_old_name():
    torch.set_float32_matmul_precision("medium")


def allow_by_the_new_names():
    for backend, setting in zip(BACKENDS, ("tf32", "bf16")):
        backend.fp32_precision = setting


def step():
    """Loss and gradients of large enough products, on which oneDNN's bf16 shows on CPUs that have it."""
    leaves = [f.clone().requires_grad_() for f in make_features(256, 256, 0)]
    scale = torch.tensor(50.0, requires_grad=True)
    output = AdaptiveContrastiveLoss(chunk_size=128, logits_cache_bytes=0)(*leaves, scale)
    output.loss.backward()
    return [output.loss.detach(), scale.grad, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("allow", [allow_by_the_old_name, allow_by_the_new_names], ids=["old name", "new names"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_loss_is_the_same_to_the_last_bit(allow, threads, monkeypatch):
    before_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = step()
        allow()
        allowed = settings()
        assert allowed == ["tf32", "bf16"] or allowed == ["tf32", "tf32"]
        seen = []
        visit_chunks = infonce.visit_chunks
        monkeypatch.setattr(infonce, "visit_chunks", lambda *a: seen.append(settings()) or visit_chunks(*a))
        found = step()
    finally:
        torch.set_num_threads(before_threads)
    assert seen == [["ieee", "ieee"]] * 4  # both paths, forward and backward
    assert settings() == allowed
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_a_setting_of_bf16_would_show_here():
    """On a CPU that multiplies bf16 itself, the setting changes a plain product: the test above is not idle there."""
    from alip.model.precision import cpu_has_bf16

    if not cpu_has_bf16():
        pytest.skip("this CPU has no bf16 products")
    a = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    exact = a @ a
    allow_by_the_old_name()
    assert not torch.equal(a @ a, exact)


def test_an_error_restores_the_settings_too():
    allow_by_the_old_name()
    allowed = settings()
    with pytest.raises(RuntimeError, match="broken"), infonce.exact_products():
        assert settings() == ["ieee", "ieee"]
        raise RuntimeError("broken")
    assert settings() == allowed


def test_the_old_setting_can_still_be_read_afterwards():
    """In a process of its own: torch refuses to read its old setting where old and new ones disagree."""
    code = (
        "import torch; from alip.infonce import exact_products\n"
        "for name in ('highest', 'high', 'medium'):\n"
        "    torch.set_float32_matmul_precision(name)\n"
        "    with exact_products():\n"
        "        assert not torch._C._get_cublas_allow_tf32()  # TunableOp asks for it at each product on a GPU\n"
        "    assert torch.get_float32_matmul_precision() == name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
