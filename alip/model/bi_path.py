"""The bi-path model: open_clip's towers, raw texts and captions through the text tower together, and no padding.

    model = create_model("ViT-B-32")
    image_features, text_features, caption_features, logit_scale = model(image, text_tokens, caption_tokens)

The models are open_clip's own classes with open_clip's own tensor names, so weights go both ways. Ours are the
bi-path `forward`, and `encode_image`/`encode_text`, which skip what has no effect on the features: padding, and in the
last block everything but the pooled token.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP, resize_pos_embed, set_model_preprocess_cfg
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import PatchDropout, TextTransformer, VisionTransformer
from torch import nn
from torch.nn import functional as F

from alip import tokens, varlen
from alip.errors import UserError
from alip.model import hub
from alip.model.attention import take_rows
from alip.model.config import resolve_config
from alip.model.freeze import frozen_batch_norms, lock_image_tower, lock_text_tower
from alip.model.overrides import check_overrides, override_images
from alip.model.pretrained import adopt, find_pretrained
from alip.model.text_format import TextFormat, Tokenizer, create_tokenizer, text_format
from alip.model.transformer import compiled_function, run_blocks, runs_unpadded
from alip.model.weights import Weights, apply


def create_model(
    name_or_config: str | Path | dict[str, Any],
    *,
    pretrained: str | Path | Weights | None = None,
    grad_checkpointing: bool = False,
    patch_dropout: float | None = None,
    lock_image: bool = False,
    lock_image_unlocked_groups: int = 0,
    lock_image_freeze_bn_stats: bool = False,
    lock_text: bool = False,
    lock_text_unlocked_layers: int = 0,
    lock_text_freeze_layer_norm: bool = True,
    quick_gelu: bool = False,
    compile: bool = False,
    pad_texts: bool = False,
    **image_overrides: Any,
) -> nn.Module:
    """A bi-path model (see `BiPath`) in training mode, on the CPU, in fp32; UserError where there is none.

    name_or_config: an open_clip name ("ViT-B-32", also "ViT-B/32"), a JSON file, or a dict in open_clip's form;
        `create_model(model.config)` builds the same model again.
    pretrained: start from these weights: anything that `--checkpoint` takes, one of open_clip's tags for this name,
        which is downloaded, or weights already read. They bring the activation, the mean, standard deviation,
        interpolation and resizing of images that they were trained with, where that is known.
    grad_checkpointing: recompute the blocks in the backward pass: less memory, a third more work.
    patch_dropout: fraction of image patches left out in training, in [0, 1).
    lock_image, lock_text: freeze that tower (LiT freezes the image tower), but for its last `…_unlocked_groups` or
        `…_unlocked_layers`, counted as open_clip does; see `alip.model.freeze`.
    lock_image_freeze_bn_stats: the running statistics of frozen BatchNorm layers do not move either.
    quick_gelu: OpenAI's approximate GELU, for weights that were trained with it.
    compile: torch.compile the towers' blocks for training, or a whole ResNet (costs a minute at the start).
    pad_texts: run all texts at full length, as open_clip does: for comparisons.
    image_overrides: image_size, image_mean, image_std, image_interpolation, image_resize_mode, pretrained_image, as
        `alip.model.overrides.override_images` takes them.
    """
    name, model_cfg, preprocess_cfg = resolve_config(name_or_config)
    check_overrides(image_overrides)
    if "multimodal_cfg" in model_cfg:
        raise UserError(f"{name}: CoCa models have a text decoder, which ALIP does not train; choose a CLIP model")
    found = pretrained
    if pretrained is not None and not isinstance(pretrained, Weights):
        found = find_pretrained(name, pretrained)
    if patch_dropout is not None:
        if not 0 <= patch_dropout < 1:
            raise UserError(f"patch dropout must be in [0, 1), not {patch_dropout}")
        model_cfg["vision_cfg"]["patch_dropout"] = patch_dropout
    if quick_gelu:
        model_cfg["quick_gelu"] = True
    if found is not None:
        adopt(found, name, model_cfg, preprocess_cfg)
    override_images(model_cfg, preprocess_cfg, **image_overrides)
    model = build(name, model_cfg, preprocess_cfg)
    if patch_dropout and isinstance(model.visual, ModifiedResNet):
        raise UserError("patch dropout is for vision transformers, and a ResNet would ignore it: leave it out")
    model.pad_texts = pad_texts
    if found is not None:
        state = dict(found.state)
        if image_overrides.get("image_size") is not None:
            resize_pos_embed(state, model)
        apply(model, state, found.path)
        model.source_folder, model.may_download = found.folder, found.name is not None
    if lock_image:
        lock_image_tower(model, lock_image_unlocked_groups)
        model.freeze_bn_stats = lock_image_freeze_bn_stats
        model.train(model.training)
    if lock_text:
        lock_text_tower(model, lock_text_unlocked_layers, lock_text_freeze_layer_norm)
    if grad_checkpointing:
        model.set_grad_checkpointing(True)
    if compile:
        model.compile_towers()
    return model


def build(name: str, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any]) -> nn.Module:
    """The model of a checked open_clip configuration, with fresh weights. name: for error messages."""
    vision_cfg, text_cfg = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    vision_cfg["output_tokens"] = text_cfg["output_tokens"] = False  # the pooled features only
    custom = model_cfg.get("custom_text", False) or bool(text_cfg.get("hf_model_name"))
    try:
        model = (BiPathCustomText if custom else BiPathCLIP)(**_constructor_arguments(name, model_cfg))
    except UserError:
        raise
    except Exception as error:  # open_clip's, timm's and transformers' own, for values that do not go together
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if vision_cfg.get("patch_dropout") and "patch_drop_rate" in reason:
            raise UserError(f"{name}: patch dropout is for vision transformers only; leave it out") from error
        raise UserError(f"{name}: open_clip cannot build this model: {reason}") from error
    preprocess = merge_preprocess_dict(PreprocessCfg(), preprocess_cfg)
    if getattr(model.visual, "image_size", None) is not None:
        preprocess["size"] = model.visual.image_size
    set_model_preprocess_cfg(model, preprocess)
    # Loading weights into a rebuilt model must not fetch the base towers again.
    if vision_cfg.get("timm_model_pretrained"):
        vision_cfg["timm_model_pretrained"] = False
    if text_cfg.get("hf_model_name"):
        text_cfg["hf_model_pretrained"] = False
    model.config = {"model_cfg": model_cfg, "preprocess_cfg": _plain(preprocess)}
    for key in ("mean", "std"):  # for images that arrive as bytes; not in the state dict
        model.register_buffer(f"pixel_{key}", 255 * torch.tensor(preprocess[key]).view(3, 1, 1), persistent=False)
    if model.logit_bias is not None:  # SigLIP's; the adaptive loss has none
        model.logit_bias.requires_grad_(False)
    return model


def _constructor_arguments(name: str, model_cfg: dict[str, Any]) -> dict[str, Any]:
    """What open_clip's class takes; nothing in it makes timm or transformers look into the network."""
    arguments = {key: value for key, value in deepcopy(model_cfg).items() if key != "custom_text"}
    timm_name = arguments["vision_cfg"].get("timm_model_name")
    if timm_name:
        import timm

        if not timm.is_model(timm_name):
            raise UserError(f"{name}: timm has no model {timm_name[:80]!r}; correct vision_cfg.timm_model_name")
    text_tower = arguments["text_cfg"].get("hf_model_name")
    if text_tower:
        arguments["text_cfg"]["hf_model_name"] = str(hub.text_tower_folder(text_tower, name))
    return arguments


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _normalise(image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """uint8 images (B, 3, H, W) → fp32; others are normalised already. mean, std: (3, 1, 1), of values 0 to 255."""
    return (image.float() - mean) / std if image.dtype == torch.uint8 else image


def _patch_rows(tower: VisionTransformer, image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """The tower's first steps: images (B, 3, H, W) → class token and patches (B, 1 + patches, width).

    A convolution whose stride is its kernel size is one matrix product over patches, and much faster as such.
    """
    image = _normalise(image, mean, std)
    high, wide = tower.patch_size
    batch, channels, height, width = image.shape
    patches = image.view(batch, channels, height // high, high, width // wide, wide).permute(0, 2, 4, 1, 3, 5)
    x = F.linear(patches.reshape(batch, -1, channels * high * wide), tower.conv1.weight.flatten(1))
    x = torch.cat([tower.class_embedding.to(x.dtype).expand(batch, 1, -1), x], dim=1)
    return x + tower.positional_embedding.to(x.dtype)


def _drop_patches(dropout: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """open_clip's PatchDropout, of x (B, 1 + patches, width), with the same random numbers of the CPU's generator.

    Its own indexing sends the indices from pageable memory, for which the host waits.
    """
    if type(dropout) is not PatchDropout or not dropout.training or dropout.prob == 0.0:
        return dropout(x)
    batch, tokens, width = x.shape
    first = 1 if dropout.exclude_first_token else 0
    kept = max(1, int((tokens - first) * (1 - dropout.prob)))
    chosen = torch.randn(batch, tokens - first).topk(kept, dim=-1).indices + first
    if first:
        chosen = torch.cat([torch.zeros(batch, 1, dtype=torch.int64), chosen], dim=1)
    rows = (chosen + tokens * torch.arange(batch)[:, None]).flatten()
    if x.device.type == "cuda":
        rows = rows.pin_memory()
    return take_rows(x.reshape(-1, width), rows.to(x.device, non_blocking=True)).view(batch, -1, width)


class BiPath:
    """What a bi-path model adds to open_clip's CLIP classes.

    config: JSON-able; `create_model(model.config)` rebuilds the model. logit_scale: the parameter (a logarithm).
    """

    config: dict[str, Any]
    pad_texts = False
    source_folder: Path | None = None  # of its weights, where a tokenizer of its own may be
    may_download = False
    _tokenizer: Tokenizer | None = None
    _compiled = False
    freeze_bn_stats = False

    def forward(
        self,
        image: torch.Tensor,
        text_tokens: torch.Tensor,
        caption_tokens: torch.Tensor,
        text_plan: varlen.VarlenPlan | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """image (B, 3, H, W), tokens (B, context_length) → image, text and caption features and the logit scale.

        image: normalised, or uint8 from 0 to 255. text_plan: what `plan_texts` made of both texts' tokens, on the
        model's device; without it a plan is made here, for which the host has to wait for the device.
        The features are (B, embed_dim), fp32, of length 1; the logit scale is exp(parameter), a scalar.
        """
        both = self.encode_text(torch.cat([text_tokens, caption_tokens]), normalize=True, plan=text_plan)
        text_features, caption_features = both.split([len(text_tokens), len(caption_tokens)])
        image_features = self.encode_image(image, normalize=True)
        return image_features, text_features, caption_features, self.logit_scale.exp().reshape(())

    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Features (B, embed_dim) of images (B, 3, H, W), normalised or uint8; normalised features are fp32."""
        features = self._image_tower(image)
        return F.normalize(features.float(), dim=-1) if normalize else features

    def encode_text(
        self, text: torch.Tensor, normalize: bool = False, plan: varlen.VarlenPlan | None = None
    ) -> torch.Tensor:
        """Features (B, embed_dim) of token ids (B, context_length); normalised ones are fp32. plan: of these texts."""
        plan = plan or self.plan_texts(text)
        features = super().encode_text(text) if plan is None else self._unpadded_text(text, plan)
        return F.normalize(features.float(), dim=-1) if normalize else features

    def plan_texts(self, text: torch.Tensor) -> varlen.VarlenPlan | None:
        """How token ids (n, context_length) are unpadded, on their device; None if the tower takes them padded.

        For tokens on a CPU, as a data loader has them, nothing waits for a device.
        """
        if not len(text) or self._needs_padding():
            return None
        tower = self._text_tower()
        if tower is self:
            pool, end = self.text_pool_type, self.text_eos_id
        else:
            pool, end = tower.pool_type, tower.eos_id
        lengths = tokens.lengths(text) if pool == "argmax" else (text == end).int().argmax(dim=-1) + 1
        return varlen.plan_varlen(lengths, text.shape[1])

    def _image_tower(self, image: torch.Tensor) -> torch.Tensor:
        tower = self.visual
        if not self._image_runs_unpadded():
            return tower(_normalise(image, self.pixel_mean, self.pixel_std))
        compiled = self._compiled and self.training
        high, wide = tower.patch_size
        if image.shape[-2] % high or image.shape[-1] % wide or tower.conv1.bias is not None:
            x = tower._embeds(_normalise(image, self.pixel_mean, self.pixel_std))
        else:
            rows = compiled_function(_patch_rows, False) if compiled else _patch_rows
            x = rows(tower, image, self.pixel_mean, self.pixel_std)
            x = tower.ln_pre(_drop_patches(tower.patch_dropout, x))
        batch, patches, width = x.shape
        # The class token, the first of each image, is all that the usual pooling reads.
        only_class_token = tower.pool_type == "tok" and tower.attn_pool is None
        plan = varlen.plan_equal(batch, patches, x.device, pool_first=only_class_token)
        x = run_blocks(tower.transformer, x.reshape(-1, width), plan, causal=False, compiled=compiled)
        x = tower._pool(x.view(batch, -1, width))[0]
        return x if tower.proj is None else x @ tower.proj

    def _image_runs_unpadded(self) -> bool:
        return type(self.visual) is VisionTransformer and runs_unpadded(self.visual.transformer)

    def _text_tower(self) -> nn.Module:
        return self.text if isinstance(self, CustomTextCLIP) else self

    def _needs_padding(self) -> bool:
        """True where the text tower must see the full length: it attends to padding, or pools elsewhere."""
        tower = self._text_tower()
        if self.pad_texts or (isinstance(self, CustomTextCLIP) and type(tower) is not TextTransformer):
            return True
        pool = tower.text_pool_type if tower is self else tower.pool_type
        return (
            tower.attn_mask is None
            or getattr(tower, "cls_emb", None) is not None
            or pool not in ("argmax", "eos")
            or not runs_unpadded(tower.transformer)
        )

    def _unpadded_text(self, text: torch.Tensor, plan: varlen.VarlenPlan) -> torch.Tensor:
        tower = self._text_tower()
        dtype = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(text.reshape(-1)[plan.token_index]).to(dtype)
        x = x + F.embedding(plan.position, tower.positional_embedding).to(dtype)
        x = run_blocks(tower.transformer, x, plan, causal=True, compiled=self._compiled and self.training)
        x = take_rows(tower.ln_final(x), plan.batch_order)
        projection = tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    def train(self, mode: bool = True):
        super().train(mode)
        if self.freeze_bn_stats:
            for norm in frozen_batch_norms(self.visual):
                norm.eval()
        return self

    def compile_towers(self) -> None:
        """torch.compile from the next training pass on; in place, so that tensor names stay."""
        self._compiled = True
        if not self._image_runs_unpadded():
            self.visual.compile()

    @property
    def image_size(self) -> int:
        """Side of the square input image, in pixels."""
        size = self.visual.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def input_format(self) -> dict[str, Any]:
        """What a data loader makes of the data for this model: image size, mean and std; the texts' tokens and plan."""
        preprocess = self.config["preprocess_cfg"]
        return {
            "image_size": self.image_size,
            "mean": preprocess["mean"],
            "std": preprocess["std"],
            "context_length": self.context_length,
            "tokenizer": self.text_format.tokenizer,
            "vocab_size": self.vocab_size,
            "plan_texts": self.plan_texts,
        }

    def preprocess(self, is_train: bool = False):
        """open_clip's transform of a PIL image to a tensor (3, H, W): resize, centre crop, mean and std."""
        return image_transform_v2(PreprocessCfg(**self.config["preprocess_cfg"]), is_train=is_train)

    def tokenizer(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Token ids (n, context_length) int64 of n texts, or of one string, for this model. context_length: the
        model's, if None. UserError if its tokenizer is not here."""
        if self._tokenizer is None:
            self._tokenizer = create_tokenizer(self.config["model_cfg"], self.source_folder, self.may_download)
        return self._tokenizer(texts, context_length)

    @property
    def text_format(self) -> TextFormat:
        """Whose tokens, how many and of what vocabulary this model takes."""
        return text_format(self.config["model_cfg"])


class BiPathCLIP(BiPath, CLIP):
    """open_clip's CLIP with the bi-path forward pass."""


class BiPathCustomText(BiPath, CustomTextCLIP):
    """open_clip's CustomTextCLIP with the bi-path forward pass."""
