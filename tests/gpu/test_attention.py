"""Attention on a CUDA device: one launch over unpadded tokens against each sequence by itself."""

import pytest
import torch

from alip.model import attention
from alip.varlen import plan_equal, plan_varlen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HEADS, HEAD_WIDTH = 4, 64
WIDTH = HEADS * HEAD_WIDTH


def one_by_one(qkv, lengths, causal):
    """Each sequence by itself, in float64."""
    found = []
    for part in qkv.double().split(lengths):
        q, k, v = part.view(len(part), 3, HEADS, -1).permute(1, 2, 0, 3)
        scores = q @ k.mT / HEAD_WIDTH**0.5
        if causal:
            scores = scores + torch.full_like(scores, -torch.inf).triu(1)
        found.append((scores.softmax(-1) @ v).transpose(0, 1).reshape(len(part), -1))
    return torch.cat(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("patches", [None, 50, 197], ids=["texts", "images of 50", "images of 197"])
def test_self_and_pooled_attention_with_their_gradients(dtype, patches):
    causal = patches is None
    generator = torch.Generator("cuda").manual_seed(0)
    if causal:
        lengths = sorted(torch.randint(2, 78, (64,), generator=torch.Generator().manual_seed(0)).tolist())
        plan = plan_varlen(torch.tensor(lengths, device="cuda"), 77)
    else:
        lengths = [patches] * 32
        plan = plan_equal(32, patches, torch.device("cuda"))
    qkv = torch.randn(sum(lengths), 3 * WIDTH, device="cuda", dtype=dtype, generator=generator).requires_grad_()
    modern = torch.cuda.get_device_capability() >= (8, 0)
    expected_kernel = "varlen" if modern and dtype != torch.float32 and attention.varlen_attn is not None else "sdpa"
    assert attention.choose_kernel(qkv.device, dtype, HEAD_WIDTH, plan.longest) == expected_kernel

    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    expected = one_by_one(qkv, lengths, causal)
    weight = torch.randn(expected.shape, device="cuda", dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad((expected * weight).sum(), qkv)
    found = attention.self_attention(qkv, HEADS, plan, causal)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    (found_gradient,) = torch.autograd.grad((found * weight.to(dtype)).sum(), qkv)
    torch.testing.assert_close(found_gradient, gradient, rtol=4 * tolerance, atol=4 * tolerance)

    last = torch.tensor(lengths, device="cuda").cumsum(0) - 1
    pooled = attention.pooled_attention(qkv[last, :WIDTH], qkv[:, WIDTH:], HEADS, plan)
    torch.testing.assert_close(pooled.double(), expected[last], rtol=tolerance, atol=tolerance)


def test_a_step_of_the_model_agrees_with_fp32():
    from alip.model import create_model
    from alip.tokens import tokenize

    torch.manual_seed(0)
    model = create_model("ViT-S-32-alt").cuda()
    image = torch.randn(8, 3, 224, 224, device="cuda")
    text = tokenize(["a dog " * n for n in range(8)]).cuda()
    exact = model(image, text, text)
    with torch.autocast("cuda", torch.bfloat16):
        rough = model(image, text, text)
    (rough[0] * rough[1]).sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name != "logit_scale")
    for a, b in zip(exact[:3], rough[:3]):
        assert (a * b).sum(-1).min() > 0.99
