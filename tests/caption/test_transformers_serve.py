"""Captions from a real server, `transformers serve` with a tiny vision-language model, that is killed in the middle."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.helpers import tiny_chat_models as tiny
from tests.helpers.captioning import png, read_captions, write_tar

ROOT = Path(__file__).parents[2]
NEEDED = ("fastapi", "uvicorn", "openai", "accelerate", "transformers")
COUNT = 10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in NEEDED), reason="needs transformers[serving]"
    ),
]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """`transformers serve FOLDER`, as a user starts it."""

    def __init__(self, folder: Path, port: int) -> None:
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.log = (folder.parent / f"server-{time.time():.0f}.log").open("wb")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        self.health = f"http://127.0.0.1:{port}/health"

    def wait(self) -> None:
        until = time.monotonic() + 200
        while time.monotonic() < until:
            assert self.process.poll() is None, Path(self.log.name).read_text()[-2000:]
            try:
                with urllib.request.urlopen(self.health, timeout=5):
                    return
            except OSError:
                time.sleep(0.3)
        raise AssertionError(Path(self.log.name).read_text()[-2000:])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)
        self.log.close()


def command(folder: Path, port: int, output: str, *more: str) -> list[str]:
    given = ["--input", str(folder / "a.tar"), "--output", str(folder / output), "--prompt", "what is the image"]
    given += ["--captioner", f"openai:{folder / 'model'}", "--base-url", f"http://127.0.0.1:{port}/v1"]
    return [*given, "--max-new-tokens", "6", "--workers", "0", "--concurrency", "2", *more]


def part_lines(folder: Path) -> int:
    return sum(path.read_text().count("\n") for path in (folder / "c-parts").glob("captions-*.jsonl"))


def test_a_real_server_that_is_killed_and_started_again(tmp_path):
    """Its captions are those of the model in this process, and the same with and without the server's death."""
    from alip.caption.pipeline import main

    tiny.save_llava(tmp_path / "model")
    write_tar(tmp_path / "a.tar", {f"k{n}": png(20 * n, (40 + 8 * n, 60)) for n in range(COUNT)})
    port = free_port()
    servers = [Server(tmp_path / "model", port)]
    try:
        servers[-1].wait()
        script = [sys.executable, "-m", "alip.caption", *command(tmp_path, port, "c.jsonl", "--concurrency", "1")]
        run = subprocess.Popen(script, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 120
        while part_lines(tmp_path) < 2 and run.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        servers[-1].kill()
        done = part_lines(tmp_path)
        assert run.poll() is None and done < COUNT, "it was too quick to be interrupted"
        time.sleep(1.0)
        servers.append(Server(tmp_path / "model", port))
        _, shown = run.communicate(timeout=250)
        assert run.returncode == 0, shown
        assert "does not answer" in shown and "answers again, after" in shown
        assert main(command(tmp_path, port, "whole.jsonl")) == 0
    finally:
        for server in servers:
            server.kill()
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    captions = read_captions(tmp_path / "c.jsonl")
    assert len(captions) == COUNT and all(captions.values()) and len(set(captions.values())) > 1

    local = ["--input", str(tmp_path / "a.tar"), "--output", str(tmp_path / "local.jsonl"), "--captioner"]
    local += [str(tmp_path / "model"), "--prompt", "what is the image", "--max-new-tokens", "6", "--num-beams", "1"]
    assert main([*local, "--precision", "fp32", "--workers", "0"]) == 0
    # The server gets JPEGs of the images, so a caption may differ where the model is undecided.
    same = sum(captions[key] == caption for key, caption in read_captions(tmp_path / "local.jsonl").items())
    assert same > COUNT // 2
