"""Model FLOPs of a training step, and the peak of the device that computes it: their ratio is the utilisation (MFU).

Counted is what the model needs by its definition: one forward pass, and a backward pass that is two more where the
tower is trained. What an implementation adds is not counted: passes that are run again to save memory (gradient
checkpointing, accumulation), padding, the loss. One multiplication with its addition is two FLOPs; only matrix
products and convolutions count, as usual (Chowdhery et al., 2022, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import re

import torch
from open_clip.transformer import Transformer, VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from alip.model.precision import canonical

# Dense peaks in TFLOP/s by number type, from the makers' data sheets (without sparsity); fp32 is without TF32, which
# --precision fp32 does not use. The first pattern that is found in the device's name holds. None: no such unit.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"\bB200\b", {"bf16": 2250.0, "fp16": 2250.0, "fp32": 75.0}),
    (r"\bH200 NVL\b", {"bf16": 835.5, "fp16": 835.5, "fp32": 60.0}),
    (r"\bH200\b", {"bf16": 989.4, "fp16": 989.4, "fp32": 66.9}),
    (r"\bH100 NVL\b", {"bf16": 835.5, "fp16": 835.5, "fp32": 60.0}),
    (r"\bH100 PCIe\b", {"bf16": 756.0, "fp16": 756.0, "fp32": 51.2}),
    (r"\bH[18]00\b", {"bf16": 989.4, "fp16": 989.4, "fp32": 66.9}),
    (r"\bH20\b", {"bf16": 148.0, "fp16": 148.0, "fp32": 44.0}),
    (r"\bA[18]00\b", {"bf16": 312.0, "fp16": 312.0, "fp32": 19.5}),
    (r"\bA40\b", {"bf16": 149.7, "fp16": 149.7, "fp32": 37.4}),
    (r"\bA30\b", {"bf16": 165.0, "fp16": 165.0, "fp32": 10.3}),
    (r"\bA10\b", {"bf16": 125.0, "fp16": 125.0, "fp32": 31.2}),
    (r"\bL40S\b", {"bf16": 362.0, "fp16": 362.0, "fp32": 91.6}),
    (r"\bL40\b", {"bf16": 181.0, "fp16": 181.0, "fp32": 90.5}),
    (r"\bL4\b", {"bf16": 121.0, "fp16": 121.0, "fp32": 30.3}),
    (r"\bV100-PCIE\b", {"fp16": 112.0, "fp32": 14.0}),
    (r"\bV100\b", {"fp16": 125.0, "fp32": 15.7}),
    (r"\bT4\b", {"fp16": 65.0, "fp32": 8.1}),
    (r"\bMI300X\b", {"bf16": 1307.4, "fp16": 1307.4, "fp32": 163.4}),
)


def peak_flops_per_s(device_name: str, precision: str) -> float | None:
    """The dense peak of a data-centre GPU in FLOP/s; None where it is not known (CPUs, other cards).

    precision: one of alip.model.precision's names.
    """
    number_type = {"amp_bf16": "bf16", "amp": "fp16", "fp32": "fp32"}[canonical(precision)]
    for pattern, peaks in _PEAKS:
        if re.search(pattern, device_name):
            peak = peaks.get(number_type)
            return peak * 1e12 if peak is not None else None
    return None


def device_peak(device: torch.device, precision: str) -> float | None:
    """`peak_flops_per_s` of this process's device."""
    return peak_flops_per_s(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


class ModelFlops:
    """FLOPs of one training sample: one image, and two texts through the text tower.

    model: a bi-path model (alip.model). `image_forward` is one image's forward pass.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.image_forward = image_forward_flops(model)

    def per_sample(self, text_length: float) -> float:
        """Forward and backward. text_length: mean number of tokens of a text, padding left out."""
        text = text_forward_flops(self.model, text_length)
        image_passes, text_passes = (3 if trained else 1 for trained in _trained_towers(self.model))
        return image_passes * self.image_forward + text_passes * 2 * text


def image_forward_flops(model: nn.Module) -> float:
    """One image's forward pass: by formula for open_clip's vision transformers, else counted on shapes alone."""
    tower = model.visual
    if type(tower) is VisionTransformer and tower.attn_pool is None and _is_plain(tower.transformer):
        return _vision_transformer(tower, model.image_size)
    return _counted(tower, model.image_size)


def text_forward_flops(model: nn.Module, length: float) -> float:
    """One text of `length` tokens through the text tower (open_clip's or a Hugging Face one)."""
    tower = getattr(model, "text", model)
    if isinstance(tower, nn.Module) and _is_plain(getattr(tower, "transformer", None)):
        projection = tower.text_projection
        out = 0 if projection is None else (projection.weight if isinstance(projection, nn.Linear) else projection)
        pooled_once = tower is model or tower.pool_type in ("argmax", "eos", "last")
        blocks = _blocks(tower.transformer, length, pooled_once)
        return blocks + (2.0 * out.numel() if isinstance(out, torch.Tensor) else 0.0)
    # Other towers (Hugging Face): two FLOPs per weight of every matrix and token; attention itself is left out.
    return 2.0 * length * sum(p.numel() for n, p in tower.named_parameters() if p.ndim == 2 and "embedding" not in n)


def _trained_towers(model: nn.Module) -> tuple[bool, bool]:
    """Whether the backward pass goes through the image tower and through the text tower."""
    image = any(p.requires_grad for p in model.visual.parameters())
    others = (p for n, p in model.named_parameters() if not n.startswith("visual.") and not n.startswith("logit_"))
    return image, any(p.requires_grad for p in others)


def _is_plain(transformer: object) -> bool:
    return type(transformer) is Transformer and all(hasattr(block.mlp, "c_fc") for block in transformer.resblocks)


def _vision_transformer(tower: VisionTransformer, image_size: int) -> float:
    weight = tower.conv1.weight
    high, wide = tower.patch_size
    patches = (image_size // high) * (image_size // wide)
    dropped = getattr(tower.patch_dropout, "prob", 0.0)
    kept = max(1, int(patches * (1 - dropped))) if dropped else patches
    blocks = _blocks(tower.transformer, kept + 1, tower.pool_type == "tok")
    return 2.0 * patches * weight.numel() + blocks + (2.0 * tower.proj.numel() if tower.proj is not None else 0.0)


def _blocks(transformer: Transformer, length: float, pooled_once: bool) -> float:
    """All residual blocks over one sequence. pooled_once: of the last block one token is read, so only its query,
    projection and MLP are needed."""
    flops = 0.0
    for block in transformer.resblocks:
        queries = 1 if pooled_once and block is transformer.resblocks[-1] else length
        width, hidden = block.attn.embed_dim, block.mlp.c_fc.out_features
        flops += 4.0 * length * width * width  # keys and values
        flops += 4.0 * queries * width * width  # queries and projection
        flops += 4.0 * queries * length * width  # scores, and values by them (causal ones are not halved)
        flops += 4.0 * queries * width * hidden
    return flops


def _counted(tower: nn.Module, image_size: int) -> float:
    """A forward pass on the meta device, where tensors have shapes and no content: nothing is computed or changed."""
    tensors = {**dict(tower.named_parameters()), **dict(tower.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    modes = {module: module.training for module in tower.modules()}  # frozen BatchNorm layers have one of their own
    tower.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(tower, shapes, (image,))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return float(counter.get_total_flops())
