"""Model configurations, weights files and run metadata with faults: read as they are meant, or refused in one line."""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from alip.checkpoint import atomic_save, export, load_model, read_weights
from alip.model import config_schema, create_model
from alip.model.weights import weights_hash
from tests.fuzz import Target
from tests.fuzz.mutations import damage, json_bytes, mutated_json, odd_value

_MEMORY = 400 << 20  # what the machine is said to have: models above it must be refused before they are built
VIT = {
    "embed_dim": 8,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "mlp_ratio": 2.0},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "pool_type": "argmax",
    },
}
CUSTOM = {
    "embed_dim": 8,
    "custom_text": True,
    "init_logit_scale": 2.0,
    "init_logit_bias": -10,
    "vision_cfg": {
        **VIT["vision_cfg"],
        **{"patch_dropout": 0.1, "pool_type": "avg", "attentional_pool": False, "no_ln_pre": True},
        **{"ls_init_value": 0.1, "final_ln_after_pool": True, "pos_embed_type": "learnable"},
    },
    "text_cfg": {
        **VIT["text_cfg"],
        **{"proj_bias": True, "no_causal_mask": True, "pool_type": "last", "embed_cls": False, "pad_id": 0},
        **{"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}, "tokenizer_kwargs": {"clean": "lower"}},
    },
}
RESNET = VIT | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}
TIMM = VIT | {
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "embed_dim": 64,
}
PREPROCESS = {
    "size": 32,
    "mode": "RGB",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


@lru_cache(maxsize=1)
def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model({"model_cfg": copy.deepcopy(VIT), "preprocess_cfg": copy.deepcopy(PREPROCESS)}).eval()


@lru_cache(maxsize=1)
def _exported() -> dict[str, dict[str, bytes]]:
    """The files of an exported model, by form."""
    import tempfile

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in ("open_clip", "hf"):
            export.export(_model(), form, Path(folder) / form)
            found[form] = {path.name: path.read_bytes() for path in (Path(folder) / form).iterdir()}
    return found


# What reads them.


def _quietly(case: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with warnings.catch_warnings(), mock.patch.object(config_schema, "memory_bytes", return_value=_MEMORY):
            warnings.simplefilter("ignore")
            return case()

    return run


def _use(model: torch.nn.Module) -> None:
    """Encodes two images and two texts: a model that was built has to work."""
    from PIL import Image

    model.eval()
    if model.image_size <= 512:
        images = torch.stack([model.preprocess()(Image.new("RGB", (70, 50), colour)) for colour in ("red", "blue")])
        with torch.no_grad():
            features = model.encode_image(images)
        assert features.shape == (2, model.config["model_cfg"]["embed_dim"]), features.shape
    if model.text_format.is_clip:
        rows = model.tokenizer(["a", "a dog " * 50])
        with torch.no_grad():
            features = model.encode_text(rows)
        assert features.shape == (2, model.config["model_cfg"]["embed_dim"]), features.shape
    json.dumps(model.config)


def _build(path: Path) -> None:
    model = create_model(path)
    _use(model)
    assert create_model(model.config).config == model.config


def _configuration(generator: random.Random, folder: Path) -> Callable[[], object]:
    base = generator.choice([VIT, CUSTOM, RESNET, TIMM])
    whole = {"model_cfg": base, "preprocess_cfg": PREPROCESS} if generator.random() < 0.5 else base
    path = folder / "model.json"
    path.write_bytes(json_bytes(generator, whole))
    return _quietly(partial(_build, path))


def _folder_with_faults(form: str, names: tuple[str, ...], generator: random.Random, folder: Path) -> Path:
    files = _exported()[form]
    faulty = generator.choice(names)
    for name, content in files.items():
        if name == faulty:
            content = json_bytes(generator, json.loads(content))
        (folder / name).write_bytes(content)
    return folder


def _folder(form: str, names: tuple[str, ...], generator: random.Random, folder: Path) -> Callable[[], object]:
    _folder_with_faults(form, names, generator, folder)
    return _quietly(lambda: _use(load_model(folder)))


def _shards(generator: random.Random, folder: Path) -> Callable[[], object]:
    files = _exported()["open_clip"]
    (folder / "open_clip_config.json").write_bytes(files["open_clip_config.json"])
    state = _model().state_dict()
    weight_map = {}
    for number in range(2):
        name = f"open_clip_model-{number + 1:05}-of-00002.safetensors"
        part = dict(list(state.items())[number::2])
        save_file({key: value.contiguous() for key, value in part.items()}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    path = folder / "open_clip_model.safetensors.index.json"
    path.write_bytes(json_bytes(generator, index))
    return _quietly(partial(_same_as_saved, folder))


def _same_as_saved(path: Path) -> None:
    """What is read without an error has to be what was written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model(path, None if path.is_dir() else VIT)
    for name, value in _model().state_dict().items():
        assert torch.equal(found.state_dict()[name], value), f"{name} is another one than was saved"


def _odd_tensor(value: torch.Tensor, generator: random.Random) -> Any:
    return generator.choice(
        [
            lambda: torch.full_like(value, torch.nan),
            lambda: value / 0,
            lambda: value.half(),
            lambda: value.bfloat16(),
            lambda: value.double(),
            lambda: value.long(),
            lambda: value.bool(),
            lambda: value.to(torch.complex64),
            lambda: value.to_sparse(),
            lambda: value.to("meta"),
            lambda: value.reshape(-1),
            lambda: value[..., None],
            lambda: value[:0] if value.ndim else value,
            lambda: value.T if value.ndim == 2 else value.expand(2, *value.shape),
            lambda: torch.zeros(1).expand(10**5, 10**5),
            lambda: torch.nn.Parameter(value),
            lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
            lambda: torch.nested.nested_tensor([value.reshape(-1), value.reshape(-1)[:1]]),
            lambda: value.tolist() if value.numel() < 1000 else [1],
            lambda: {"weight": value},
            lambda: None,
            lambda: "tensor",
            lambda: 3.0,
        ]
    )()


def _is_plain(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    return value.is_floating_point() and not value.is_meta and not value.is_nested and value.numel() < 10**8


def _odd_state(generator: random.Random) -> dict[Any, Any]:
    state = dict(_model().state_dict())
    for _ in range(generator.choice([1, 1, 2, 5])):
        name = generator.choice(list(state))
        action = generator.randrange(8)
        if action == 0:
            del state[name]
        elif action == 1:
            state[generator.choice(["", "x", f"{name}.y", f"module.{name}", "a" * 3000, 5, None, ("a",)])] = state[name]
        elif action == 2:
            state = {f"{generator.choice(['module.', '_orig_mod.', 'x.'])}{key}": value for key, value in state.items()}
        elif _is_plain(state[name]):
            state[name] = _odd_tensor(state[name], generator)
    return state


def _weights_content(generator: random.Random, folder: Path) -> Callable[[], object]:
    """A file of torch.save with an odd state dict, bare, nested or as a checkpoint with odd parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = _odd_state(generator) if generator.random() < 0.7 else dict(_model().state_dict())
        form = generator.randrange(4)
        checkpoint = {"format": "alip-checkpoint", "version": 1, "model": state, "ema": None, "step": 1, "samples": 2}
        checkpoint |= {"model_config": copy.deepcopy(_model().config)}
        content: Any = [state, {"state_dict": state, "epoch": 3}, {"model": state}, checkpoint][form]
        if form == 3 and generator.random() < 0.7:
            key = generator.choice([key for key in checkpoint if key != "format"])
            if key == "model_config" and generator.random() < 0.7:
                content[key] = mutated_json(generator, content[key])
            else:
                content[key] = generator.choice([odd_value(generator), [state], {}, {"a": 1}, _odd_state(generator)])
        path = folder / generator.choice(["w.pt", "w.pth", "pytorch_model.bin"])
        torch.save(content, path, _use_new_zipfile_serialization=generator.random() > 0.1)
    name = generator.choice([None, VIT])
    return _quietly(lambda: _use(load_model(path, name)))


def _weights_bytes(suffix: str, generator: random.Random, folder: Path) -> Callable[[], object]:
    """A whole file with damaged bytes. The zip's check sums show every change; safetensors has none."""
    path = folder / f"w{suffix}"
    state = _model().state_dict()
    if suffix == ".pt":
        atomic_save(state, path)
        path.write_bytes(damage(generator, path.read_bytes()))
        return _quietly(partial(_same_as_saved, path))
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    content = path.read_bytes()
    if generator.random() < 0.8:  # the header: length, then JSON
        size = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:size])
        text = json.dumps(mutated_json(generator, header)).encode("utf-8", "surrogatepass")
        length = len(text).to_bytes(8, "little") if generator.random() < 0.9 else generator.randbytes(8)
        path.write_bytes(length + text + content[size:])
    else:
        path.write_bytes(damage(generator, content))
    return _quietly(lambda: _use(load_model(path, VIT)))


class _Archive(torch.nn.Module):
    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)
        self.inner = torch.nn.Linear(3, 2)
        self.register_buffer("input_resolution", torch.tensor(32))

    def forward(self, x: torch.Tensor):
        return self.inner(x)


@lru_cache(maxsize=1)
def _archive() -> tuple[bytes, dict[str, torch.Tensor]]:
    import tempfile

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(_Archive(torch.randn(4, 5).half()))
        module.save(f"{folder}/a.pt")
        return Path(f"{folder}/a.pt").read_bytes(), module.state_dict()


def _torchscript(generator: random.Random, folder: Path) -> Callable[[], object]:
    """An archive with damaged bytes, or with a damaged pickle under right check sums."""
    import zipfile

    content, state = _archive()
    path = folder / "a.pt"
    if generator.random() < 0.4:
        path.write_bytes(damage(generator, content))
        return lambda: _same_tensors(path, state)
    original = folder / "original"
    original.write_bytes(content)
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, damage(generator, data) if name.endswith("/data.pkl") else data)
    original.unlink()
    return lambda: read_weights(path)


def _same_tensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    found = read_weights(path).state
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def _run_metadata(generator: random.Random, folder: Path) -> Callable[[], object]:
    """run.json, results.json or model.json of a run that is exported."""
    run = folder / "RUN"
    model = _model()
    content = {"format": "alip-checkpoint", "version": 1, "model": model.state_dict(), "ema": None}
    content |= {"model_config": model.config, "step": 7, "samples": 448}
    atomic_save(content, run / "checkpoints" / "step-00000007.pt")
    about = {
        "arguments": {"lr": 0.001, "model": "m", "crop_area": [0.5, 1.0], "ema": None},
        "world_size": 2,
        "data": {"name": "pairs", "samples": 64, "fingerprint": "abc"},
    }
    entry = {"task": "retrieval", "dataset": "tiny", "protocol": "standard", "numbers": {"image_to_text_R@1": 12.5}}
    entry |= {"precision": "fp32", "given": {"prompts": "p.json"}, "weights_hash": weights_hash(model)}
    files = {"run.json": about, "results/results.json": {"format": "alip-results", "entries": [entry]}}
    faulty = generator.choice(list(files))
    (run / "results").mkdir()
    for name, value in files.items():
        (run / name).write_bytes(json_bytes(generator, value) if name == faulty else
                                 json.dumps(value).encode())  # fmt: skip

    def run_case() -> None:
        loaded = load_model(run)
        export.export(loaded, "open_clip", folder / "OUT", run=run, metadata=loaded.metadata, overwrite=True)

    return _quietly(run_case)


TARGETS = [
    Target("model: open_clip configuration", _configuration),
    Target("model: open_clip folder", partial(_folder, "open_clip", ("open_clip_config.json",))),
    Target("model: Hugging Face folder", partial(_folder, "hf", ("config.json", "config.json", "vocab.json"))),
    Target("model: image processor", partial(_folder, "hf", ("preprocessor_config.json",))),
    Target("model: index of shards", _shards),
    Target("model: tensors", _weights_content),
    Target("model: bytes of .pt", partial(_weights_bytes, ".pt")),
    Target("model: safetensors", partial(_weights_bytes, ".safetensors")),
    Target("model: TorchScript archive", _torchscript),
    Target("model: run metadata", _run_metadata),
]
