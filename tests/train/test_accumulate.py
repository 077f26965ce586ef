"""K micro-batches of b against one batch of K*b: the loss, the gates and every gradient."""

import pytest
import torch

from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model
from alip.train.accumulate import uses_batch_statistics
from alip.train.step import TrainStep
from tests.helpers.ranks import on_ranks
from tests.helpers.steps import make_batch, make_model, make_step, parts


class WithDropout(torch.nn.Module):
    """A bi-path model whose features are dropped out: its random numbers have to be the same in both passes."""

    def __init__(self, model):
        super().__init__()
        self.model, self.logit_scale = model, model.logit_scale

    def forward(self, image, text_tokens, caption_tokens):
        *features, scale = self.model(image, text_tokens, caption_tokens)
        dropped = [torch.nn.functional.dropout(f, 0.3, self.training) for f in features]
        return (*[torch.nn.functional.normalize(f, dim=-1) for f in dropped], scale)


def facts(step: TrainStep, result) -> dict[str, torch.Tensor]:
    """Everything that a step made: copies, since later steps change it."""
    found = {f"gradient of {name}": p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    found |= {f"weight {name}": p.detach() for name, p in step.model.named_parameters()}
    for name in ("loss", "text_loss", "caption_loss"):
        found[name] = getattr(result.outcome, name).detach()
    found |= {"history": step.loss.history, "grad_norm": result.grad_norm}
    return {name: value.clone() for name, value in found.items()}


def assert_same(found: dict, expected: dict) -> None:
    """Each tensor as a whole to 1e-5 of its norm: single elements lose digits where large terms cancel."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error, scale = (found[name] - value).norm().item(), value.norm().item()
        assert error <= 1e-5 * scale + 5e-6, f"{name}: differs by {error:.1e}, its norm is {scale:.1e}"


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_micro_batches_equal_the_big_batch(model_file, pieces):
    batch = make_batch(12)
    whole, split = make_step(make_model(model_file)), make_step(make_model(model_file))
    for _ in range(3):  # later steps see a moved history
        expected = facts(whole, whole([batch], 1e-3))
        assert_same(facts(split, split(parts(batch, pieces), 1e-3)), expected)


def test_dropout_is_replayed(model_file):
    """Against all micro-batches' graphs held at once, which uses the same random numbers once."""
    model = WithDropout(make_model(model_file, patch_dropout=0.5))
    step, micro_batches = make_step(model), parts(make_batch(12), 3)
    torch.manual_seed(11)
    features = [model(b.image, b.text_tokens, b.caption_tokens) for b in micro_batches]
    joined = [torch.cat(column) for column in list(zip(*features))[:3]]
    loss = AdaptiveContrastiveLoss(history_init=0.3)
    outcome = loss(*joined, features[0][3])
    outcome.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    after = torch.rand(1)

    torch.manual_seed(11)
    result = step(micro_batches, 1e-3)
    assert torch.equal(torch.rand(1), after)  # and the generators continue as if there had been one pass
    torch.testing.assert_close(result.outcome.loss, outcome.loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=2e-4, atol=2e-6)
    # Without the replay the test would have to fail:
    torch.manual_seed(12)
    other = step(micro_batches, 1e-3)
    assert not torch.allclose(other.outcome.loss, outcome.loss, rtol=1e-4)


def test_locked_tower_and_scaler(model_file):
    batch = make_batch(8)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    whole = make_step(make_model(model_file, lock_image=True))
    split = make_step(make_model(model_file, lock_image=True), scaler=scaler)
    expected = facts(whole, whole([batch], 1e-3))
    assert not any("visual" in name for name in expected if name.startswith("gradient"))
    assert_same(facts(split, split(parts(batch, 4), 1e-3)), expected)


def test_batch_statistics_move_once_per_micro_batch():
    model = create_model(
        {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        }
    )
    assert uses_batch_statistics(model)
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    make_step(model)(parts(make_batch(8), 2), 1e-3)
    assert int(norm.num_batches_tracked) == 2
    assert norm.track_running_stats


def _step_on_rank(world, model_file, pieces):
    torch.manual_seed(5)
    step = make_step(create_model(model_file), world)
    batch = parts(make_batch(12), world.world_size)[world.rank]
    for _ in range(2):
        result = step(parts(batch, pieces), 1e-3)
    return {name: value.numpy() for name, value in facts(step, result).items()}


@pytest.mark.parametrize("ranks, pieces", [(2, 1), (2, 3), (3, 2)])
def test_ranks_and_micro_batches_equal_one_process(model_file, ranks, pieces):
    whole = make_step(make_model(model_file))
    for _ in range(2):
        result = whole([make_batch(12)], 1e-3)
    expected = facts(whole, result)
    for found in on_ranks(ranks, _step_on_rank, model_file, pieces):
        assert_same({name: torch.from_numpy(value) for name, value in found.items()}, expected)
