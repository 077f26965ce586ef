"""A model behind an endpoint as a captioner: images become JPEG data URLs, prompts become chat messages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from PIL import Image

from alip.caption.captioners import CHAT_PROMPT, Decoding
from alip.caption.endpoint.client import Body, Endpoint, to_stderr
from alip.caption.endpoint.settings import EndpointSettings
from alip.caption.preprocessing import shrink
from alip.errors import UserError

JPEG_QUALITY = 90
_SEEDS = 2**31  # servers take a signed 32-bit number


class EndpointCaptioner:
    """Captions from an OpenAI-compatible server, many at a time.

    prompt: the question that is asked about each image; None: CHAT_PROMPT. max_side: larger images are shrunk to it.
    report(line): called at outages.
    """

    takes_seeds = True

    def __init__(
        self,
        settings: EndpointSettings,
        prompt: str | None,
        decoding: Decoding,
        max_side: int,
        report: Callable[[str], None] = to_stderr,
    ) -> None:
        self.prompt = prompt or CHAT_PROMPT
        self.prepare, self.short_side = JpegUrl(max_side), max_side
        self._fields = request_fields(decoding)
        self._model = settings.model
        test = self._body(self.prepare(Image.new("RGB", (64, 64), (127, 127, 127))), 0 if decoding.sample else None)
        self.endpoint = Endpoint(settings, test, report)
        self.ahead = 4 * settings.concurrency  # a slow reply does not hold up the others
        self.patience = settings.request_timeout
        self.metadata = {"model": settings.model, "base_url": settings.base_url, "prompt": self.prompt}

    def submit(self, image_url: str, seed: int | None = None) -> Future:
        """Starts the request for one image, from `prepare`; the future gives an Answer or raises Refusal, UserError."""
        return self.endpoint.ask(self._body(image_url, seed))

    def caption(self, batch: list[str], seeds: list[int] | None = None) -> list[str]:
        """The captions of a batch of `prepare`d images."""
        futures = [self.submit(url, seed) for url, seed in zip(batch, seeds or [None] * len(batch))]
        return [future.result().text for future in futures]

    def usage(self) -> dict[str, float]:
        """Requests, tokens and cost so far."""
        return self.endpoint.usage()

    def close(self) -> None:
        """Ends all requests."""
        self.endpoint.close()

    def _body(self, image_url: str, seed: int | None) -> Body:
        content = [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": self.prompt}]
        return chat_body(self._model, content, self._fields, seed)


class JpegUrl:
    """PIL image → JPEG data URL. Runs in worker processes. max_side: in pixels."""

    def __init__(self, max_side: int) -> None:
        self.max_side = max_side

    def __call__(self, image: Image.Image) -> str:
        out = io.BytesIO()
        shrink(image, self.max_side).save(out, "JPEG", quality=JPEG_QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def request_fields(decoding: Decoding) -> Body:
    """The fields of a request that say how to generate. The last three are not OpenAI's, but vLLM's and SGLang's: they
    are sent only if they were asked for."""
    if decoding.num_beams > 1:
        raise UserError("a server has no beam search: leave --num-beams out, or set it to 1")
    fields: Body = {"max_tokens": decoding.max_new_tokens, "temperature": 0.0}
    if decoding.sample:
        fields |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
    if decoding.sample and decoding.top_k:
        fields["top_k"] = decoding.top_k
    if decoding.min_new_tokens:
        fields["min_tokens"] = decoding.min_new_tokens
    if decoding.repetition_penalty != 1.0:
        fields["repetition_penalty"] = decoding.repetition_penalty
    return fields


def chat_body(model: str, content: Any, fields: Body, seed: int | None) -> Body:
    """A chat request with one message of the user. seed: any number; None: none is sent."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
    return body if seed is None else body | {"seed": seed % _SEEDS}
