"""A user's mistake: one line with what is wrong and how to fix it, exit status 2, no traceback."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable

LONGEST = 1000  # characters of an error line


class UserError(Exception):
    """Something that the user can fix: the message names the file or flag, and the fix.

    Whatever it quotes of a file, the message is one line (`one_line`), for callers of the package too.
    """

    def __init__(self, message: object):
        super().__init__(one_line(str(message)))


# What the system's refusal of a file means to the user; other errors of it are bugs.
_REFUSED = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO), "check the path"),
    **dict.fromkeys((errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY), "choose another path"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions, or choose another path"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, and run the command again"),
    errno.EMFILE: "raise the limit on open files (ulimit -n), or give fewer --workers",
    errno.EIO: "check the disk",
}

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


_at_once = False


def end_at_once(wanted: bool) -> None:
    """Whether a command that fails ends without Python's own tidying up: what it holds may wait for other processes."""
    global _at_once
    _at_once = wanted


def run_command(main: Callable[[], int | None]) -> None:
    """Runs the main function of a command and exits with its status.

    `UserError` becomes one line on stderr and status 2, and so does a file that the system refuses (missing, a folder,
    no permission, a full disk); Ctrl-C becomes status 130; a closed pipe (`| head`) ends the command quietly. Anything
    else is a bug of ours and keeps its traceback.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # names of files can be anything, also what the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
    except (Exception, KeyboardInterrupt) as error:
        status = _status_of(error)
        if status is None:
            if not _at_once:
                raise
            traceback.print_exc()
            status = 1
        if _at_once:
            for child in multiprocessing.active_children():  # which the tidying up would end
                child.terminate()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            os._exit(status)
    sys.exit(status)


def _status_of(error: BaseException) -> int | None:
    """Says what went wrong, and gives the status to exit with; None for a bug of ours."""
    if isinstance(error, UserError):
        _report(str(error))
        return 2
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # Under a launcher, which has checked the paths: storage that fails for a while is worth a restart.
    if isinstance(error, OSError) and error.errno in _REFUSED and MISTAKES not in os.environ:
        _report(f"{error.filename or 'a file'}: {os.strerror(error.errno)}; {_REFUSED[error.errno]}")
        return 2
    return None


def _open_closed_streams() -> None:
    """A stream that was closed before the start (`2>&-`) is None, which libraries and progress bars do not expect, and
    its number would be given to the next file, into which child processes then print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 (for as long as the process)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _report(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    prefix = "" if rank == "0" else f"[rank {rank}] "
    report_mistake(f"error: {prefix}{one_line(message)}")


def one_line(message: str) -> str:
    """The message on one line of at most LONGEST characters, without control characters."""
    line = " ".join(message.split())
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} … {line[-296:]}"
