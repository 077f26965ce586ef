"""What a user changes about a model's image side: the size, normalisation and resizing of its images, first weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from alip.errors import UserError

INTERPOLATIONS = ("bilinear", "bicubic")
RESIZE_MODES = ("shortest", "longest", "squash")


def override_images(
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any],
    *,
    image_size: int | None = None,
    image_mean: float | Sequence[float] | None = None,
    image_std: float | Sequence[float] | None = None,
    image_interpolation: str | None = None,
    image_resize_mode: str | None = None,
    pretrained_image: bool = False,
) -> None:
    """Changes an open_clip configuration in place; None leaves its own value. UserError for values it cannot have.

    image_size: side of the square input, in pixels. image_mean, image_std: of red, green and blue, for values 0 to 1;
    one number for all three.
    image_interpolation: of every resize, in training and evaluation. image_resize_mode: in evaluation: "shortest"
    (short side to the size, centre crop), "longest" (long side, padded) or "squash" (both sides).
    pretrained_image: start the image tower from the ImageNet weights that timm has for it, downloaded.
    """
    vision_cfg = model_cfg["vision_cfg"]
    if image_size is not None:
        patch = vision_cfg.get("patch_size", 16)
        is_vit = not vision_cfg.get("timm_model_name") and not isinstance(vision_cfg.get("layers"), (list, tuple))
        if image_size < 1 or (is_vit and image_size % patch):
            raise UserError(f"an image size of {image_size} is not possible: the model's patches are {patch} pixels")
        vision_cfg["image_size"] = image_size
    for name, given in (("mean", image_mean), ("std", image_std)):
        if given is not None:
            values = [given] * 3 if isinstance(given, int | float) else list(given)
            if len(values) != 3 or not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
                above = "above 0 and up to 1" if name == "std" else "from 0 to 1"
                raise UserError(f"the image {name} is three numbers {above}, not {values}: those of 0 to 255 over 255")
            preprocess_cfg[name] = values
    for name, value, known in (
        ("interpolation", image_interpolation, INTERPOLATIONS),
        ("resize_mode", image_resize_mode, RESIZE_MODES),
    ):
        if value is not None:
            if value not in known:
                raise UserError(f"an image {name} of {value!r} is not possible: choose {' or '.join(known)}")
            preprocess_cfg[name] = value
    if pretrained_image:
        if not vision_cfg.get("timm_model_name"):
            raise UserError("only timm's image towers have ImageNet weights of their own; for others use --pretrained")
        vision_cfg["timm_model_pretrained"] = True


def check_overrides(names: Iterable[str]) -> None:
    """TypeError, with the names that there are, for one that `override_images` does not take."""
    known = override_images.__kwdefaults__
    for name in names:
        if name not in known:
            raise TypeError(f"create_model has no argument {name!r}; of images it takes {', '.join(known)}")
