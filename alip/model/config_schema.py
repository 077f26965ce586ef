"""What a model configuration may hold: open_clip's form as a JSON schema, and how large the model may be."""

from __future__ import annotations

import os
from typing import Any

from alip import schema
from alip.errors import UserError

_FIX = "correct that value; open_clip's own configurations are examples"


def _count(most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": most}


def _optional(one: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [one, {"type": "null"}]}


_FLAG = {"type": "boolean"}
_TEXT = {"type": ["string", "null"], "maxLength": 200}
_NUMBER = {"type": ["number", "null"], "minimum": -1e6, "maximum": 1e6}
_ID = {"type": "integer", "minimum": -1, "maximum": 10_000_000}  # of a token
_FRACTION = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
_RATIO = {"type": "number", "exclusiveMinimum": 0, "maximum": 64}
SIDE = _count(8192)
_LAYERS = _count(512)
_WIDTH = _count(65536)
_PAIR = {"type": "array", "minItems": 2, "maxItems": 2, "items": SIDE}
_BLOCKS = {
    "ls_init_value": _NUMBER,
    "output_tokens": _FLAG,
    "act_kwargs": _optional(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {"approximate": {"enum": ["none", "tanh"]}},
        }
    ),
    "norm_kwargs": _optional(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "eps": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                "elementwise_affine": _FLAG,
                "bias": _FLAG,
            },
        }
    ),
    "block_type": {"enum": ["default", "custom", None]},
    **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn"), _FLAG),
    "scale_fc": _FLAG,
    "final_ln_after_pool": _FLAG,
    "mlp_ratio": _RATIO,
    "width": _WIDTH,
}
_VISION = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **_BLOCKS,
        "layers": {"anyOf": [_LAYERS, {"type": "array", "minItems": 4, "maxItems": 4, "items": _LAYERS}]},
        "head_width": _count(65536),
        "patch_size": _optional(SIDE),
        "image_size": {"anyOf": [SIDE, _PAIR]},
        "patch_dropout": _FRACTION,
        "attentional_pool": {"enum": [True, False, "parallel", "cascade"]},
        "attn_pooler_queries": _count(4096),
        "attn_pooler_heads": _count(4096),
        "no_ln_pre": _FLAG,
        "pos_embed_type": {"enum": ["learnable", "sin_cos_2d"]},
        "pool_type": {"enum": ["tok", "avg"]},
        "timm_model_name": _TEXT,
        "timm_model_pretrained": _FLAG,
        "timm_pool": {"enum": ["", "avg", "avgmax", "max", "token", "map", "abs_attn", "rot_attn"]},
        "timm_proj": {"enum": ["", "none", "linear", "mlp", None]},
        "timm_proj_bias": _FLAG,
        "timm_drop": _FRACTION,
        "timm_drop_path": _optional(_FRACTION),
    },
}
_TEXT_TOWER = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **_BLOCKS,
        "layers": _LAYERS,
        "context_length": {"type": "integer", "minimum": 2, "maximum": 65536},
        "vocab_size": _count(10_000_000),
        "heads": _count(65536),
        "hf_tokenizer_name": _TEXT,
        "tokenizer_mode": _TEXT,
        "tokenizer_kwargs": _optional({"type": "object"}),
        "embed_cls": _FLAG,
        "pad_id": _ID,
        "eos_id": _ID,
        "no_causal_mask": _FLAG,
        "pool_type": {"enum": ["first", "last", "argmax", "eos"]},
        "proj_bias": _FLAG,
        "proj_type": {"enum": ["linear", "none"]},
        "hf_model_name": _TEXT,
        "hf_model_pretrained": _FLAG,
        "hf_proj_type": {"enum": ["", "none", "linear", "mlp", None]},
        "hf_pooler_type": _TEXT,
    },
}
MODEL_CFG = {
    "type": "object",
    "required": ["embed_dim", "vision_cfg", "text_cfg"],
    "additionalProperties": False,
    "properties": {
        "embed_dim": _WIDTH,
        "vision_cfg": _VISION,
        "text_cfg": _TEXT_TOWER,
        "multimodal_cfg": {"type": "object"},  # CoCa's: `create_model` refuses it by name
        "quick_gelu": _FLAG,
        "custom_text": _FLAG,
        "init_logit_scale": {"type": "number", "minimum": -100, "maximum": 100},
        "init_logit_bias": _NUMBER,
        "nonscalar_logit_scale": _FLAG,
    },
}
MEANS = {
    "type": "array",
    "minItems": 3,
    "maxItems": 3,
    "items": {"type": "number", "minimum": -1000, "maximum": 1000},  # of pixels from 0 to 1
}
DEVIATIONS = MEANS | {"items": {"type": "number", "minimum": 1e-6, "maximum": 1000}}
PREPROCESS_CFG = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "size": {"anyOf": [SIDE, _PAIR]},
        "mode": {"enum": ["RGB"]},
        "mean": MEANS,
        "std": DEVIATIONS,
        "interpolation": {"enum": ["bicubic", "bilinear", "random"]},
        "resize_mode": {"enum": ["shortest", "longest", "squash"]},
        "fill_color": {"type": "integer", "minimum": 0, "maximum": 255},
    },
}


def check_model_cfg(model_cfg: Any, source: object) -> None:
    """UserError unless this is an open_clip `model_cfg` whose model fits into the machine's memory."""
    missing = [key for key in MODEL_CFG["required"] if isinstance(model_cfg, dict) and key not in model_cfg]
    if missing:
        raise UserError(f"{source}: not a model config in open_clip's form: {', '.join(missing)} missing")
    schema.check(model_cfg, MODEL_CFG, source, _FIX)
    _check_patches(model_cfg["vision_cfg"], source)
    count, memory = parameter_count(model_cfg), memory_bytes()
    if 4 * count > memory:
        raise UserError(
            f"{source}: a model of {count / 1e9:,.0f} billion parameters, {4 * count / 1e9:,.0f} GB in fp32, and this "
            f"machine has {memory / 1e9:,.0f} GB; check width, layers, vocab_size and image_size"
        )


def _check_patches(vision: dict[str, Any], source: object) -> None:
    if isinstance(vision.get("layers", 12), list) or vision.get("timm_model_name"):
        return
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    if patch is None:
        raise UserError(f"{source}: vision_cfg.patch_size: null is for ResNets; {_FIX}")
    if patch > (size if isinstance(size, int) else min(size)):
        raise UserError(f"{source}: vision_cfg: patch_size {patch} is larger than the image, {size}; {_FIX}")


def check_preprocess_cfg(preprocess_cfg: Any, source: object) -> None:
    """UserError unless this is an open_clip `preprocess_cfg`."""
    schema.check({"preprocess_cfg": preprocess_cfg}, {"properties": {"preprocess_cfg": PREPROCESS_CFG}}, source, _FIX)


def parameter_count(model_cfg: dict[str, Any]) -> int:
    """About how many parameters open_clip's own towers have; timm's and Hugging Face's count as none."""
    vision, text, embed = model_cfg["vision_cfg"], model_cfg["text_cfg"], model_cfg["embed_dim"]
    total = 0
    if not vision.get("timm_model_name"):
        size, layers = vision.get("image_size", 224), vision.get("layers", 12)
        height, width_of_image = (size, size) if isinstance(size, int) else size
        if isinstance(layers, list):
            width = vision.get("width", 64)
            total += sum(n * 17 * (width * 2**i) ** 2 for i, n in enumerate(layers)) + (32 * width) * (3 * 32 * width)
            total += (height // 32) * (width_of_image // 32) * 32 * width + 32 * width * embed
        else:
            width, patch = vision.get("width", 768), vision.get("patch_size", 16)
            total += _blocks(layers, width, vision.get("mlp_ratio", 4.0)) + 3 * patch * patch * width + width * embed
            total += (height // patch) * (width_of_image // patch) * width
            total += 4 * embed * max(embed, width) if vision.get("attentional_pool") else 0
    if not text.get("hf_model_name"):
        width = text.get("width", 512)
        total += _blocks(text.get("layers", 12), width, text.get("mlp_ratio", 4.0)) + width * embed
        total += (text.get("vocab_size", 49408) + text.get("context_length", 77)) * width
        total += text.get("context_length", 77) ** 2  # the causal mask
    return int(total)


def _blocks(layers: int, width: int, mlp_ratio: float) -> float:
    return layers * width * width * (4 + 2 * mlp_ratio)


def memory_bytes() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
