import pytest
import torch

from alip.errors import UserError
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


def test_adamw_is_the_fused_one_with_the_papers_betas(model_file):
    optimizer = create_optimizer(create_model(model_file), lr=1e-3)
    group = optimizer.param_groups[0]
    assert type(optimizer) is torch.optim.AdamW and group["fused"]
    assert (group["betas"], group["eps"]) == ((0.9, 0.98), 1e-6)
    other = create_optimizer(create_model(model_file), 1e-3, 0.8, 0.95, 1e-5, opt_kwargs={"amsgrad": True})
    group = other.param_groups[0]
    assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.8, 0.95), 1e-5, True)


def test_timms_optimizers_get_our_groups_and_keep_their_own_defaults(model_file):
    model = create_model(model_file)
    optimizer = create_optimizer(model, 1e-3, weight_decay=0.3, opt="timm/lamb")
    assert type(optimizer).__name__ == "Lamb"
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert create_optimizer(model, 1e-3, 0.8, 0.9, opt="timm/lamb").param_groups[0]["betas"] == (0.8, 0.9)
    sgd = create_optimizer(model, 0.1, opt="timm/sgd", opt_kwargs={"momentum": 0.5, "nesterov": True})
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.5, True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"opt": "lamb"}, "timm/lamb"),
        ({"opt": "timm/lam"}, "timm/lamb"),
        ({"opt": "adam"}, "choose adamw, or timm/NAME"),
        ({"opt": "timm/adahessian"}, "second derivatives"),
        ({"opt": "timm/sgd", "opt_kwargs": {"speed": 1}}, "speed"),
        ({"opt": "timm/sgd", "beta1": 0.9, "beta2": 0.98}, "has no betas"),
        ({"opt": "timm/sgd", "eps": 1e-8}, "has no eps"),
        ({"opt": "timm/lookahead_adamw"}, "cannot be resumed"),
        ({"opt": "timm/lamb", "beta1": 0.9}, "both of --beta1 and --beta2"),
        ({"opt_kwargs": {"speed": 1}}, "speed"),
        ({"opt_kwargs": {"lr": 3}}, "lr: it is --lr"),
        ({"opt_kwargs": {"betas": (0.5, 0.6)}}, "betas: it is --beta1"),
        ({"opt": "timm/lamb", "eps": 1e-8, "opt_kwargs": {"eps": 1e-6}}, "eps: it is --eps"),
        ({"opt": "timm/adamw", "opt_kwargs": {"weight_decay": 9}}, "weight_decay: it is --wd"),
        ({"opt": "timm/adamw", "opt_kwargs": {"layer_decay": 0.7}}, "layer_decay: weight decay is chosen by"),
        ({"opt": "timm/adamw", "opt_kwargs": {"capturable": True}}, "capturable: steps are"),
    ],
)
def test_optimizers_that_there_are_not(model_file, options, message):
    with pytest.raises(UserError, match=message):
        create_optimizer(create_model(model_file), 1e-3, **options)
