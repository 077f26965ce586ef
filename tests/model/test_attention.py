"""Attention over unpadded tokens against one sequence at a time, written out."""

import dataclasses
import types

import pytest
import torch

from alip.model import attention
from alip.varlen import VarlenPlan, plan_equal, plan_varlen

HEADS, WIDTH = 2, 16


def one_by_one(qkv, lengths, causal):
    """Each sequence by itself, head by head."""
    found = []
    for part in qkv.split(lengths):
        q, k, v = (x.view(len(part), HEADS, -1) for x in part.chunk(3, dim=1))
        heads = []
        for head in range(HEADS):
            scores = q[:, head] @ k[:, head].T / (WIDTH // HEADS) ** 0.5
            if causal:
                scores = scores + torch.full_like(scores, -torch.inf).triu(1)
            heads.append(scores.softmax(dim=1) @ v[:, head])
        found.append(torch.cat(heads, dim=1))
    return torch.cat(found)


@pytest.mark.parametrize("group_step", [1, 4, 77])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "fused"])
def test_texts_of_any_length(group_step, plain, monkeypatch):
    if not plain:
        monkeypatch.setattr(attention, "PLAIN_ATTENTION_LENGTH", 0)
    torch.manual_seed(0)
    lengths = torch.tensor([1, 2, 2, 5, 9, 9, 10, 17])
    plan = plan_varlen(lengths, 77, group_step)
    qkv = torch.randn(int(lengths.sum()), 3 * WIDTH, dtype=torch.float64, requires_grad=True)
    expected = one_by_one(qkv, lengths.tolist(), causal=True)
    weight = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * weight).sum(), qkv)

    found = attention.self_attention(qkv, HEADS, plan, causal=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), qkv)[0], gradient)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "fused"])
def test_images(plain, monkeypatch):
    if not plain:
        monkeypatch.setattr(attention, "PLAIN_ATTENTION_LENGTH", 0)
    torch.manual_seed(0)
    qkv = torch.randn(3 * 5, 3 * WIDTH, dtype=torch.float64, requires_grad=True)
    expected = one_by_one(qkv, [5] * 3, causal=False)
    weight = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * weight).sum(), qkv)
    found = attention.self_attention(qkv, HEADS, VarlenPlan(groups=((3, 5),)), causal=False)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), qkv)[0], gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_its_type_under_autocast_in_both_directions(dtype):
    plan = plan_varlen(torch.tensor([2, 3]), 77)
    qkv = torch.randn(5, 3 * WIDTH, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention.self_attention(qkv, HEADS, plan, causal=True)
        found.sum().backward()
    assert found.dtype == qkv.grad.dtype == dtype


@pytest.mark.parametrize("group_step", [1, 77])
def test_pooled_query_sees_its_whole_sequence_and_no_padding(group_step):
    torch.manual_seed(0)
    lengths = torch.tensor([1, 3, 3, 8])
    plan = plan_varlen(lengths, 77, group_step)
    qkv = torch.randn(int(lengths.sum()), 3 * WIDTH, dtype=torch.float64)
    expected = one_by_one(qkv, lengths.tolist(), causal=True)[plan.pooled_index]
    queries, kv = qkv[plan.pooled_index, :WIDTH], qkv[:, WIDTH:]
    torch.testing.assert_close(attention.pooled_attention(queries, kv, HEADS, plan), expected)


def test_take_rows_and_pad_are_inverse():
    plan = plan_varlen(torch.tensor([1, 4, 6]), 77, 77)
    x = torch.randn(11, 3, requires_grad=True)
    padded = attention.pad(x, plan)
    assert len(padded) == plan.padded_rows == 18 and int((padded == 0).all(dim=1).sum()) == 7
    back = attention.take_rows(padded, plan.padded_index)
    assert torch.equal(back, x)
    back.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def flash(q, k, v, ends_q, ends_k, longest_q, longest_k, *, window_size):
    """What torch's varlen kernel computes, one sequence at a time, with its checks of shapes and types."""
    assert ends_q.dtype == ends_k.dtype == torch.int32 and window_size in ((-1, 0), (longest_k, longest_k))
    assert ends_q[0] == ends_k[0] == 0 and ends_q[-1] == len(q) and ends_k[-1] == len(k)
    assert ends_q.diff().max() <= longest_q and ends_k.diff().max() <= longest_k
    out = []
    for n in range(len(ends_q) - 1):
        one_q = q[ends_q[n] : ends_q[n + 1]].transpose(0, 1)
        one_k, one_v = (x[ends_k[n] : ends_k[n + 1]].transpose(0, 1) for x in (k, v))
        causal = window_size == (-1, 0)
        out.append(torch.nn.functional.scaled_dot_product_attention(one_q, one_k, one_v, is_causal=causal))
    return torch.cat(out, dim=1).transpose(0, 1)


def with_cumulative(plan):
    """The plan as it is on a CUDA device."""
    lengths = plan.lengths if plan.lengths is not None else torch.full((plan.groups[0][0],), plan.groups[0][1])
    cumulative = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    return dataclasses.replace(plan, cumulative=cumulative)


@pytest.mark.parametrize("causal", [True, False])
def test_one_launch_over_unpadded_tokens(causal, monkeypatch):
    """The CUDA path with a stand-in for the kernel: its arguments, the order of its rows, and its gradient."""
    monkeypatch.setattr(attention, "choose_kernel", lambda *_: "varlen")
    monkeypatch.setattr(attention, "varlen_attn", flash)
    torch.manual_seed(0)
    lengths = [1, 2, 2, 5, 9, 9, 10, 17] if causal else [5] * 8
    plan = plan_varlen(torch.tensor(lengths), 77) if causal else plan_equal(8, 5, torch.device("cpu"))
    plan = with_cumulative(plan)
    qkv = torch.randn(sum(lengths), 3 * WIDTH, dtype=torch.float64, requires_grad=True)
    expected = one_by_one(qkv, lengths, causal)
    weight = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * weight).sum(), qkv)
    found = attention.self_attention(qkv, HEADS, plan, causal)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), qkv)[0], gradient)

    last = torch.tensor(lengths).cumsum(0) - 1
    pooled = attention.pooled_attention(qkv[last, :WIDTH].detach(), qkv[:, WIDTH:].detach(), HEADS, plan)
    torch.testing.assert_close(pooled, one_by_one(qkv, lengths, causal=True)[last] if causal else expected[last])


def test_the_kernel_is_chosen_by_device_type_and_length(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device.index else (7, 5))
    short, long = attention.PLAIN_ATTENTION_LENGTH, attention.PLAIN_ATTENTION_LENGTH + 1
    for (device, dtype), width, length, expected in (
        (("cpu", torch.float32), 64, short, "plain"),
        (("cpu", torch.bfloat16), 64, long, "sdpa"),
        (("cuda:1", torch.bfloat16), 64, short, "varlen"),
        (("cuda:1", torch.float16), 64, long, "varlen"),
        (("cuda:1", torch.float32), 64, short, "sdpa"),
        (("cuda:1", torch.bfloat16), 12, short, "sdpa"),
        (("cuda:0", torch.bfloat16), 64, short, "sdpa"),
        (("mps", torch.float16), 64, short, "sdpa"),
    ):
        assert attention.choose_kernel(torch.device(device), dtype, width, length) == expected, (device, dtype)
    monkeypatch.setattr(attention, "varlen_attn", None)
    assert attention.choose_kernel(torch.device("cuda:1"), torch.bfloat16, 64, short) == "sdpa"


def test_a_kernel_without_windows_is_not_used():
    def of_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None): ...

    assert attention.takes_window(flash) and not attention.takes_window(of_torch_2_10)
    assert not attention.takes_window(None)


@pytest.mark.parametrize("length", [50, 197])
def test_images_never_take_cudnn(length, monkeypatch):
    """torch takes cuDNN for the window (-1, -1) and more than 128 tokens on an H100."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    if not hasattr(varlen, "_can_use_cudnn"):
        pytest.skip("this torch has no such choice")
    monkeypatch.setattr(varlen, "_should_use_cudnn", lambda device_index: True)
    seen = []

    def kernel(q, k, v, ends_q, ends_k, longest_q, longest_k, *, window_size):
        on_gpu = types.SimpleNamespace(
            is_cuda=True, device=types.SimpleNamespace(index=0), dtype=torch.bfloat16, shape=q.shape, size=q.size
        )
        seen.extend(varlen._can_use_cudnn(on_gpu, k, v, longest_q, list(w)) for w in (window_size, (-1, -1)))
        return q.contiguous()

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    plan = with_cumulative(plan_equal(2, length, torch.device("cpu")))
    attention.varlen_self(torch.zeros(2 * length, 3 * 16), 2, plan.cumulative, plan.bound, causal=False)
    assert seen == [False, length > 128]
