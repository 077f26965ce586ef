import torch

from alip.model import create_model
from alip.train.optimizer import create_optimizer, decays, gradient_norm


def test_decay_spares_biases_norms_positions_and_the_scale(model_file):
    model = create_model(model_file)
    kept = {name for name, p in model.named_parameters() if decays(name, p)}
    spared = {name for name, p in model.named_parameters()} - kept
    assert {"logit_scale", "positional_embedding", "visual.positional_embedding", "visual.class_embedding"} <= spared
    assert all(name in spared for name in dict(model.named_parameters()) if name.endswith(".bias"))
    norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert norms and all(f"{norm}.weight" in spared for norm in norms)
    assert {"token_embedding.weight", "text_projection", "visual.proj", "visual.conv1.weight"} <= kept

    optimizer = create_optimizer(model, lr=1e-3, weight_decay=0.3)
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [
        (0.3, len(kept)),
        (0.0, len(spared)),
    ]
    everything = create_optimizer(model, lr=1e-3, weight_decay=0.3, decay_all=True)
    assert [(group["weight_decay"], len(group["params"])) for group in everything.param_groups] == [
        (0.3, len(kept) + len(spared))
    ]


def test_locked_tower_is_not_optimised(model_file):
    model = create_model(model_file, lock_image=True)
    optimised = {id(p) for group in create_optimizer(model, lr=1e-3).param_groups for p in group["params"]}
    assert optimised.isdisjoint(id(p) for p in model.visual.parameters())
    assert id(model.token_embedding.weight) in optimised


def test_gradient_norm_is_the_length_of_all_gradients_as_one_vector():
    torch.manual_seed(0)
    gradients = [torch.randn(shape) for shape in ((), (7,), (300, 5), (4, 3, 2, 2), (0, 3))]
    gradients.append(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    expected = torch.cat([gradient.double().flatten() for gradient in gradients]).norm().float()
    torch.testing.assert_close(gradient_norm(gradients), expected)
    gradients[2][9, 1] = torch.inf
    assert gradient_norm(gradients) == torch.inf
