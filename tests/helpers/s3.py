"""An S3-compatible server on loopback (moto's), and a proxy before it that drops, delays and cuts its answers."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "bucket"


class Proxy(ThreadingHTTPServer):
    """Hands requests on to the server at `port`. fault(method, path): what to do to this one, None for nothing:
    drop, 503, stall, truncate (the connection ends within the body), cut (a shorter body with a length that fits).
    requests: (method, path, range) of all so far; rate: bytes per second of bodies, 0 for no limit."""

    daemon_threads = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = port
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.requests: list[tuple[str, str, str]] = []
        self.rate = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bytes_read(self, suffix: str) -> int:
        """How many GET requests went to keys that end so."""
        return sum(method == "GET" and path.endswith(suffix) for method, path, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _serve(self) -> None:
        path = self.path.partition("?")[0]
        body = self._body()
        self.server.requests.append((self.command, path, self.headers.get("Range", "")))
        fault = self.server.fault(self.command, path)
        if fault == "stall":
            time.sleep(2)
        if fault in ("drop", "stall"):
            self._hang_up()
            return
        if fault == "503":
            self._answer(503, {"Content-Length": "0"}, b"")
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.target)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "expect")}
        headers.pop("Transfer-Encoding", None)
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        skip = ("connection", "transfer-encoding", "date", "server")
        found = {name: value for name, value in answer.getheaders() if name.lower() not in skip}
        if fault == "cut":
            content = content[: len(content) // 2]
            found["Content-Length"] = str(len(content))
        self._answer(answer.status, found, content[: len(content) // 2] if fault == "truncate" else content)
        if fault == "truncate":
            self._hang_up()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers and self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(content), 1 << 18):
                piece = content[start : start + (1 << 18)]
                if self.server.rate:
                    time.sleep(len(piece) / self.server.rate)
                self.wfile.write(piece)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *words: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()


@contextlib.contextmanager
def s3_server() -> Iterator[Proxy]:
    """The proxy before a fresh server with one empty bucket."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    proxy = Proxy(port)
    try:
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **KEYS)
        client.create_bucket(Bucket=BUCKET)
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


KEYS = {"aws_access_key_id": "AKIATESTTESTTEST", "aws_secret_access_key": "very-secret-key"}


def environment(proxy: Proxy) -> dict[str, str]:
    """Variables with which a command finds the server and may use it."""
    return {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": KEYS["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": KEYS["aws_secret_access_key"],
        "AWS_EC2_METADATA_DISABLED": "true",
    }
