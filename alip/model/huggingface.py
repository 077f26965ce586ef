"""CLIP's two spellings: open_clip's tensor names, and configuration ↔ those of Hugging Face's `CLIPModel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import nn

from alip import schema
from alip.errors import UserError
from alip.files import read_json
from alip.model.config_schema import SIDE
from alip.model.image_processor import read_huggingface as read_preprocessing
from alip.model.transformer import runs_unpadded
from alip.tokens import clip_tokenizer

LAYER_NORM_EPS = 1e-5  # torch's default, and so every open_clip tower's
# Values that Hugging Face leaves out of config.json because they are CLIPConfig's defaults.
_TEXT_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": LAYER_NORM_EPS,
}
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": LAYER_NORM_EPS,
}
_SIGLIP_TYPES = ("siglip", "siglip2", "siglip_text_model", "siglip_vision_model")
# open_clip's names of the start and end token → Hugging Face's.
HF_SPECIAL_TOKENS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 65536}
_TOWER = {
    "hidden_size": _COUNT,
    "intermediate_size": _COUNT | {"maximum": 1 << 20},
    "num_hidden_layers": _COUNT | {"maximum": 512},
    "num_attention_heads": _COUNT,
    "hidden_act": {"type": "string"},
    "layer_norm_eps": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
}
_TEXT = {
    "type": ["object", "null"],
    "properties": {
        **_TOWER,
        "max_position_embeddings": _COUNT | {"minimum": 2},
        "vocab_size": _COUNT | {"maximum": 10_000_000},
        "eos_token_id": {"type": "integer", "minimum": 0, "maximum": 10_000_000},
    },
}
_VISION = {
    "type": ["object", "null"],
    "properties": {**_TOWER, "image_size": SIDE, "patch_size": SIDE, "num_channels": {"enum": [3]}},
}
_SCHEMA = {
    "type": "object",
    "properties": {
        "projection_dim": _COUNT,
        **dict.fromkeys(("text_config", "text_config_dict"), _TEXT),
        **dict.fromkeys(("vision_config", "vision_config_dict"), _VISION),
    },
}
_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _names(vision_layers: int, text_layers: int) -> dict[str, str]:
    """Hugging Face's name → open_clip's, for all tensors that only change their name (or are transposed)."""
    names = {
        "logit_scale": "logit_scale",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_projection.weight": "text_projection",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "visual_projection.weight": "visual.proj",
    }
    pairs = {
        "text_model.final_layer_norm": "ln_final",
        "vision_model.pre_layrnorm": "visual.ln_pre",  # spelt so upstream
        "vision_model.post_layernorm": "visual.ln_post",
    }
    for theirs, ours, layers in _towers(vision_layers, text_layers):
        for i in range(layers):
            pairs |= {f"{theirs}.{i}.{a}": f"{ours}.{i}.{b}" for a, b in _BLOCK.items()}
    for theirs, ours in pairs.items():
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    return names


def _towers(vision_layers: int, text_layers: int):
    yield "vision_model.encoder.layers", "visual.transformer.resblocks", vision_layers
    yield "text_model.encoder.layers", "transformer.resblocks", text_layers


_TRANSPOSED = ("text_projection.weight", "visual_projection.weight")


def to_huggingface(model: nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(CLIPConfig as a dict, state dict) of a bi-path model; raises UserError where `CLIPModel` has no such part."""
    problem = _obstacle(model)
    if problem:
        raise UserError(f"Hugging Face's CLIPModel has {problem}; export with --to open_clip")
    text_tower = getattr(model, "text", model)
    prefix = "" if text_tower is model else "text."
    state = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    vision, text = model.visual.transformer, text_tower.transformer
    result = {}
    for theirs, ours in _names(len(vision.resblocks), len(text.resblocks)).items():
        tensor = state[ours]
        result[theirs] = (tensor.T if theirs in _TRANSPOSED else tensor.reshape(tensor.shape)).contiguous()
    result["logit_scale"] = state["logit_scale"].reshape(())
    for theirs, ours, layers in _towers(len(vision.resblocks), len(text.resblocks)):
        for i in range(layers):
            for kind in ("weight", "bias"):
                parts = state[f"{ours}.{i}.attn.in_proj_{kind}"].chunk(3)
                for letter, part in zip("qkv", parts):
                    result[f"{theirs}.{i}.self_attn.{letter}_proj.{kind}"] = part.contiguous()

    act = "quick_gelu" if model.config["model_cfg"].get("quick_gelu") else "gelu"
    embed_dim = model.config["model_cfg"]["embed_dim"]
    config = {
        "projection_dim": embed_dim,
        "logit_scale_init_value": model.logit_scale.item(),
        "text_config": {
            **_sizes(text, act),
            "projection_dim": embed_dim,
            "max_position_embeddings": model.context_length,
            "vocab_size": model.vocab_size,
            "bos_token_id": model.vocab_size - 2,
            "eos_token_id": model.vocab_size - 1,
            "pad_token_id": model.vocab_size - 1,
        },
        "vision_config": {
            **_sizes(vision, act),
            "projection_dim": embed_dim,
            "image_size": model.image_size,
            "patch_size": model.visual.patch_size[0],
        },
    }
    return config, result


def _sizes(transformer: nn.Module, act: str) -> dict[str, Any]:
    block = transformer.resblocks[0]
    return {
        "hidden_size": transformer.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": act,
        "layer_norm_eps": block.ln_1.eps,
    }


def _obstacle(model: nn.Module) -> str | None:
    """The part of this model that Hugging Face's CLIPModel cannot hold, or None."""
    visual, text = model.visual, getattr(model, "text", model)
    if type(visual) is not VisionTransformer or not runs_unpadded(visual.transformer):
        return f"no image tower of this kind ({type(visual).__name__})"
    if visual.pool_type != "tok" or visual.attn_pool is not None or not isinstance(visual.ln_pre, nn.LayerNorm):
        return "only class-token pooling with a first layer norm"
    if visual.patch_size[0] != visual.patch_size[1] or visual.grid_size[0] != visual.grid_size[1]:
        return "only square images and patches"
    if getattr(text, "text_pool_type", getattr(text, "pool_type", None)) != "argmax" or text.attn_mask is None:
        return "only causal text towers pooled at the end token"
    if not runs_unpadded(text.transformer) or getattr(text, "cls_emb", None) is not None:
        return "no text tower of this kind"
    if not isinstance(text.text_projection, nn.Parameter):
        return "only a text projection without bias"
    for tower in (visual.transformer, text.transformer):
        if not isinstance(tower.resblocks[0].ls_1, nn.Identity):
            return "no layer scale"
    if model.logit_bias is not None:
        return "no logit bias"
    if model.vocab_size != clip_tokenizer().vocab_size:
        return f"no tokenizer for this model's vocabulary of {model.vocab_size}"
    if model.config["model_cfg"]["text_cfg"].get("act_kwargs") or model.config["model_cfg"]["vision_cfg"].get(
        "act_kwargs"
    ):
        return "only plain GELU or QuickGELU"
    return None


def is_huggingface(state: dict[str, torch.Tensor]) -> bool:
    """True for tensors with the names of Hugging Face's dual encoders."""
    return any(name.startswith(("text_model.", "vision_model.")) for name in state)


def from_huggingface(
    config: dict[str, Any], state: dict[str, torch.Tensor], folder: Path
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(config in open_clip's form, state dict with open_clip's names) of a Hugging Face CLIP folder."""
    source = folder / "config.json"
    text, vision = _tower_sizes(config, source)
    renamed = _renamed(state, vision["num_hidden_layers"], text["num_hidden_layers"], folder)
    model_cfg: dict[str, Any] = {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": text["hidden_act"] == "quick_gelu",
        "vision_cfg": _tower_config(vision) | {"image_size": vision["image_size"], "patch_size": vision["patch_size"]},
        "text_cfg": _tower_config(text)
        | {"context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"]},
    }
    model_cfg["vision_cfg"]["head_width"] = vision["hidden_size"] // vision["num_attention_heads"]
    model_cfg["text_cfg"]["heads"] = text["num_attention_heads"]
    # Where the end token is not the largest id, CLIPTextModel looks for it; 2 means the largest, in old files.
    if text["eos_token_id"] not in (2, text["vocab_size"] - 1):
        model_cfg["text_cfg"] |= {"pool_type": "eos", "eos_id": text["eos_token_id"]}
    if not _has_clip_vocabulary(folder, text["vocab_size"]):
        model_cfg["text_cfg"]["hf_tokenizer_name"] = folder.name
    return {"model_cfg": model_cfg, "preprocess_cfg": read_preprocessing(folder, vision["image_size"])}, renamed


def _tower_sizes(config: dict[str, Any], source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The text and the vision tower's settings, checked, with CLIPConfig's defaults for what is left out."""
    kind = config.get("model_type")
    if kind in _SIGLIP_TYPES:
        raise UserError(
            f"{source}: a SigLIP model in Hugging Face's form, whose image tower is not read here; give open_clip's "
            "release of it, such as hf-hub:timm/ViT-B-16-SigLIP"
        )
    if kind != "clip":
        raise UserError(f"{source}: a Hugging Face model of type {str(kind)[:40]!r}; only 'clip' is read")
    schema.check(config, _SCHEMA, source)
    text, vision = _TEXT_DEFAULTS | _own(config, "text_config"), _VISION_DEFAULTS | _own(config, "vision_config")
    acts = {text["hidden_act"], vision["hidden_act"]}
    if len(acts) > 1 or not acts <= {"gelu", "quick_gelu"}:
        found = ", ".join(map(repr, sorted(acts)))[:80]
        raise UserError(f"{source}: activation {found}; only gelu or quick_gelu, alike in both towers")
    for name, tower in (("text_config", text), ("vision_config", vision)):
        if tower["hidden_size"] % tower["num_attention_heads"]:
            width, heads = tower["hidden_size"], tower["num_attention_heads"]
            raise UserError(f"{source}: {name}: hidden_size {width} is no multiple of num_attention_heads {heads}")
    return text, vision


def _own(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A tower's settings in the file: under the older name, `…_dict`, where it is there, as transformers takes them."""
    older = config.get(f"{name}_dict")
    return (config.get(name) or {}) if older is None else older


def _renamed(
    state: dict[str, torch.Tensor], vision_layers: int, text_layers: int, folder: Path
) -> dict[str, torch.Tensor]:
    """The state dict with open_clip's names: queries, keys and values joined, projections transposed."""
    left = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    result = {}
    try:
        for theirs, ours in _names(vision_layers, text_layers).items():
            tensor = left.pop(theirs)
            result[ours] = tensor.T.contiguous() if theirs in _TRANSPOSED and tensor.ndim == 2 else tensor
        for theirs, ours, layers in _towers(vision_layers, text_layers):
            for i in range(layers):
                for kind in ("weight", "bias"):
                    parts = [left.pop(f"{theirs}.{i}.self_attn.{letter}_proj.{kind}") for letter in "qkv"]
                    result[f"{ours}.{i}.attn.in_proj_{kind}"] = torch.cat(parts)
    except KeyError as error:
        raise UserError(f"{folder}: tensor {error} is missing in the weights; not a whole CLIPModel") from error
    except (RuntimeError, TypeError) as error:  # torch.cat, of tensors that do not fit
        raise UserError(
            f"{folder}: queries, keys and values of layer {i} differ in shape or type; not a CLIPModel"
        ) from error
    if left:
        raise UserError(
            f"{folder}: tensor {sorted(left)[0][:80]} of the weights is no part of the CLIPModel in config.json"
        )
    return result


def _has_clip_vocabulary(folder: Path, vocab_size: int) -> bool:
    """False if the folder's tokenizer is another one than CLIP's."""
    ours = clip_tokenizer()
    if not (folder / "vocab.json").is_file():
        return vocab_size == ours.vocab_size
    theirs = read_json(folder / "vocab.json")
    return theirs == {HF_SPECIAL_TOKENS.get(token, token): number for token, number in ours.encoder.items()}


def _tower_config(sizes: dict[str, Any]) -> dict[str, Any]:
    config = {
        "width": sizes["hidden_size"],
        "layers": sizes["num_hidden_layers"],
        "mlp_ratio": sizes["intermediate_size"] / sizes["hidden_size"],
    }
    if sizes["layer_norm_eps"] != LAYER_NORM_EPS:
        config["norm_kwargs"] = {"eps": sizes["layer_norm_eps"]}
    return config
