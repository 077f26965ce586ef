"""Which server, which model, how patiently, at which price; and the key, which is read and kept here only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from alip.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
_PATH = "/chat/completions"


@dataclass(frozen=True)
class EndpointSettings:
    """An OpenAI-compatible endpoint.

    model: the server's name of it. base_url: what stands before /chat/completions. key_variable: the environment
    variable that holds the API key. concurrency: requests at a time. request_timeout, outage_timeout: seconds; for one
    reply, and for a server that answers nothing. retries: of a request that fails while others succeed. price_in,
    price_out: per million tokens. fields: of the request's body, beyond ours; None removes one.
    """

    model: str
    base_url: str
    key_variable: str = KEY_VARIABLE
    concurrency: int = 16
    request_timeout: float = 120.0
    outage_timeout: float = 600.0
    retries: int = 5
    price_in: float = 0.0
    price_out: float = 0.0
    fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("--captioner openai:MODEL needs the model's name, as the server calls it")
        object.__setattr__(self, "base_url", _checked_url(self.base_url))
        if self.concurrency < 1 or self.request_timeout <= 0 or self.outage_timeout < 0 or self.retries < 0:
            raise UserError(
                "--concurrency must be at least 1, --request-timeout above 0, --outage-timeout and --retries at least 0"
            )
        if self.price_in < 0 or self.price_out < 0:
            raise UserError("--price-in and --price-out must be at least 0")

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.base_url + _PATH

    def key(self) -> str | None:
        """The API key from the environment; None without one. UserError if it can be no key; it is never shown."""
        value = os.environ.get(self.key_variable, "").strip()
        if not value:
            return None
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise UserError(f"the environment variable {self.key_variable} holds no API key: it has odd characters")
        return value

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


def _checked_url(text: str) -> str:
    """The base URL without what is added to it. UserError if it is none, or holds a password."""
    example = "such as http://localhost:8000/v1 or https://api.openai.com/v1"
    if not text:
        raise UserError(f"--captioner openai:MODEL needs --base-url, {example}")
    try:
        parts = urlsplit(text.strip())
        has_secret = parts.username is not None or parts.password is not None
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:  # a port that is no number
        usable, has_secret = False, False
    if has_secret:
        raise UserError(f"--base-url holds a user name or password: put the key into {KEY_VARIABLE} instead")
    if not usable or parts.query or parts.fragment:
        raise UserError(f"--base-url {text!r} is no base URL: give one {example}")
    return text.strip().rstrip("/").removesuffix(_PATH).rstrip("/")
