"""The tensors of a TorchScript archive (OpenAI's CLIP releases), read without running any of the code in it.

Such an archive is a zip file: `code/` holds the program, which is never opened; `data.pkl` the module tree as a pickle;
`data/N` the numbers. The pickle is read with every global name replaced by an inert stand-in, so nothing is imported or
called but what this file defines; any other name is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from alip.errors import UserError

_LARGEST_TREE = 64 << 20  # bytes of data.pkl; OpenAI's largest has under 1 MB
_DEEPEST = 64  # nested modules
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """True for a zip archive with TorchScript's parts."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except Exception:  # no zip archive, or a damaged one, which is torch.load's to report
        return False
    return "data.pkl" in names and "constants.pkl" in names


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of the module tree by their dotted names, on the CPU. Raises UserError for anything else than tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))[: -len("data.pkl")]
            tree = archive.getinfo(root + "data.pkl")
            if tree.file_size > _LARGEST_TREE:
                raise ValueError(f"data.pkl has {tree.file_size} bytes")
            if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            module = _TreeReader(archive, root, archive.read(tree)).load()
        state: dict[str, torch.Tensor] = {}
        _collect(module, "", state, 0)
    except Exception as error:  # whatever a damaged zip, pickle or tensor description leads to
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: a TorchScript archive whose tensors cannot be read ({reason}); download it again, or save the "
            "model's state dict alone, as .safetensors"
        ) from error
    if not state:
        raise UserError(f"{path}: a TorchScript archive without tensors; give the weights")
    return state


def _collect(module: Any, prefix: str, state: dict[str, torch.Tensor], depth: int) -> None:
    """Adds a module's tensors, and those of its submodules, under their dotted names."""
    if depth > _DEEPEST:
        raise ValueError("its modules are nested too deeply")
    if not isinstance(getattr(module, "attributes", None), dict):
        raise ValueError("data.pkl holds no module")
    for name, value in module.attributes.items():
        if isinstance(value, torch.Tensor):
            state[f"{prefix}{name}"] = value
        elif hasattr(value, "attributes"):
            _collect(value, f"{prefix}{name}.", state, depth + 1)


class _TreeReader(pickle.Unpickler):
    """Reads data.pkl: every global name in it becomes a stand-in made for this one archive, and none is imported."""

    def __init__(self, archive: zipfile.ZipFile, root: str, content: bytes):
        super().__init__(io.BytesIO(content))
        self._archive, self._root = archive, root
        self._storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):

            class Module:
                def __setstate__(self, attributes):
                    self.attributes = attributes

            return Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _tensor(storage, offset, size, stride)
        if (module, name) == ("collections", "OrderedDict"):  # hooks, always empty
            return lambda: {}
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return lambda value, *_: value
        raise ValueError(f"data.pkl asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """A storage: all numbers of one file `data/KEY`."""
        _, dtype, key, _, _ = pid
        if key not in self._storages:
            info = self._archive.getinfo(f"{self._root}data/{key}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"data/{key} is compressed")
            self._storages[key] = torch.frombuffer(bytearray(self._archive.read(info)), dtype=dtype)
        return self._storages[key]


def _tensor(storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """A view of a storage; as_strided itself refuses what reaches past its end."""
    if min((*size, *stride, offset), default=0) < 0:
        raise ValueError("a tensor of negative size")
    return storage.as_strided(size, stride, offset)
