"""Whether towers are compiled: the flag's three values on machines with and without what torch.compile needs."""

import pytest
import torch

from alip.errors import UserError
from alip.model import compilation
from alip.model.compilation import resolve_compile

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with these compilers, Triton, Python's headers and a GPU of this capability."""

    def make(compilers=("gcc", "g++"), triton=True, capability=(9, 0), headers=True):
        monkeypatch.setattr(compilation.shutil, "which", lambda name: name if name in compilers else None)
        monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: triton or None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        if headers:
            (tmp_path / "Python.h").touch()
        monkeypatch.setattr(compilation.sysconfig, "get_path", lambda *names: str(tmp_path))
        for name in ("CC", "CXX"):
            monkeypatch.delenv(name, raising=False)

    return make


def test_auto_compiles_on_a_gpu_that_can(machine):
    machine()
    assert resolve_compile("auto", GPU) and not resolve_compile("auto", CPU)
    assert resolve_compile("on", GPU) and resolve_compile("on", CPU)
    assert not resolve_compile("off", GPU)


@pytest.mark.parametrize(
    "lacks, words",
    [
        ({"compilers": ()}, "compiler"),
        ({"headers": False}, "Python.h"),
        ({"triton": False}, "triton"),
        ({"capability": (6, 1)}, "compute capability"),
    ],
)
def test_where_it_cannot_work_auto_is_off_and_on_is_one_line(machine, lacks, words):
    machine(**lacks)
    assert not resolve_compile("auto", GPU)
    with pytest.raises(UserError, match=words):
        resolve_compile("on", GPU)


def test_a_compiler_named_by_the_environment_counts(machine, monkeypatch):
    machine(compilers=("my-c++",))
    with pytest.raises(UserError, match="CXX"):
        resolve_compile("on", CPU)
    monkeypatch.setenv("CXX", "my-c++")
    assert resolve_compile("on", CPU)
