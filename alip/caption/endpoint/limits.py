"""How long a server asks its clients to wait: Retry-After and the rate-limit headers, and a gate that obeys them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EPOCH = 1e9  # a plain number above this is a time, not a duration


def duration(text: str, now: float) -> float | None:
    """Seconds from "20", "1.5s", "6m0s", "250ms", a Unix time or an ISO time; None for anything else.

    now: the Unix time.
    """
    text = text.strip()
    try:
        number = float(text)
        if number != number or number < 0:
            return None
        return max(0.0, number - now) if number > _EPOCH else number
    except ValueError:
        pass
    parts = _PART.findall(text)
    if parts and "".join(value + unit for value, unit in parts) == text:
        return sum(float(value) * _UNITS[unit] for value, unit in parts)
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() - now)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a refused client should wait, None if the server does not say. headers: names in lower case."""
    if (value := headers.get("retry-after-ms")) is not None and (seconds := duration(value, now)) is not None:
        return seconds / 1000
    if (value := headers.get("retry-after")) is not None:
        if (seconds := duration(value, now)) is not None:
            return seconds
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - now)
        except (ValueError, TypeError, OverflowError):
            pass
    return exhausted(headers, now)


def exhausted(headers: Mapping[str, str], now: float, tokens: int = 0) -> float | None:
    """Seconds until the next request is allowed, where the rate-limit headers say that none is now; else None.

    tokens: that a request needs.
    """
    waits = []
    for what, needed in (("requests", 1), ("tokens", max(1, tokens)), ("input-tokens", max(1, tokens)), ("", 1)):
        for prefix in ("x-ratelimit", "ratelimit", "anthropic-ratelimit"):
            form = (f"{prefix}-{what}-remaining", f"{prefix}-{what}-reset") if prefix.startswith("anthropic") else None
            form = form or tuple("-".join(filter(None, (prefix, part, what))) for part in ("remaining", "reset"))
            left, reset = headers.get(form[0]), headers.get(form[1])
            try:
                if left is not None and reset is not None and float(left) < needed:
                    waits.append(duration(reset, now))
            except ValueError:
                continue
    return max((wait for wait in waits if wait is not None), default=None)


class Gate:
    """Holds all requests back until a time that any of the replies may move later."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._until, self._lock = clock, 0.0, threading.Lock()
        self.stopped = threading.Event()

    def hold(self, seconds: float) -> None:
        """No request starts before so many seconds from now."""
        with self._lock:
            self._until = max(self._until, self._clock() + seconds)

    def wait(self, least: float = 0.0) -> bool:
        """Waits at least so long, and until requests may start; False when `stopped` was set meanwhile."""
        start = self._clock()
        while not self.stopped.is_set():
            rest = max(self._until, start + least) - self._clock()
            if rest <= 0:
                return True
            self.stopped.wait(min(rest, 1.0))
        return False
