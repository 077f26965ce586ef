"""Inputs at URLs: odd addresses, and a server on this machine that answers nonsense."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import threading
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alip.data.shards import load_manifest
from alip.errors import UserError
from alip.eval.datasets import open_classification
from alip.remote import access
from tests.fuzz import OK, Target
from tests.fuzz.flags import COMMANDS, check_end, fixtures, run_command_line
from tests.fuzz.mutations import damage

_WORDS = (
    *(
        "",
        "x",
        "x.tar",
        "x.json",
        "a b.tar",
        "ü.tar",
        "%00.tar",
        "%zz.tar",
        "\n.tar",
        "\x00.tar",
        "\udcff.tar",
        "..",
        "//",
    ),
    *("?a=b", "#x", "x.tar?sig=secret", "{000..003}.tar", "{9..1}.tar", "*.tar", "[a", "@", ":", "~", "\\", "x" * 3000),
)
_HOSTS = (
    *(
        "",
        "[",
        "[::1",
        "[::1]",
        "localhost:",
        "localhost:x",
        "localhost:99999",
        "localhost:-1",
        "a@b@localhost:9",
        ".",
        "...",
    ),
    *("user:secret@localhost:9", "localhost:9", "%6c", "ü.invalid", "a b", "x" * 300, "127.0.0.1:9/..//"),
)
_SCHEMES = ("http", "https", "HTTP", "file", "s3", "ftp", "data", "javascript", "htt p", "hf", "wds:https", "")
_HEADERS = ("Content-Length", "Content-Range", "Content-Encoding", "Content-Type", "ETag", "Accept-Ranges", "Location")
_VALUES = (
    "",
    "0",
    "-1",
    "1e9",
    "99999999999999999999",
    "bytes 0-3/4",
    "bytes 9-1/x",
    "gzip",
    "br",
    "x" * 9000,
    "bytes",
)


class _Nonsense(BaseHTTPRequestHandler):
    """Sound content in some answers, nonsense in the others, as the server's generator has it."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.server.content)

    def _answer(self, content: bytes) -> None:
        rng = self.server.rng
        body = damage(rng, content) if content and rng.random() < 0.4 else content
        self.send_response(rng.choice((200, 200, 200, 206, 204, 301, 302, 304, 400, 403, 404, 416, 429, 500, 503)))
        headers = {"Content-Length": str(len(self.server.content)), "Location": self.path}
        for _ in range(rng.choice((0, 0, 1, 2))):
            headers[rng.choice(_HEADERS)] = rng.choice(_VALUES)
        for name in rng.sample(sorted(headers), len(headers) if rng.random() < 0.8 else 0):
            self.send_header(name, headers[name])
        self.end_headers()
        self.close_connection = True
        self.wfile.write(body[: rng.choice((len(body), len(body), len(body) // 2))])

    def log_message(self, *_: object) -> None:
        pass


@cache
def _server() -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Nonsense)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _address(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return f"http://127.0.0.1:{_server().server_address[1]}/{rng.choice(_WORDS)}"
    scheme, host, word = rng.choice(_SCHEMES), rng.choice(_HOSTS), rng.choice(_WORDS)
    if scheme in ("", "file") and word in ("", "..", "//"):  # all folders of this machine are a sound input
        word = "x.tar"
    return f"{scheme}://{host}/{word}"


def make(rng: random.Random, folder: Path) -> Callable[[], object]:
    """An address for one of the commands and functions that take them."""
    words, address = fixtures(), _address(rng)
    content = rng.choice((Path(words["source"]), Path(words["data"] + ".json"), Path(words["data"] + "-00000.rec")))
    command = rng.choice([one for one in COMMANDS if one.name in ("data2rec", "caption", "verify")])
    parts = [[word.format(**words, out=str(folder / "out" / "set")) for word in part] for part in command.parts]
    flag = "--verify" if command.name == "verify" else "--input"
    argv = [word for part in parts if part[0] != flag for word in part] + [flag, address.replace("\x00", "\\0")]
    what = rng.choice(("command", "command", "manifest", "benchmark"))

    def run() -> None:
        server = _server()
        server.rng, server.content = random.Random(ascii(address)), content.read_bytes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(access, "FIRST_PAUSE_S", 0.001)
            patch.setattr(access, "TIMEOUT_S", 0.5)
            patch.setattr(access, "ATTEMPTS", 2)
            for scheme in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                patch.delenv(scheme, raising=False)
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "x")
            if what == "manifest":
                with contextlib.suppress(UserError):  # whose address run_command puts on one line
                    load_manifest(address, at_url=True)
            elif what == "benchmark":
                with contextlib.suppress(UserError):
                    open_classification(f"wds:{address}", folder / "data")
            else:
                check_end(f"{command.name} {json.dumps(address)[:200]}", *run_command_line(command, argv))
                shutil.rmtree(folder / "out", ignore_errors=True)

    return run


TARGETS = [Target("remote inputs", make, frozenset({OK}))]
