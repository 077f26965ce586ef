"""What a server's reply means: a text, a refusal of this one request, a passing trouble, or a mistake of the user."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PASSING = {408, 409, 423, 425, 429, 499}  # and every 5xx
_FILTERED = re.compile(r"content[ _-]?(filter|policy|management)|moderation|safety|flagged", re.IGNORECASE)
_PAID_UP = re.compile(r"insufficient_quota|billing|credit", re.IGNORECASE)
# Where the chat template begins the thoughts, the answer has their end only.
_THINKING = re.compile(r"\A(?:.*?</think>|\s*<think>.*\Z)", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """A text and what it cost. is_cut: it ended at the limit of tokens."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    is_cut: bool = False


class Trouble(Exception):
    """A request that may succeed later. wait: seconds that the server asks for, None if it does not. status: of HTTP,
    0 without a reply."""

    def __init__(self, message: str, wait: float | None = None, status: int = 0) -> None:
        super().__init__(message)
        self.wait, self.status = wait, status


class Refusal(Exception):
    """The server refuses this request, and would again. reason: one word for counting. tokens_in, tokens_out: what a
    content filter's reply has cost."""

    def __init__(self, reason: str, message: str, status: int = 0, tokens_in: int = 0, tokens_out: int = 0) -> None:
        super().__init__(message)
        self.reason, self.status, self.tokens_in, self.tokens_out = reason, status, tokens_in, tokens_out


class Mistake(Exception):
    """No request can succeed: a wrong key, model or address, or an account without credit."""


def read_reply(status: int, headers: Mapping[str, str], content: bytes, wait: float | None) -> Answer:
    """The answer in a reply. Raises Trouble, Refusal or Mistake. wait: what the headers ask for, in seconds."""
    text = content.decode("utf-8", errors="replace")
    if status != 200:
        raise _error(status, headers, text, wait)
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        raise Trouble(f"the reply is not JSON: {_short(text)!r}") from None
    if not isinstance(reply, dict) or not isinstance(choices := reply.get("choices"), list) or not choices:
        if isinstance(reply, dict) and reply.get("error"):  # some proxies answer 200 to what failed
            raise Trouble(f"the server reports: {_message(text)}")
        raise Trouble(f"the reply has no choices: {_short(text)!r}")
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get("message") if isinstance(choice.get("message"), dict) else {}
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    spent = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if choice.get("finish_reason") == "content_filter" or message.get("refusal"):
        raise Refusal("refused", _short(str(message.get("refusal") or "the server's content filter")), 0, *spent)
    return Answer(_THINKING.sub("", _text(message.get("content"))), *spent, choice.get("finish_reason") == "length")


def _error(status: int, headers: Mapping[str, str], text: str, wait: float | None) -> Exception:
    message = f"HTTP {status}: {_message(text)}"
    if status in (401, 402):
        return Mistake(message)
    if status == 429 and _PAID_UP.search(text):
        return Mistake(message)
    if status in _PASSING or status >= 500:
        return Trouble(message, wait, status)
    if 300 <= status < 400:
        target = _short(headers.get("location", "?"))
        return Mistake(f"HTTP {status}: it redirects to {target}; give that as --base-url")
    if status == 403:
        return Refusal("refused", message, status) if _FILTERED.search(text) else Mistake(message)
    if status in (404, 405, 410):
        # A proxy whose server is being restarted may have a 404 page of its own.
        return Mistake(message) if _is_object(text) or status != 404 else Trouble(message, wait, status)
    return Refusal("refused", message, status)


def _text(content: Any) -> str:
    """A message's text: a string, or the text parts of a list."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _message(text: str) -> str:
    """The server's own words, from the forms that servers use, on one line."""
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        return _short(re.sub(r"<[^<>]*>", " ", text)) or "no explanation"
    if isinstance(reply, dict):
        found = reply.get("error") or reply.get("detail") or reply.get("message") or reply
        if isinstance(found, dict):
            found = found.get("message") or found
        return _short(found if isinstance(found, str) else json.dumps(found))
    return _short(text)


def _short(text: str, most: int = 300) -> str:
    line = " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
