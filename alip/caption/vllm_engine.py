"""Vision-language models through vLLM in this process: continuous batching on a GPU, without a server."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

from PIL import Image

from alip.caption.captioners import CHAT_PROMPT, Decoding
from alip.caption.preprocessing import shrink
from alip.errors import UserError

_DTYPES = {"auto": "auto", "amp_bf16": "bfloat16", "amp": "float16", "fp32": "float32"}


class VllmCaptioner:
    """A chat model in vLLM's `LLM`.

    model_name: a Hugging Face name or a local folder. prompt: the question; None: CHAT_PROMPT. precision: a name of
    alip.model.precision. max_side: larger images are shrunk to it. options: further arguments of `vllm.LLM`, such as
    max_model_len, tensor_parallel_size, gpu_memory_utilization. UserError without vLLM, or if it does not start.
    """

    takes_seeds = True

    def __init__(
        self,
        model_name: str,
        prompt: str | None,
        decoding: Decoding,
        precision: str,
        max_side: int,
        options: dict[str, Any],
    ) -> None:
        if decoding.num_beams > 1:
            raise UserError("--engine vllm has no beam search here: leave --num-beams out, or set it to 1")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for captions
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                "--engine vllm needs the package vllm, in an environment of its own (it pins another torch): pip "
                f"install vllm ({' '.join(str(error).split())}); or serve the model and use --captioner openai:MODEL"
            ) from error
        self._parameters = vllm.SamplingParams
        self.prompt, self.decoding = prompt or CHAT_PROMPT, decoding
        self.prepare, self.short_side = partial(shrink, max_side=max_side), max_side
        try:
            self.engine = vllm.LLM(
                model=model_name,
                dtype=_DTYPES[precision],
                limit_mm_per_prompt={"image": 1},
                seed=decoding.seed,
                **options,
            )
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"vLLM cannot start {model_name!r}: {reason}") from error
        self._guard = end_with_this_process(process.pid for process in multiprocessing.active_children())
        self.metadata = {"engine": "vllm", "vllm": getattr(vllm, "__version__", None), "prompt": self.prompt}

    def caption(self, batch: list[Image.Image], seeds: list[int] | None = None) -> list[str]:
        """batch: n images from `prepare`; seeds: of sampling, one for each. Returns n strings."""
        conversations = [self._conversation(image) for image in batch]
        parameters = [self._sampling(seed) for seed in seeds or [None] * len(batch)]
        outputs = self.engine.chat(conversations, parameters, use_tqdm=False)
        return [output.outputs[0].text.strip() for output in outputs]

    def close(self) -> None:
        """Ends the engine and its processes."""
        core = getattr(getattr(self.engine, "llm_engine", None), "engine_core", None)
        if core is not None:
            core.shutdown()
        self._guard.kill()
        self._guard.communicate()

    def _conversation(self, image: Image.Image) -> list[dict[str, Any]]:
        content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": self.prompt}]
        return [{"role": "user", "content": content}]

    def _sampling(self, seed: int | None) -> Any:
        """vLLM's parameters; temperature 0 is greedy."""
        decoding = self.decoding
        sampled = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k or -1}
        return self._parameters(
            **(sampled if decoding.sample else {"temperature": 0.0}),
            max_tokens=decoding.max_new_tokens,
            min_tokens=decoding.min_new_tokens,
            repetition_penalty=decoding.repetition_penalty,
            seed=seed,
        )


# Waits for the end of its standard input, which comes with the death of the process that started it.
_GUARD = """
import os, signal, sys
sys.stdin.read()
for pid in sys.argv[1:]:
    try:
        os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""


def end_with_this_process(pids: Iterable[int]) -> subprocess.Popen:
    """Starts a small process that kills `pids` when this process has ended, in whatever way. vLLM's engine outlives a
    killed parent, and would keep the GPU's memory from the next run."""
    command = [sys.executable, "-I", "-S", "-c", _GUARD, *map(str, pids)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
