"""Command lines: mistakes in one line, and checked values for flags. Every command's parser is a `CommandParser`."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from alip.errors import UserError

MOST_WORKERS = 1024  # processes or threads of one rank: more is a slip of the keyboard, and stops the machine
LARGEST_SEED = 2**63 - 1


class CommandParser(argparse.ArgumentParser):
    """argparse, with a mistake as a `UserError` of one line instead of the usage and a line."""

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if not _is_utf8(word):  # Parquet, safetensors and JSON take no such paths
                self.error(f"{word!r} is not valid UTF-8: rename the file, or use a UTF-8 locale")
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            # argparse takes the value of `--flag=--` away, and leaves an empty list (Python 3.10 to 3.12).
            if action.nargs is None and getattr(found, action.dest, None) == [] != action.default:
                self.error(f"argument {'/'.join(action.option_strings)}: expected one argument")
        return found, rest

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{message.removeprefix('argument ')} (all flags: python {self.prog.removeprefix('python ')} --help)"
        )


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole(least: int, most: int) -> Callable[[str], int]:
    """A flag's type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"should be a whole number, not {text[:80]!r}") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"should be from {least} to {most}, not {text[:80]}")
        return value

    return parse


def number(least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """A flag's type: a finite number from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"should be a number, not {text[:80]!r}") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"should be a finite number, not {text[:80]}")
        if not least <= value <= most:
            limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"should be {limits}, not {text[:80]}")
        return value

    return parse


def pattern(text: str) -> re.Pattern[str]:
    """A flag's type: a regular expression."""
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"should be a regular expression, not {text[:80]!r}: {error}") from None


def file_path(text: str) -> Path:
    """A flag's type: where a file can be written: a path that ends in a name."""
    path = Path(text)
    if path.name in ("", ".."):
        raise argparse.ArgumentTypeError(f"should end in the name of a file, not {text[:80]!r}")
    return path


def names(text: str) -> tuple[str, ...]:
    """A flag's type: names between commas; none for an empty text."""
    return tuple(name for name in text.split(",") if name)


count = whole(1, 2**31 - 1)  # of samples, steps, images …
natural = whole(0, 2**31 - 1)
workers = whole(0, MOST_WORKERS)
seed = whole(0, LARGEST_SEED)
positive_number = number(1e-300)
