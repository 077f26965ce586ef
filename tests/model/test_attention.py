"""Attention over unpadded tokens against one sequence at a time, written out."""

import pytest
import torch

from alip.model import attention
from alip.model.varlen import VarlenPlan, plan_varlen

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
