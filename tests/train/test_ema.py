import copy

import torch

from alip.train.ema import EMA


def test_ema_against_a_plain_one():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = EMA(model, decay=0.9)
    reference = copy.deepcopy(model.state_dict())
    for n in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(5, 3))  # moves the running statistics
        average.update(model)
        keep = min(0.9, (1 + n) / (10 + n))
        for key, value in model.state_dict().items():
            is_parameter = key in dict(model.named_parameters())
            reference[key] = keep * reference[key] + (1 - keep) * value if is_parameter else value.clone()
    for key, value in average.state_dict().items():
        torch.testing.assert_close(value, reference[key])


def test_a_step_that_was_left_out_does_not_count():
    model = torch.nn.Linear(3, 4)
    counted, skipping = EMA(model, 0.999), EMA(model, 0.999)
    for _ in range(6):
        with torch.no_grad():
            model.weight.add_(1.0)
        skipping.update(model, torch.tensor(False))
        counted.update(model)
        skipping.update(model, torch.tensor(True))
    assert int(skipping.steps) == int(counted.steps) == 6
    assert torch.equal(skipping.weights["weight"], counted.weights["weight"])
