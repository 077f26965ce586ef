"""A server on loopback that speaks OpenAI's chat completions, and fails as it is told to."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Reply = tuple[int, dict[str, str], bytes]


def completion(text: Any, tokens: tuple[int, int] = (100, 10), finish: str = "stop", **message: Any) -> Reply:
    """A good reply."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return 200, {}, json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def error(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    """A reply that says what is wrong, in OpenAI's form."""
    return status, headers or {}, json.dumps({"error": {"message": message, **more}}).encode()


def image_of(body: dict[str, Any]) -> Image.Image:
    """The image in a request."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def describe(body: dict[str, Any]) -> str:
    """What the server "sees": the size, and the seed if there is one. (JPEG spoils colours a little.)"""
    image = image_of(body)
    red = image.getpixel((image.width // 2, image.height // 2))[0]
    return f"{image.width} by {image.height} in red {red // 8}" + (f" seed {body['seed']}" if "seed" in body else "")


class ChatServer:
    """answer(body, number) → a reply, for the number-th request to /chat/completions (the first is 0). None: the
    connection is cut. requests: all bodies; headers: of the newest request; most: the most requests at a time."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply | None]) -> None:
        self.answer, self.requests, self.headers = answer, [], {}
        self.now = self.most = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner.handle(self)

            def log_message(self, *arguments: Any) -> None:
                """Silent."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers = dict(handler.headers)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            reply = error(404, "no such path") if handler.path != "/v1/chat/completions" else self.answer(body, number)
        finally:
            with self.lock:
                self.now -= 1
        if reply is None:
            handler.close_connection = True
            handler.connection.close()
            return
        status, headers, content = reply
        with contextlib.suppress(OSError):  # the client may have given up
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@contextlib.contextmanager
def serving(answer: Callable[[dict[str, Any], int], Reply | None]) -> Iterator[ChatServer]:
    """A server for the length of a block."""
    server = ChatServer(answer)
    try:
        yield server
    finally:
        server.close()


def seeing(body: dict[str, Any], number: int) -> Reply:
    """Always right."""
    return completion(describe(body))


def slow(seconds: float) -> Callable[[dict[str, Any], int], Reply]:
    """Right, after a while."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        time.sleep(seconds)
        return seeing(body, number)

    return answer
