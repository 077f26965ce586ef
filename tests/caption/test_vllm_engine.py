"""`--engine vllm` against a stand-in for the package: what it is asked for, and how.

(It has the signatures of vllm.LLM, LLM.chat and SamplingParams; no model runs in it. test_vllm_real.py has vLLM.)
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from alip.caption.captioners import CHAT_PROMPT
from alip.caption.pipeline import main
from alip.errors import UserError
from tests.helpers.captioning import png, write_tar


@dataclass
class SamplingParams:
    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0


@dataclass
class LLM:
    model: str
    dtype: str = "auto"
    limit_mm_per_prompt: dict = field(default_factory=dict)
    seed: int = 0
    max_model_len: int | None = None

    def __post_init__(self):
        if self.model == "broken":
            raise ValueError("Model architectures ['X']\nare not supported")
        sys.modules["vllm"].engines.append(self)
        self.asked = []

    def chat(self, messages, sampling_params=None, use_tqdm=True):
        assert len(messages) == len(sampling_params) and not use_tqdm
        self.asked += zip(messages, sampling_params)
        texts = [f"{chat[0]['content'][0]['image_pil'].size} {p.seed}\n" for chat, p in zip(messages, sampling_params)]
        return [SimpleNamespace(outputs=[SimpleNamespace(text=text)]) for text in texts]


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__, module.engines = LLM, SamplingParams, "9.9", []
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture
def run(tmp_path):
    write_tar(tmp_path / "a.tar", {f"k{n}": png(n, (40 + n, 300)) for n in range(5)})

    def start(*more, output="c.jsonl"):
        given = ["--input", str(tmp_path / "a.tar"), "--output", str(tmp_path / output), "--workers", "0"]
        given += ["--captioner", "qwen2.5-vl", "--engine", "vllm", "--batch-size", "2", *more]
        assert main(given) == 0
        return [json.loads(line) for line in (tmp_path / output).read_text().splitlines()]

    return start


def test_greedy_captions(vllm, run, tmp_path):
    lines = run("--option", "max_model_len=2048", "--precision", "bf16", "--max-side", "150")
    assert [line["caption"] for line in lines] == [f"({20 + n // 2}, 150) None" for n in range(5)]
    (engine,) = vllm.engines
    assert (engine.model, engine.dtype, engine.max_model_len) == ("Qwen/Qwen2.5-VL-3B-Instruct", "bfloat16", 2048)
    assert engine.limit_mm_per_prompt == {"image": 1}
    (message,), parameters = engine.asked[0]
    assert message["role"] == "user" and message["content"][1] == {"type": "text", "text": CHAT_PROMPT}
    assert parameters == SamplingParams(temperature=0.0, max_tokens=30)
    record = json.loads((tmp_path / "c-run.json").read_text())
    assert record["settings"]["engine"] == "vllm" and record["metadata"]["captioner"]["vllm"] == "9.9"


def test_sampled_captions_have_a_seed_each(vllm, run):
    lines = run("--captions-per-image", "2", "--temperature", "0.6", "--top-k", "40", "--seed", "3")
    assert len({caption.split()[-1] for line in lines for caption in line["captions"]}) == 10
    parameters = [parameters for _, parameters in vllm.engines[0].asked]
    assert all((p.temperature, p.top_k, p.top_p) == (0.6, 40, 1.0) and p.seed is not None for p in parameters)
    again = run("--captions-per-image", "2", "--temperature", "0.6", "--top-k", "40", "--seed", "3", output="d.jsonl")
    assert again == lines


def test_mistakes(vllm, run, monkeypatch):
    with pytest.raises(UserError, match=r"vLLM cannot start 'broken': Model architectures \['X'\] are not supported"):
        run("--captioner", "broken")
    with pytest.raises(UserError, match=r"vLLM cannot start .*unexpected keyword argument 'speed'"):
        run("--option", "speed=3")
    with pytest.raises(UserError, match="no beam search"):
        run("--num-beams", "2")
    with pytest.raises(UserError, match="--engine vllm is for Hugging Face models"):
        run("--captioner", "coca")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="needs the package vllm"):
        run()


ORPHAN = """
import subprocess, sys, time
from alip.caption.vllm_engine import end_with_this_process
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
end_with_this_process([child.pid])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_engine_ends_with_a_killed_run(number):
    run = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    status = Path("/proc") / run.stdout.readline().strip() / "stat"
    assert status.read_text().rpartition(")")[2].split()[0] in "RS"
    run.send_signal(number)
    run.communicate()
    until = time.monotonic() + 20
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
