"""A user's mistake: one line with what is wrong and how to fix it, exit status 2, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something that the user can fix: the message names the file or flag, and the fix."""


MISTAKES = "ALIP_MISTAKES"  # environment variable: the folder in which a launcher collects its ranks' mistakes


def report_mistake(line: str) -> None:
    """Prints the line on stderr; under a launcher that collects them, leaves it for the launcher to print once."""
    folder = os.environ.get(MISTAKES)
    if folder and os.path.isdir(folder):
        name = f"rank-{int(os.environ.get('RANK', '0')):06d}"
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(line)
    else:
        print(line, file=sys.stderr, flush=True)


def run_command(main: Callable[[], int | None]) -> None:
    """Runs the main function of a command and exits with its status.

    `UserError` becomes one line on stderr and status 2; Ctrl-C becomes status 130; a closed pipe (`| head`)
    ends the command quietly. Anything else is a bug of ours and keeps its traceback.
    """
    try:
        status = main()
    except UserError as error:
        line = " ".join(str(error).split())
        rank = os.environ.get("RANK", "0")
        prefix = "" if rank == "0" else f"[rank {rank}] "
        report_mistake(f"error: {prefix}{line}")
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(status or 0)
