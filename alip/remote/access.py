"""One request to a store: through fsspec, with credentials from the library's own chain, repeated where that helps."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from alip.errors import UserError
from alip.remote.urls import SCHEMES, redact, redact_text, scheme_of

ATTEMPTS = 6  # of a request; with the pauses about half a minute
FIRST_PAUSE_S = 0.5  # doubled after every attempt, times a random factor of 0.5 to 1: clients must not return together
TIMEOUT_S = 30.0  # without a byte from the store
_Result = TypeVar("_Result")


class RemoteError(UserError):
    """A file at a URL that cannot be had, or cannot be written, although it was tried again. One line, status 2."""


class ShortRead(Exception):
    """Fewer or more bytes came than were asked for."""


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Ask each time: it must not cross a fork."""
    global _asked
    _asked = True
    try:
        import fsspec

        return fsspec.core.url_to_fs(url, **_options(scheme_of(url)))
    except ImportError:
        scheme = scheme_of(url)
        raise UserError(
            f"{scheme}:// needs the package {SCHEMES[scheme]}: "
            + ("pip install 'alip[remote]'" if scheme in ("s3", "http", "https") else f"pip install {SCHEMES[scheme]}")
        ) from None
    except Exception as error:
        raise RemoteError(f"{redact(url)}: {_advice(error) or _short(error)}") from None


def in_use() -> bool:
    """True once this process has asked a store for something: then threads of the library run here."""
    return _asked


_asked = False


def _options(scheme: str) -> dict[str, Any]:
    # No listings are cached: a size from an old listing could hide that a file has changed.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":
        # One retry policy, ours: botocore would multiply it.
        timeouts = {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S}
        options["config_kwargs"] = {**timeouts, "retries": {"total_max_attempts": 1}}
    return {} if scheme == "file" else options


def attempt(url: str, what: str, call: Callable[[], _Result]) -> _Result:
    """call(), again after a pause where the failure may pass; what: "reading", …, for the message.

    FileNotFoundError as it is. RemoteError with URL, cause and fix where it cannot help, or after ATTEMPTS.
    """
    for number in range(ATTEMPTS):
        try:
            return call()
        except UserError:
            raise
        except Exception as caught:
            error = _hidden_cause(url, caught)
            if isinstance(error, FileNotFoundError):
                raise error from None
            advice = _advice(error)
            if advice:
                raise RemoteError(f"{redact(url)}: {advice}") from None
            last = _short(error)
        if number + 1 < ATTEMPTS:
            logging.getLogger(__name__).info("%s: %s failed (%s), trying again", redact(url), what, last)
            time.sleep(FIRST_PAUSE_S * 2**number * random.uniform(0.5, 1.0))
    raise RemoteError(
        f"{redact(url)}: {what} failed {ATTEMPTS} times, the last time with: {last}; check network and store, then run "
        "the same command again, it resumes"
    )


def _hidden_cause(url: str, error: Exception) -> Exception:
    """For a web server fsspec calls every failure "not found": the cause tells whether it is."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    is_web = scheme_of(url) in ("http", "https")
    return cause if is_web and getattr(cause, "status", None) not in (404, 410) else error


def _advice(error: Exception) -> str | None:
    """What to do about an error that comes again however often one tries; None for one that may pass."""
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"):
        return "no credentials were found: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if name == "FileExpired":
        return "it was changed while it was read; run again when nobody writes it"
    if isinstance(error, PermissionError):
        return f"access denied ({_short(error)}); check the credentials and the bucket's policy"
    if name in ("ParamValidationError", "NotADirectoryError", "IsADirectoryError", "InvalidURL"):
        return f"is no address of a file there ({_short(error)}); check the URL"
    status = getattr(error, "status", None)  # aiohttp's
    refused = isinstance(error, OSError) and error.errno == errno.EINVAL
    if refused or (status is not None and 400 <= status < 500 and status != 429):
        return f"the store refuses the request ({_short(error)}); check the URL and the credentials"
    return None


def _short(error: Exception) -> str:
    text = " ".join(redact_text(str(error)).split()) or type(error).__name__
    text = text if type(error).__name__ in text or isinstance(error, OSError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= 200 else text[:199] + "…"
