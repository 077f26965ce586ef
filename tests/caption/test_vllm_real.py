"""`--engine vllm` with the package itself, where it is installed: its captions are those of transformers.

A CPU build does. vLLM pins its torch, so this runs in an environment of its own: see docs/captioners.md.
"""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from alip.caption.captioners import Decoding
from tests.helpers import tiny_chat_models as tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="needs the package vllm"),
]


def test_captions_equal_those_of_transformers(tmp_path, monkeypatch):
    import torch

    from alip.caption.choice import CaptionerChoice, open_captioner

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    folder = str(tiny.save_qwen2_5_vl(tmp_path / "model", width=128))
    values = np.random.default_rng(0).integers(0, 255, (8, 4, 4, 3), dtype=np.uint8)
    images = [Image.fromarray(value).resize((60 + 9 * n, 80), Image.NEAREST) for n, value in enumerate(values)]
    decoding = Decoding(num_beams=1, max_new_tokens=8)
    options = {"enforce_eager": "true", "max_model_len": "512", "max_num_seqs": "8"}
    captions = []
    for engine, more in (("transformers", {}), ("vllm", options)):
        choice = CaptionerChoice(folder, decoding=decoding, precision="fp32", engine=engine, options=more)
        captioner = open_captioner(choice, torch.device("cpu"))
        captions.append(captioner.caption([captioner.prepare(image) for image in images]))
    captioner.close()
    assert captions[0] == captions[1] and len(set(captions[0])) > 4
