"""Stand-ins for packages that a borrowed GPU machine may lack, so that benchmarks/gpu.py runs wherever torch does.

`install()` looks for each package and replaces those that are missing: open_clip by the plain ViT and text transformer
below, with the same tensor names (tests/test_benchmark_gpu.py compares them with the real ones); the others, of which a
step uses nothing, by modules without content. What was replaced is returned, and belongs into the report.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import math
import sys
from collections import OrderedDict
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F

# Imported by alip's model and training code, but not used by a step of a plain CLIP model.
UNUSED = ("huggingface_hub", "safetensors", "jsonschema", "timm", "ftfy", "regex", "tensorboard", "tqdm", "sklearn")


def install() -> list[str]:
    """Replaces what is missing; the names of it."""
    missing = [name for name in ("open_clip", *UNUSED) if importlib.util.find_spec(name) is None]
    for name in missing:
        if name == "open_clip":
            install_open_clip()
    sys.meta_path.append(_Finder({name for name in missing if name != "open_clip"}))
    if "jsonschema" in missing:
        import alip.schema

        alip.schema.check = lambda *arguments, **options: None  # the configurations of benchmarks/gpu.py are sound
    return missing


def install_open_clip() -> None:
    """open_clip and the modules of it that alip.model imports."""
    contents = {
        "open_clip": {"list_models": lambda: [], "__version__": "stand-in"},
        "open_clip.model": {
            "CLIP": CLIP,
            "CustomTextCLIP": CustomTextCLIP,
            "resize_pos_embed": None,
            "set_model_preprocess_cfg": lambda model, cfg: None,
        },
        "open_clip.modified_resnet": {"ModifiedResNet": type("ModifiedResNet", (nn.Module,), {})},
        "open_clip.transform": {
            "PreprocessCfg": PreprocessCfg,
            "image_transform_v2": None,
            "merge_preprocess_dict": lambda cfg, changes: {**vars(cfg), **changes},
        },
        "open_clip.transformer": {
            "PatchDropout": PatchDropout,
            "ResidualAttentionBlock": ResidualAttentionBlock,
            "TextTransformer": TextTransformer,
            "Transformer": Transformer,
            "VisionTransformer": VisionTransformer,
        },
    }
    for name, values in contents.items():
        module = sys.modules[name] = ModuleType(name)
        vars(module).update(values)


class _Anything:
    """Can be called, subclassed, iterated over, and has every attribute."""

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments, **options) -> _Anything:
        return self

    def __iter__(self):
        return iter(())

    def __mro_entries__(self, bases) -> tuple[type, ...]:
        return (Exception,)


class _Empty(ModuleType):
    """A module with every name, and submodules of every name."""

    __path__: list[str] = []  # noqa: RUF012 (what makes a module a package)

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives empty modules for these packages and all below them."""

    def __init__(self, packages: set[str]):
        self.packages = packages

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


class PatchDropout(nn.Identity):
    """Never drops."""

    prob = 0.0


class ResidualAttentionBlock(nn.Module):
    """A pre-norm block: attention, then an MLP of four times the width with GELU."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1, self.ls_2 = nn.Identity(), nn.Identity()
        layers = (("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width)))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Blocks one after the other."""

    batch_first = True
    grad_checkpointing = False

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads) for _ in range(layers))
        for block in self.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)

    def get_cast_dtype(self) -> torch.dtype:
        """The type of the embeddings."""
        return self.resblocks[0].mlp.c_fc.weight.dtype

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    """Patches and a class token, whose output is projected."""

    pool_type, attn_pool = "tok", None

    def __init__(self, image_size: int, patch: int, width: int, layers: int, heads: int, out: int):
        super().__init__()
        self.image_size, self.patch_size = (image_size, image_size), (patch, patch)
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        rows = (image_size // patch) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(rows, width) * width**-0.5)
        self.patch_dropout = PatchDropout()
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.proj = nn.Parameter(torch.randn(width, out) * width**-0.5)

    def _pool(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.ln_post(x)
        return x[:, 0], x[:, 1:]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self._pool(self.transformer(self.ln_pre(x)))[0] @ self.proj


class TextTransformer(nn.Module):
    """Named by alip.model; no model here has one."""


class CLIP(nn.Module):
    """Both towers, as open_clip's ViT-B-32 has them."""

    text_pool_type, text_eos_id, logit_bias = "argmax", None, None

    def __init__(self, embed_dim: int, vision_cfg: dict, text_cfg: dict, quick_gelu: bool = False):
        super().__init__()
        v, t = vision_cfg, text_cfg
        heads = v["width"] // v.get("head_width", 64)
        self.visual = VisionTransformer(v["image_size"], v["patch_size"], v["width"], v["layers"], heads, embed_dim)
        self.context_length, self.vocab_size = t["context_length"], t["vocab_size"]
        self.transformer = Transformer(t["width"], t["layers"], t["heads"])
        self.token_embedding = nn.Embedding(t["vocab_size"], t["width"])
        self.positional_embedding = nn.Parameter(torch.randn(t["context_length"], t["width"]) * 0.01)
        self.ln_final = nn.LayerNorm(t["width"])
        self.text_projection = nn.Parameter(torch.randn(t["width"], embed_dim) * t["width"] ** -0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        mask = torch.full((t["context_length"],) * 2, -torch.inf).triu(1)
        self.register_buffer("attn_mask", mask, persistent=False)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """For both towers."""
        self.visual.transformer.grad_checkpointing = self.transformer.grad_checkpointing = enable

    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        x = self.transformer(self.token_embedding(text) + self.positional_embedding, self.attn_mask)
        x = self.ln_final(x)[torch.arange(len(text), device=text.device), text.argmax(dim=-1)] @ self.text_projection
        return F.normalize(x, dim=-1) if normalize else x


class CustomTextCLIP(nn.Module):
    """Named by alip.model; no model here is one."""


@dataclass
class PreprocessCfg:
    """How images are prepared."""

    size: int = 224
    mode: str = "RGB"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
