"""URLs as text: which words are URLs, how to join them, and how to show them without their secrets."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from alip.errors import UserError

SCHEMES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "file": "fsspec",
}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


def is_url(path: object) -> bool:
    """True for SCHEME://…; UserError for a scheme that is not one of SCHEMES."""
    match = _URL.match(str(path)) if isinstance(path, str | UrlPath) else None
    if match is None:
        return False
    if match.group(1).lower() not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UserError(f"{redact(str(path))}: {match.group(1)}:// cannot be read; use a local path or one of {known}")
    try:
        parts = urlsplit(str(path))  # ValueError for brackets that are no address
        if parts.scheme in ("http", "https"):
            parts.port  # noqa: B018 - ValueError for letters
        if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
            raise ValueError(f"{parts.netloc!r} stands where a host does; file:///path has three slashes")
    except ValueError as error:
        raise UserError(f"{redact(str(path))}: no URL ({error}); correct it") from None
    return True


def scheme_of(url: str) -> str:
    """ "s3" of "s3://bucket/key"."""
    return url.partition("://")[0].lower()


def local_path(path: str) -> str:
    """The path of a file:// URL; anything else as it is."""
    if not is_url(path) or scheme_of(path) != "file":
        return path
    return unquote("/" + path.partition("://")[2].partition("/")[2])  # ? and # are letters of names here


def redact(url: str) -> str:
    """A URL without user, password and query, which may hold a password or a signature."""
    head, mark, rest = url.partition("://")
    if not mark:
        return url
    host, slash, path = rest.partition("/")
    if "@" in host:
        host = f"***@{host.rpartition('@')[2]}"
    host, path = (part.partition("?") if head.lower() in ("http", "https") else (part, "", "") for part in (host, path))
    query = "?***" if host[1] or path[1] else ""
    return f"{head}{mark}{host[0]}{slash}{path[0]}{query}"


def redact_text(text: str) -> str:
    """A text, such as a library's message, with every URL in it redacted."""
    return _IN_TEXT.sub(lambda match: redact(match.group()), text)


def redact_all(value: object) -> object:
    """Settings (nested dicts and lists) with the URLs in their texts redacted."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {key: redact_all(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_all(entry) for entry in value) if type(value) in (list, tuple) else value
    return value


def name_of(path: str) -> str:
    """The last part of a path or URL, without a URL's query."""
    return os.path.basename(redact(path).removesuffix("?***") if is_url(path) else path)


def folder_of(path: str) -> str:
    """All but the last part of a path or URL. A URL's query belongs to its last part."""
    if not is_url(path):
        return os.path.dirname(path)
    head, mark, rest = path.partition("://")
    rest = rest.partition("?")[0] if head.lower() in ("http", "https") else rest
    return f"{head}{mark}{rest.rpartition('/')[0]}"


def join(root: str, name: str) -> str:
    """A name under a folder or a URL. A name that is a URL itself must be in the root's own bucket or on its host: what
    a table holds is data, and must not send requests anywhere else. ValueError otherwise."""
    if _URL.match(name):
        if is_url(root) and urlsplit(root)[:2] == urlsplit(name)[:2]:
            return name
        raise ValueError(
            f"{redact(name)} is a URL outside of {redact(root) or 'the folder'}: images are read from there"
        )
    if not is_url(root):
        return os.path.join(root, name)
    return f"{root.rstrip('/')}/{name.lstrip('/')}"


class UrlPath:
    """A folder or file at a URL where a pathlib.Path would be used: `folder / name`, `name`, str for messages.

    `url` is the address itself; str() redacts it. There is no way to open it by accident as a local file.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def __truediv__(self, name: object) -> UrlPath:
        return UrlPath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return name_of(self.url)

    @property
    def parent(self) -> UrlPath:
        return UrlPath(folder_of(self.url))

    def __str__(self) -> str:
        return redact(self.url)

    def __repr__(self) -> str:
        return f"UrlPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UrlPath) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)
