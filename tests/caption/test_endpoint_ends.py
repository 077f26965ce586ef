"""How a run with a server ends early: mistakes, outages that last, a kill; and what was under way then."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alip.caption.pipeline import main
from alip.errors import UserError
from tests.helpers.captioning import numbered, read_captions, write_tar
from tests.helpers.chat_server import completion, error, image_of, seeing, serving, slow
from tests.helpers.endpoint_runs import COUNT, arguments, record, wanted

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("quick_endpoint")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, "Incorrect API key"), r"HTTP 401: Incorrect API key; the key comes from OPENAI_API_KEY, which is"),
        (error(404, "The model `tiny` does not exist"), "HTTP 404: The model `tiny` does not exist"),
        ((404, {}, b"404 page not found"), "does not exist: HTTP 404: 404 page not found; check --base-url"),
        (
            error(400, "Server is pinned to 'x'; requested 'tiny'."),
            "refuses a test request: HTTP 400: Server is pinned",
        ),
        (error(429, "You exceeded your quota", code="insufficient_quota"), "HTTP 429: You exceeded"),
        ((301, {"Location": "https://elsewhere/v1"}, b""), "redirects to https://elsewhere/v1"),
        ((422, {}, b'{"detail": "Unexpected fields"}'), "HTTP 422: Unexpected fields"),
        (error(429, "come back later", {"Retry-After": "7200"}), r"asks to wait 7,?200 s, more than --outage-timeout"),
    ],
)
def test_mistakes_end_the_run_at_once_in_one_line(folder, reply, message):
    with serving(lambda body, number: reply) as server, pytest.raises(UserError, match=message) as caught:
        main(arguments(folder, server))
    assert len(server.requests) == 1 and "\n" not in str(caught.value)
    assert not (folder / "c.jsonl").exists()


def test_a_key_that_is_revoked_in_the_middle(folder):
    named = pytest.raises(UserError, match="HTTP 401: revoked")
    with serving(lambda body, number: error(401, "revoked") if number > 6 else seeing(body, number)) as server, named:
        main(arguments(folder, server, "--concurrency", 1))  # one by one: which requests succeed is then known
    with serving(seeing) as server:
        assert main(arguments(folder, server)) == 0
        assert len(server.requests) == 1 + COUNT - 6  # what had come before is not asked for again
    assert read_captions(folder / "c.jsonl") == wanted()


def test_a_server_that_is_never_there(folder):
    with pytest.raises(UserError, match=r"has not answered for 1 s .*resumes") as caught:
        main(arguments(folder, "http://127.0.0.1:9/v1", "--outage-timeout", 1))
    assert "\n" not in str(caught.value)
    assert not (folder / "c.jsonl").exists()


def test_a_server_that_fails_on_everything_ends_the_run(folder):
    write_tar(folder / "a.tar", numbered(0, 40))

    def answer(body, number):
        return seeing(body, number) if image_of(body).size == (64, 64) else error(500, "CUDA error")

    with serving(answer) as server, pytest.raises(UserError, match="fails on 16 images in a row; the last: HTTP 500"):
        main(arguments(folder, server, "--retries", 0))


def test_a_server_that_refuses_everything_ends_the_run(folder, monkeypatch):
    monkeypatch.setattr("alip.caption.endpoint.client.REFUSED", 6)

    def answer(body, number):
        return seeing(body, number) if image_of(body).size == (64, 64) else error(400, "context too long")

    named = pytest.raises(UserError, match="refuses 6 images in a row; the last: HTTP 400: context too long")
    with serving(answer) as server, named:
        main(arguments(folder, server))


def test_an_outage_that_lasts_is_named_and_resuming_is_exact(folder):
    named = pytest.raises(UserError, match=r"has not answered for .*HTTP 503: down")
    with serving(lambda body, number: error(503, "down") if number > 6 else seeing(body, number)) as server, named:
        main(arguments(folder, server, "--outage-timeout", 0.5, "--concurrency", 2))
    with serving(seeing) as server:
        assert main(arguments(folder, server)) == 0
        assert len(server.requests) < 1 + COUNT
    lines = (folder / "c.jsonl").read_bytes()
    with serving(seeing) as server:
        assert main(arguments(folder, server, output="whole.jsonl")) == 0
    # Replies that had come when the run ended are kept, since they were paid for, also behind one that had not.
    assert sorted(lines.splitlines()) == sorted((folder / "whole.jsonl").read_bytes().splitlines())
    assert set(record(folder)["costs"]) == {"1", "2"}


def test_killed_and_started_again_it_gives_the_same_file(folder):
    with serving(slow(0.15)) as server:
        command = [sys.executable, "-m", "alip.caption", *arguments(folder, server, "--concurrency", 2)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until = time.monotonic() + 120
        while len(server.requests) < 7 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        _, output = process.communicate(timeout=60)
        assert process.returncode == -9, output
    assert not (folder / "c.jsonl").exists()
    with serving(seeing) as server:
        assert main(arguments(folder, server)) == 0
        assert main(arguments(folder, server, output="whole.jsonl")) == 0
    assert (folder / "c.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert list(read_captions(folder / "c.jsonl").items()) == list(wanted().items())


def test_no_thread_is_left_that_keeps_a_process_alive(folder):
    with serving(seeing) as server:
        assert main(arguments(folder, server)) == 0
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("request-"))


def test_requests_under_way_are_kept_when_the_run_ends(folder, capfd):
    """Of three that are being answered when the key is revoked two are waited for, and one takes too long."""
    together = threading.Barrier(4)

    def answer(body, number):
        if number == 0:
            return seeing(body, number)
        together.wait(20)
        shown = image_of(body).getpixel((10, 10))[0] // 8
        if shown == 0:
            return error(401, "revoked")
        time.sleep(5 if shown == 3 else 1.4)
        return seeing(body, number)

    named = pytest.raises(UserError, match="HTTP 401: revoked")
    begun = time.monotonic()
    with serving(answer) as server, named:
        main(arguments(folder, server, "--concurrency", 4, "--request-timeout", 2.5))
    assert time.monotonic() - begun < 5
    assert len(server.requests) == 1 + 4, "none is begun any more"
    assert "the requests under way are waited for, at most 2.5 s" in capfd.readouterr().err
    with serving(seeing) as server:
        assert main(arguments(folder, server)) == 0
        assert len(server.requests) == 1 + COUNT - 2
    assert read_captions(folder / "c.jsonl") == wanted()
    assert record(folder)["costs"]["1"]["tokens_in"] == 300


def test_a_model_that_only_thinks_ends_the_run(folder):
    """64 answers in a row without a text: each has been paid for."""
    write_tar(folder / "many.tar", numbered(0, 80))
    thoughts = completion("<think>It shows a", finish="length")
    named = pytest.raises(UserError, match=r"answers 64 times in a row without a text: raise --max-new-tokens, or")
    with serving(lambda body, number: thoughts) as server, named:
        main(arguments(folder, server, "--concurrency", 1, "--input", folder / "many.tar"))
    assert len(server.requests) == 1 + 64


def test_what_a_content_filter_costs_is_counted(folder):
    with serving(
        lambda body, number: completion("", finish="content_filter") if number == 2 else seeing(body, number)
    ) as server:
        assert main(arguments(folder, server)) == 1
    assert record(folder)["costs"]["1"]["tokens_in"] == 100 * (1 + COUNT)


def test_a_server_that_counts_no_tokens(folder, capsys):
    def answer(body, number):
        status, headers, content = seeing(body, number)
        return status, headers, content.replace(b'"usage"', b'"other"')

    with serving(answer) as server:
        assert main(arguments(folder, server, "--price-in", 2)) == 0
    assert "its replies name no tokens, so neither these nor the price are known" in capsys.readouterr().out
