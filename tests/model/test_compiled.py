"""Compiled blocks: the same numbers to bf16's rounding, compiled once, and one graph with the varlen kernel."""

import contextlib

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from alip.loss import AdaptiveContrastiveLoss
from alip.model import attention, create_model, transformer
from alip.train.optimizer import create_optimizer
from alip.train.step import TrainStep
from alip.varlen import plan_equal, plan_varlen
from tests.helpers.steps import CPU, TINY_MODEL, make_batch, parts


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    transformer.compiled_function.cache_clear()
    torch._dynamo.reset()
    yield
    transformer.compiled_function.cache_clear()
    torch._dynamo.reset()


def make(compile: bool) -> TrainStep:
    torch.manual_seed(0)
    model = create_model(TINY_MODEL, compile=compile)
    loss = AdaptiveContrastiveLoss(history_init=None, check_finite=False, even_batches=True)
    return TrainStep(model, loss, create_optimizer(model, lr=1e-3), CPU, precision="amp_bf16")


def test_a_compiled_run_follows_the_eager_one_and_compiles_once(monkeypatch):
    """Ten steps in bf16, with and without accumulation, whose texts have another number of tokens each time; traced as
    in use, but without the C++ compiler behind it, which takes minutes."""
    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **o: torch_compile(function, backend="aot_eager", **o))
    eager, compiled = make(False), make(True)
    assert list(eager.model.state_dict()) == list(compiled.model.state_dict())
    for seed in range(10):
        whole = make_batch(8, seed)
        micro = parts(whole, 2) if seed % 2 else [whole]
        # Two numbers of images are two graphs; after these, any further one is an error.
        warm = torch.compiler.set_stance("fail_on_recompile") if seed >= 4 else contextlib.nullcontext()
        with warm:
            found = compiled(micro, 1e-3).outcome.loss
        torch.testing.assert_close(found, eager(micro, 1e-3).outcome.loss, rtol=1e-2, atol=0)
    for a, b in zip(eager.model.parameters(), compiled.model.parameters()):
        assert (a - b).abs().max() < 0.02  # ten AdamW steps of at most 0.001 each, in either direction


def test_compiled_blocks_work_inside_distributed_data_parallel(monkeypatch):
    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **o: torch_compile(function, backend="aot_eager", **o))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = create_model(TINY_MODEL, compile=True)
        image, text, caption, _ = DistributedDataParallel(model)(*make_batch(4).inputs)
        (image * text + caption).sum().backward()
    finally:
        dist.destroy_process_group()
    plain = create_model(TINY_MODEL)
    plain.load_state_dict(model.state_dict())
    image, text, caption, _ = plain(*make_batch(4).inputs)
    (image * text + caption).sum().backward()
    for a, b in zip(model.parameters(), plain.parameters()):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_to_machine_code_a_block_agrees_to_bf16s_rounding():
    """A text tower of one block through torch's own compiler, forward and backward, for two numbers of tokens."""
    one_block = {**TINY_MODEL, "text_cfg": {**TINY_MODEL["text_cfg"], "layers": 1}}
    eager = create_model(one_block)
    compiled = create_model(one_block, compile=True)
    compiled.load_state_dict(eager.state_dict())
    for seed in range(2):
        text = make_batch(8, seed).text_tokens
        found = []
        for model in (eager, compiled):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                features = model.encode_text(text, normalize=True)
            (features * torch.linspace(-1, 1, 16)).sum().backward()
            gradients = torch.cat([p.grad.flatten() for p in model.transformer.parameters()])
            found.append((features.detach(), gradients))
        (a, grad_a), (b, grad_b) = found
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2)
        assert (grad_a - grad_b).norm() < 2e-2 * grad_a.norm()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


@pytest.mark.parametrize("causal", [True, False], ids=["texts", "images"])
def test_with_the_varlen_kernel_a_block_is_one_graph_for_all_batches(causal, monkeypatch):
    """On tensors without content, as the kernel needs a GPU: forward and backward in a single graph."""
    graphs = []
    torch_compile = torch.compile

    def compile(function, **options):
        graphs.append(function)
        return torch_compile(function, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", compile)
    for module in (attention, transformer):
        monkeypatch.setattr(module, "choose_kernel", lambda *_: "varlen")
    monkeypatch.setattr(transformer, "_compute_type", lambda x: x.dtype)
    tower = create_model(TINY_MODEL).transformer.to("meta")
    generator = torch.Generator().manual_seed(0)
    torch._dynamo.utils.counters.clear()
    counts = []
    for _ in range(4):
        if causal:
            plan = plan_varlen(torch.randint(2, 77, (6,), generator=generator), 77).to(torch.device("meta"))
        else:
            plan = plan_equal(6, 5, torch.device("meta"), pool_first=True)
        rows = 30 if not causal else len(plan.position)
        x = torch.randn(rows, tower.width, device="meta", requires_grad=True)
        out = transformer.run_blocks(tower, x, plan, causal, compiled=True)
        out.sum().backward()
        assert out.shape == (6, tower.width) and x.grad.shape == x.shape
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert [function.__name__ for function in graphs] == ["_whole_block"]
    assert counts == [2] * 4  # a block that keeps all rows, and the last one, which pools; nothing later
