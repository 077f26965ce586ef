"""Imports a user's captioner file; apart from captioners.py, so that worker processes need not import torch."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from alip.errors import UserError
from alip.files import real_path


def load_captioner_file(path: str | Path) -> ModuleType:
    """Imports a captioner file under a name of its own, so that worker processes can unpickle what it defines.

    The file runs with the user's rights, like any script that is named on a command line.
    """
    path = real_path(path)
    name = f"alip_captioner_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: a captioner file ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
