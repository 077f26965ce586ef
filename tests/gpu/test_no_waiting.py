"""Ten training steps in which every wait of the host for the device is an error."""

import pytest
import torch

from alip.data.loader import create_loader, open_data
from alip.distributed import World
from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model
from alip.train.ema import EMA
from alip.train.meter import Meter
from alip.train.optimizer import create_optimizer
from alip.train.setup import create_scaler
from alip.train.step import TrainStep
from tests.helpers.steps import TINY_MODEL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("precision", ["amp_bf16", "amp"])
@pytest.mark.parametrize("options", [{}, {"patch_dropout": 0.5}, {"compile": True}], ids=str)
def test_ten_steps_without_a_wait(precision, micro, options):
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    torch.manual_seed(0)
    text = {**TINY_MODEL["text_cfg"], "width": 64}
    model = create_model({**TINY_MODEL, "text_cfg": text}, **options).to(device)
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(device)
    scaler = create_scaler(precision, device)
    step = TrainStep(
        model,
        loss,
        create_optimizer(model, lr=1e-3),
        device,
        precision=precision,
        scaler=scaler,
        ema=EMA(model, 0.9),
        grad_clip=1.0,
    )
    data = open_data(None, "synthetic", 16 * 15 * micro)
    batches = create_loader(data, 16, **model.input_format, world=World(device=device)).epoch(0)
    meter, results = Meter(device), []
    try:
        for number in range(15):
            if number == 5:  # libraries, kernels and moments are there
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            results.append(step([next(batches) for _ in range(micro)], 1e-3))
            meter.add(results[-1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not any(result.skipped.item() for result in results[-5:])
