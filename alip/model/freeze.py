"""Freezing towers, as open_clip's --lock-image and --lock-text do (LiT, arXiv 2111.07991)."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from alip.errors import UserError


def lock_image_tower(model: nn.Module, unlocked_groups: int = 0) -> None:
    """Freezes the image tower's parameters but for its last groups of layers (open_clip's own grouping)."""
    if unlocked_groups < 0:
        raise UserError(f"the number of unlocked groups is at least 0, not {unlocked_groups}")
    try:
        model.lock_image_tower(unlocked_groups=unlocked_groups, freeze_bn_stats=False)
    except AssertionError:
        raise UserError(
            f"this image tower ({type(model.visual).__name__}) can be locked as a whole only: "
            "leave --lock-image-unlocked-groups out"
        ) from None


def lock_text_tower(model: nn.Module, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
    """Freezes the text tower's parameters but for its last layers (open_clip's own grouping).

    freeze_layer_norm: of Hugging Face text towers, too; open_clip's own towers freeze their LayerNorms in any case.
    """
    if unlocked_layers < 0:
        raise UserError(f"the number of unlocked layers is at least 0, not {unlocked_layers}")
    from_huggingface = bool(model.config["model_cfg"]["text_cfg"].get("hf_model_name"))
    model.lock_text_tower(unlocked_layers, freeze_layer_norm or not from_huggingface)


def frozen_batch_norms(tower: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers whose parameters are all frozen; in evaluation mode their running statistics rest too.

    open_clip replaces them by layers of another class, without the buffer that counts batches; here they stay what
    they are, so that a checkpoint has the same tensors with and without.
    """
    norms = [module for module in tower.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if not any(parameter.requires_grad for parameter in norm.parameters())]
