"""A tiny batch, model and step for tests of the training step."""

import torch

from alip.data.batch import Batch
from alip.distributed import World
from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model
from alip.train.optimizer import create_optimizer
from alip.train.parallel import parallelise
from alip.train.step import TrainStep

CPU = torch.device("cpu")
TINY_MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def make_batch(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(2 * count, 77, dtype=torch.long)
    for row in tokens:
        length = int(torch.randint(1, 12, (1,), generator=generator))
        row[0], row[length + 1] = 49406, 49407
        row[1 : length + 1] = torch.randint(1, 49000, (length,), generator=generator)
    return Batch(torch.randn(count, 3, 32, 32, generator=generator), *tokens.chunk(2), torch.arange(count))


def parts(batch: Batch, count: int) -> list[Batch]:
    tensors = (batch.image, batch.text_tokens, batch.caption_tokens, batch.index)
    return [Batch(*piece) for piece in zip(*(tensor.chunk(count) for tensor in tensors))]


def make_step(model, world=None, **options) -> TrainStep:
    world = world or World()
    loss = AdaptiveContrastiveLoss(history_init=0.3, check_finite=False, even_batches=True)
    # A large eps: otherwise AdamW makes whole steps of gradients that are rounding noise around 0 (keys' biases).
    optimizer = create_optimizer(model, lr=1e-3, eps=1e-2)
    return TrainStep(model, loss, optimizer, CPU, parallel_model=parallelise(model, world), grad_clip=0.0, **options)


def make_model(model_file, **options):
    torch.manual_seed(5)
    return create_model(model_file, **options)
