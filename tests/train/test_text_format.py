"""Shards hold CLIP's 77 tokens: a model with another tokenizer is turned down before it is built."""

import json
import time

import pytest

from alip.errors import UserError
from alip.model import bi_path
from tests.helpers.steps import TINY_MODEL
from tests.helpers.train_runs import command, start, train_here


@pytest.mark.parametrize(
    ("text_cfg", "message"),
    [
        ({"hf_tokenizer_name": "timm/other"}, "the model takes 77 of timm/other: it can be evaluated, but"),
        ({"context_length": 64}, "holds 77 tokens of clip-bpe-49408, the model takes 64 of clip-bpe-49408"),
    ],
)
def test_reported_before_a_model_is_built(text_cfg, message, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(bi_path, "build", lambda *_: pytest.fail("the model was built"))
    (tmp_path / "other.json").write_text(json.dumps(TINY_MODEL | {"text_cfg": TINY_MODEL["text_cfg"] | text_cfg}))
    with pytest.raises(UserError, match=message):
        train_here(*flags, "--model", tmp_path / "other.json", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_siglip_as_a_user_types_it(flags, tmp_path):
    begin = time.monotonic()
    done = start(command(*flags, "--model", "ViT-B-16-SigLIP", "--output", tmp_path / "run"))
    output, _ = done.communicate()
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and "Traceback" not in output and time.monotonic() - begin < 120
    assert "the model takes 64 of timm/ViT-B-16-SigLIP: it can be evaluated" in line
