"""OpenAI's TorchScript archives: their tensors are read, their code never runs."""

import warnings

import pytest
import torch

from alip import checkpoint
from alip.errors import UserError
from alip.model import create_model
from alip.model.torchscript import is_torchscript, read_torchscript


class Archive(torch.nn.Module):
    """A model as OpenAI's archives hold it: fp16 weights, with three numbers as buffers and a mask as an attribute."""

    def __init__(self, model):
        super().__init__()
        for name, value in model.state_dict().items():
            owner, _, last = name.rpartition(".")
            module = self
            for part in owner.split(".") if owner else ():
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, torch.nn.Parameter(value.half(), requires_grad=False))
        for name, number in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(number))

    def forward(self, x: torch.Tensor):
        return x


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("ViT-S-32-alt").eval()
    path = tmp_path_factory.mktemp("archive") / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Archive(model)).save(path)
    return path, model


def test_torchscript_archive_of_openai(archive):
    path, model = archive
    assert is_torchscript(path)
    loaded = checkpoint.load_model(path)
    assert loaded.config["model_cfg"]["quick_gelu"] is True, "all of OpenAI's models have it"
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float()), name
    with pytest.raises(UserError, match="trained with QuickGELU"):
        checkpoint.load_weights(create_model("ViT-S-32-alt"), path)


def test_the_same_tensors_as_torch_jit(archive):
    path, _ = archive
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.jit.load(path).state_dict()
    ours = read_torchscript(path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) and ours[name].dtype == value.dtype for name, value in theirs.items())


def test_code_in_an_archive_does_not_run(tmp_path, monkeypatch):
    import pickle
    import zipfile

    class Bomb:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'exploded'}",)

    for number, content in enumerate(
        (pickle.dumps(Bomb()), b"cposix\nsystem\n(S'true'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.")
    ):
        path = tmp_path / f"{number}.pt"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", content)
            file.writestr("a/constants.pkl", b"")
        with pytest.raises(UserError, match=r"TorchScript archive whose tensors cannot be read \(data\.pkl asks for"):
            checkpoint.read_weights(path)
    assert not (tmp_path / "exploded").exists()
