"""--ray-address without --engine ray: one line, by every command that has the two flags."""

import importlib
import sys

import pytest

from alip.errors import UserError

SHORT = ["--output", "o", "--ray-address", "10.0.0.1:6379"]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("data2rec", ["--input", ".", *SHORT]),
        ("data2rec", ["--verify", "x/none", *SHORT[2:]]),
        ("alip.caption.pipeline", ["--input", ".", *SHORT]),
        ("alip.caption.pipeline", ["--merge", "p.jsonl", "--captioner", "blip", *SHORT]),
        ("alip.eval.gates.__main__", ["--checkpoint", "c", "--data", "d", *SHORT]),
        ("eval_zeroshot", ["--datasets", "cifar10", "--checkpoint", "c", *SHORT]),
        ("eval_retrieval", ["--dataset", "flickr30k", "--checkpoint", "c", *SHORT]),
    ],
)
@pytest.mark.parametrize("engine", [[], ["--engine", "local"]], ids=["no engine", "local"])
def test_an_address_without_the_engine(module, words, engine, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *words, *engine])
    with pytest.raises(
        UserError, match=r"^--ray-address is of no use without --engine ray: give both, or leave it out$"
    ):
        importlib.import_module(module).main()
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize("module", ["data2rec", "alip.caption.pipeline"])
def test_the_help_names_the_default(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(module).main()
    help_of_flag = " ".join(capsys.readouterr().out.split()).split("--ray-address HOST:PORT")[-1].split(" --")[0]
    assert "(default: auto)" in help_of_flag and "None" not in help_of_flag and "SUPPRESS" not in help_of_flag
