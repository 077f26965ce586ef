"""Why an image cannot be used."""

from __future__ import annotations


class ImageError(ValueError):
    """An image that cannot be used. reason: one word for counting; the message gives the details."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason
