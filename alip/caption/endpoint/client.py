"""Requests to an OpenAI-compatible endpoint: a fixed number at a time, retried, held back, waited for.

Three things can go wrong, and they must not be confused. A *mistake* (wrong key, model, address) ends the run at once,
in one line. A *refusal* concerns one image, which is rejected by name. *Trouble* passes: the request is sent again
with growing pauses. Trouble while nothing succeeds is an outage, and is waited for up to `outage_timeout`; trouble
while other requests succeed is the image's own, which is rejected after `retries`. To tell the two apart when no other
request is under way, a small test request is sent, the same one that begins the run.
"""

from __future__ import annotations

import copy
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from alip.caption.endpoint.limits import Gate, exhausted, retry_after
from alip.caption.endpoint.replies import Answer, Mistake, Refusal, Trouble, read_reply
from alip.caption.endpoint.settings import EndpointSettings
from alip.errors import UserError

LONGEST_REPLY = 1 << 23  # bytes
FIRST_PAUSE = 1.0  # seconds before a request is repeated
LONGEST_PAUSE = 30.0  # seconds between two attempts, unless the server asks for more
HOPELESS = 16  # images in a row that fail in other ways than by a refusal: then it is not the images
REFUSED = 64  # images in a row that are refused, or get no text: then it is the request
COUNTS = ("requests", "retries", "tokens_in", "tokens_out", "cut_off")
Body = dict[str, Any]


def to_stderr(line: str) -> None:
    """Shows a line beside the progress bar."""
    print(line, file=sys.stderr, flush=True)


class Endpoint:
    """One server. `ask` starts a request, `close` ends all of them. After an error that ends the run no request starts,
    but those under way are let finish: they have been paid for.

    test_body: a small request like those to come; it is sent before the first one, and in doubt. report(line): called
    when an outage begins and ends.
    """

    def __init__(self, settings: EndpointSettings, test_body: Body, report: Callable[[str], None] = to_stderr) -> None:
        self.settings, self.report = settings, report
        self._test_body = test_body
        self._key = settings.key()
        self._http = _open_http(settings, self._key)
        self.gate = Gate()
        self.health = Health(settings, report)
        self._lock, self._test_lock = threading.Lock(), threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future, Body]] = queue.SimpleQueue()
        self._jobs_lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._error: UserError | None = None
        self._changes: Body = dict(settings.fields)
        self._counts: Counter = Counter()

    def ask(self, body: Body) -> Future[Answer]:
        """Starts a request. Its future gives an Answer, or raises Refusal (or UserError, which ends the run).

        The first call sends the test request first, and waits for a server that does not answer: UserError.
        """
        if not self._threads:
            self._send_with_patience(self._test_body, is_test=True)
            for number in range(self.settings.concurrency):
                # Daemons: a request that is under way must not keep a process alive that the user has interrupted.
                thread = threading.Thread(target=self._work, name=f"request-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
        future: Future[Answer] = Future()
        with self._jobs_lock:
            if self.gate.stopped.is_set():
                future.set_exception(self._ended())
            else:
                self._jobs.put((future, body))
        return future

    def usage(self) -> dict[str, float]:
        """Totals so far: requests, retries, tokens_in, tokens_out, cut_off (answers that ended at the limit), cost."""
        with self._lock:
            counts = {name: self._counts[name] for name in COUNTS}
        return counts | {"cost": self.settings.cost(counts["tokens_in"], counts["tokens_out"])}

    def close(self) -> None:
        """No request starts any more; those under way are abandoned."""
        self.gate.stopped.set()

    def _work(self) -> None:
        while not self.gate.stopped.is_set():
            try:
                future, body = self._jobs.get(timeout=0.5)
            except queue.Empty:
                continue
            try:
                future.set_result(self._send_with_patience(body))
            except BaseException as error:
                future.set_exception(error)
        with self._jobs_lock:  # under which nothing is added any more
            while not self._jobs.empty():
                self._jobs.get()[0].set_exception(self._ended())

    def _ended(self) -> UserError:
        return copy.copy(self._error) if self._error else UserError("the run was stopped")

    def _send_with_patience(self, body: Body, is_test: bool = False) -> Answer:
        """The answer to a request, however often it takes. Raises Refusal, UserError."""
        own_faults, successes, pause, since = 0, self.health.successes, 0.0, None
        first_successes = successes
        while self.gate.wait(pause):
            try:
                answer = self._send(body)
            except Mistake as error:
                raise self._fatal(f"{self.settings.base_url} does not accept the requests: {error}") from None
            except Refusal as error:
                if is_test:
                    if self._adapt(error):
                        continue
                    raise self._fatal(f"{self.settings.base_url} refuses a test request: {error}") from None
                self.health.succeeded()  # the server works
                raise self._refused(error) from None
            except Trouble as error:
                if is_test and error.status == 404 and not self.health.successes:
                    raise self._fatal(f"{self.settings.url} does not exist: {error}; check --base-url") from None
                pause = self._pause_after(error, own_faults)
                if self.health.successes > successes:  # others succeed meanwhile
                    successes, own_faults = self.health.successes, own_faults + (error.status != 429)
                # A request that only ever meets the rate limit may be too large for it.
                since = since or time.monotonic()
                has_waited = time.monotonic() - since > 2 * self.settings.outage_timeout
                if own_faults > self.settings.retries or (has_waited and successes > first_successes):
                    raise self._given_up(error) from None
                self._count("retries")
                if not is_test:
                    self._test_in_doubt()
            else:
                if not is_test:
                    self.health.succeeded()
                    self._has_text(answer)
                elif not self.health.successes:
                    self.health.succeeded()
                return answer
        raise self._ended()

    def _send(self, body: Body) -> Answer:
        """One attempt. Raises Trouble, Refusal, Mistake; UserError when the outage has lasted too long."""
        try:
            body = body | self._changes
            answer = self._exchange({name: value for name, value in body.items() if value is not None})
        except Trouble as error:
            message = self._redacted(str(error))
            if error.wait is not None and error.wait > self.settings.outage_timeout:
                raise self._fatal(
                    f"{self.settings.base_url} asks to wait {error.wait:,.0f} s, more than --outage-timeout "
                    f"{self.settings.outage_timeout:g}: {message}; run the same command again later, it resumes"
                ) from None
            if (lasted := self.health.failed(message)) is not None:
                raise self._fatal(
                    f"{self.settings.base_url} has not answered for {lasted:,.0f} s (--outage-timeout "
                    f"{self.settings.outage_timeout:g}): {message}; start it or check --base-url, and run the same "
                    "command again: it resumes"
                ) from None
            raise Trouble(message, error.wait, error.status) from None
        except Refusal as error:
            self._count("tokens_in", error.tokens_in)
            self._count("tokens_out", error.tokens_out)
            raise Refusal(error.reason, self._redacted(str(error)), error.status) from None
        except Mistake as error:
            hint = f"; the key comes from {self.settings.key_variable}" + ("" if self._key else ", which is not set")
            raise Mistake(self._redacted(str(error)) + (hint if "HTTP 401" in str(error) else "")) from None
        self._count("tokens_in", answer.tokens_in)
        self._count("tokens_out", answer.tokens_out)
        self._count("cut_off", answer.is_cut)
        return answer

    def _exchange(self, body: Body) -> Answer:
        """One HTTP request and its reply, read with a limit on size and time."""
        import httpx2

        started, content = time.monotonic(), bytearray()
        self._count("requests")
        try:
            with self._http.stream("POST", self.settings.url, json=body) as reply:
                for part in reply.iter_bytes():
                    content += part
                    if len(content) > LONGEST_REPLY:
                        raise Trouble(f"the reply is longer than {LONGEST_REPLY:,} bytes")
                    if time.monotonic() - started > self.settings.request_timeout:
                        raise Trouble(f"no whole reply within {self.settings.request_timeout:g} s")
        except httpx2.TimeoutException:
            raise Trouble(f"no reply within {self.settings.request_timeout:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            kind = Mistake if "CERTIFICATE_VERIFY_FAILED" in str(error) else Trouble
            raise kind(f"{type(error).__name__}: {error}") from None
        headers = {name.lower(): value for name, value in reply.headers.items()}
        wait = retry_after(headers, time.time()) if reply.status_code != 200 else exhausted(headers, time.time())
        if wait is not None and wait <= self.settings.outage_timeout:
            self.gate.hold(wait)
        return read_reply(reply.status_code, headers, bytes(content), wait)

    def _pause_after(self, error: Trouble, own_faults: int) -> float:
        """Seconds before the next attempt: doubled each time, with jitter so that requests do not come back together;
        at least what the server asks for."""
        times = max(own_faults, self.health.failures_in_a_row // self.settings.concurrency)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(times, 20)) * random.uniform(0.5, 1.0)
        return max(pause, error.wait or 0.0)

    def _test_in_doubt(self) -> None:
        """While nothing succeeds, one thread asks whether the server works at all."""
        if self.health.failures_in_a_row < 2 or not self._test_lock.acquire(blocking=False):
            return
        try:
            self._send(self._test_body)
        except (Trouble, Refusal, Mistake):
            return
        finally:
            self._test_lock.release()
        self.health.succeeded()

    def _given_up(self, error: Trouble) -> Exception:
        """The failure of one image; of HOPELESS images in a row, the end of the run."""
        with self._lock:
            self.health.failed_images += 1
            failed = self.health.failed_images
        if failed >= HOPELESS:
            return self._fatal(f"{self.settings.base_url} fails on {failed} images in a row; the last: {error}")
        return Refusal("server-failed", str(error), error.status)

    def _refused(self, error: Refusal) -> Exception:
        """The refusal of one image; of REFUSED images in a row, the end of the run."""
        with self._lock:
            self.health.refused_images += 1
            refused = self.health.refused_images
        if refused >= REFUSED:
            return self._fatal(f"{self.settings.base_url} refuses {refused} images in a row; the last: {error}")
        return error

    def _has_text(self, answer: Answer) -> None:
        """Ends the run after REFUSED answers in a row without a text: they are paid for, and give nothing."""
        with self._lock:
            self.health.failed_images = self.health.refused_images = 0
            self.health.empty_answers = 0 if answer.text.strip() else self.health.empty_answers + 1
            empty = self.health.empty_answers
        if empty >= REFUSED:
            fix = "raise --max-new-tokens, or switch the model's thinking off with --option (docs/captioners.md)"
            fix = fix if answer.is_cut else "try it with --dry-run and another --prompt"
            raise self._fatal(f"{self.settings.base_url} answers {empty} times in a row without a text: {fix}")

    def _adapt(self, error: Refusal) -> bool:
        """Newer models of some servers take the token limit under another name: then requests use that one."""
        if "max_completion_tokens" not in str(error) or "max_completion_tokens" in self._changes:
            return False
        self._changes |= {"max_tokens": None, "max_completion_tokens": self._test_body.get("max_tokens")}
        return True

    def _fatal(self, message: str) -> UserError:
        """The error that ends the run, for this and all other requests."""
        with self._lock:
            self._error = self._error or UserError(self._redacted(message))
        self.gate.stopped.set()
        return copy.copy(self._error)

    def _redacted(self, text: str) -> str:
        """Servers quote what they were sent; the key must not get into logs and files."""
        return text.replace(self._key, "***") if self._key else text

    def _count(self, name: str, value: float = 1) -> None:
        with self._lock:
            self._counts[name] += value


class Health:
    """Whether the server answers, seen by all requests together."""

    def __init__(self, settings: EndpointSettings, report: Callable[[str], None]) -> None:
        self._settings, self._report, self._lock = settings, report, threading.Lock()
        self._since: float | None = None  # the first failure since the last success
        self._announced = False
        self.successes = self.failures_in_a_row = self.failed_images = self.refused_images = 0
        self.empty_answers = 0

    def succeeded(self) -> None:
        """The server has handled a request."""
        with self._lock:
            if self._announced:
                lasted = time.monotonic() - (self._since or 0.0)
                self._report(f"{self._settings.base_url} answers again, after {lasted:,.0f} s")
            self._since, self._announced, self.failures_in_a_row = None, False, 0
            self.successes += 1

    def failed(self, message: str) -> float | None:
        """The server has not. Returns for how many seconds nothing has succeeded, if that is too long."""
        with self._lock:
            now = time.monotonic()
            self._since = now if self._since is None else self._since
            self.failures_in_a_row += 1
            lasted = now - self._since
            if lasted >= self._settings.outage_timeout:
                return lasted
            if not self._announced and self.failures_in_a_row > min(3, self._settings.concurrency):
                self._announced = True
                self._report(
                    f"{self._settings.base_url} does not answer ({message}): waiting for it, up to "
                    f"{self._settings.outage_timeout:g} s"
                )
        return None


def _open_http(settings: EndpointSettings, key: str | None) -> Any:
    try:
        import httpx2
    except ImportError:
        raise UserError("--captioner openai:MODEL needs the package httpx2: pip install httpx2") from None
    limits = httpx2.Limits(max_connections=settings.concurrency + 1, max_keepalive_connections=settings.concurrency + 1)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.Client(timeout=settings.request_timeout, limits=limits, headers=headers)
