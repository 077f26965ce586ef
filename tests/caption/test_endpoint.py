"""Captions from a server: what is sent, what becomes of each failure, and that resuming is exact."""

import json
import time

import pytest

from alip.build.caption_files import read_entries
from alip.caption.pipeline import main
from alip.errors import UserError
from tests.helpers.captioning import png, read_captions, read_failures, write_tar
from tests.helpers.chat_server import completion, describe, error, image_of, seeing, serving
from tests.helpers.endpoint_runs import COUNT, arguments, record, wanted

pytestmark = pytest.mark.usefixtures("quick_endpoint")


def red(body):
    image = image_of(body)
    return image.getpixel((10, 10))[0] // 8 if image.size == (40, 30) else -1


def test_every_image_gets_its_caption_in_order(folder, capsys):
    with serving(seeing) as server:
        prices = ("--price-in", 2, "--price-out", 10)
        assert main(arguments(folder, server, "--prompt", "What is it?", "--max-new-tokens", 40, *prices)) == 0
        test, *requests = server.requests
    lines = [json.loads(line) for line in (folder / "c.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [f"k{n:04d}" for n in range(COUNT)]
    assert {line["key"]: line["caption"] for line in lines} == wanted()
    body = requests[0]
    assert body["model"] == "tiny" and body["max_tokens"] == 40 and body["temperature"] == 0 and "seed" not in body
    assert body["messages"][0]["content"][1] == {"type": "text", "text": "What is it?"}
    assert image_of(test).size == (64, 64) and {**test, "messages": 0} == {**body, "messages": 0}
    costs = {"requests": 13, "retries": 0, "tokens_in": 1300, "tokens_out": 130, "cut_off": 0}
    assert record(folder)["costs"] == {"1": {**costs, "cost": pytest.approx(1300 * 2e-6 + 130 * 10e-6)}}
    assert "13 requests (0 repeated): 1,300 tokens in, 130 out, at the given prices 0.0039" in capsys.readouterr().out
    assert record(folder)["settings"]["captioner"] == "openai:tiny"


def test_concurrency_is_bounded_and_order_exact(folder):
    def answer(body, number):
        time.sleep(0.03 if red(body) % 3 else 0.15)
        return seeing(body, number)

    with serving(answer) as server:
        assert main(arguments(folder, server)) == 0
        assert 1 < server.most <= 4
    assert list(read_captions(folder / "c.jsonl").items()) == list(wanted().items())


def test_large_images_are_shrunk_before_they_are_sent(folder):
    write_tar(folder / "a.tar", {"large": png(100, (400, 200))})
    with serving(seeing) as server:
        assert main(arguments(folder, server, "--max-side", 100)) == 0
    assert read_captions(folder / "c.jsonl")["large"].startswith("100 by 50 ")
    assert record(folder)["settings"]["max_side"] == 100


def test_passing_trouble_is_repeated(folder):
    troubles = [
        error(500, "a bug"),
        error(429, "slow down", {"retry-after-ms": "30"}),
        (200, {}, b"no json"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"error": {"message": "upstream"}}'),
        (502, {}, b"<html>bad gateway</html>"),
        None,
        (200, {"Content-Length": "5000"}, b'{"choices'),
    ]
    with serving(lambda body, number: troubles[number] if number < len(troubles) else seeing(body, number)) as server:
        assert main(arguments(folder, server, "--request-timeout", 2)) == 0
    assert read_captions(folder / "c.jsonl") == wanted()
    assert record(folder)["costs"]["1"]["retries"] == len(troubles)


def test_a_slow_reply_is_asked_for_again(folder):
    def answer(body, number):
        time.sleep(1.2 if number == 5 else 0)
        return seeing(body, number)

    with serving(answer) as server:
        assert main(arguments(folder, server, "--request-timeout", 0.6)) == 0
    assert read_captions(folder / "c.jsonl") == wanted()
    assert record(folder)["costs"]["1"]["retries"] >= 1


def test_retry_after_is_obeyed(folder):
    times = []

    def answer(body, number):
        times.append(time.monotonic())
        return error(429, "slow down", {"Retry-After": "1"}) if number == 3 else seeing(body, number)

    with serving(answer) as server:
        assert main(arguments(folder, server, "--concurrency", 1)) == 0
    assert times[4] - times[3] >= 1.0
    assert read_captions(folder / "c.jsonl") == wanted()


def test_rate_limit_headers_hold_requests_back(folder):
    times = []

    def answer(body, number):
        times.append(time.monotonic())
        status, _, content = seeing(body, number)
        left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "700ms"} if number == 2 else {}
        return status, left, content

    with serving(answer) as server:
        assert main(arguments(folder, server, "--concurrency", 1)) == 0
    assert times[3] - times[2] >= 0.7


def refusing(body, number):
    """Image 3 is filtered, 5 is refused with 400, 7 gets nothing, 9 breaks the server each time."""
    n = red(body)
    if n == 3:
        return completion("", finish="content_filter")
    if n == 5:
        return error(400, "image data cannot be decoded")
    if n == 7:
        return completion("  \n")
    return error(500, "out of memory") if n == 9 else seeing(body, number)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_single_images_that_fail_are_named_and_never_empty(folder, concurrency):
    with serving(refusing) as server:
        assert main(arguments(folder, server, "--retries", 2, "--concurrency", concurrency)) == 1
    bad = {"k0003": "refused", "k0005": "refused", "k0007": "empty-caption", "k0009": "server-failed"}
    assert read_failures(folder / "c-failures.jsonl") == bad
    assert read_captions(folder / "c.jsonl") == {key: text for key, text in wanted().items() if key not in bad}
    with serving(seeing) as server:  # what the server takes later is captioned then, and only that
        assert main(arguments(folder, server)) == 0
        assert len(server.requests) == 1 + len(bad)
    assert read_captions(folder / "c.jsonl") == wanted()


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_image_that_only_ever_meets_the_rate_limit_does_not_hold_up_the_run(folder, concurrency):
    def answer(body, number):
        return error(429, "too large for your tokens per minute") if red(body) == 4 else seeing(body, number)

    with serving(answer) as server:
        assert main(arguments(folder, server, "--outage-timeout", 1, "--concurrency", concurrency)) == 1
    assert read_failures(folder / "c-failures.jsonl") == {"k0004": "server-failed"}
    assert len(read_captions(folder / "c.jsonl")) == COUNT - 1


def test_an_outage_in_the_middle_is_waited_for(folder, capfd):
    down_until = [None]

    def answer(body, number):
        if number == 5:
            down_until[0] = time.monotonic() + 1.5
        if down_until[0] and time.monotonic() < down_until[0]:
            return error(503, "loading the model")
        return seeing(body, number)

    with serving(answer) as server:
        assert main(arguments(folder, server)) == 0
    assert list(read_captions(folder / "c.jsonl").items()) == list(wanted().items())
    shown = capfd.readouterr().err
    assert "does not answer (HTTP 503: loading the model): waiting for it, up to 5 s" in shown
    assert "answers again, after" in shown


def test_the_key_is_sent_and_never_written(folder, monkeypatch, capfd):
    key = "sk-VerySecret0123456789"
    monkeypatch.setenv("MY_KEY", f" {key}\n")

    def answer(body, number):
        return error(400, f"your key {key} may not see this") if red(body) == 2 else seeing(body, number)

    with serving(answer) as server:
        assert main(arguments(folder, server, "--api-key-env", "MY_KEY")) == 1
        assert server.headers["Authorization"] == f"Bearer {key}"
    assert "your key *** may not see this" in (folder / "c-failures.jsonl").read_text()
    shown = pytest.raises(UserError, match=r"bad key \*\*\*; the key comes from MY_KEY")
    with serving(lambda body, number: error(401, f"bad key {key}")) as server, shown as caught:
        main(arguments(folder, server, "--api-key-env", "MY_KEY", output="d.jsonl"))
    out, err = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert key.encode() not in written and key not in out + err + str(caught.value)
    with serving(seeing) as server:
        main(arguments(folder, server, output="e.jsonl"))
        assert "Authorization" not in server.headers


def test_several_captions_of_an_image_have_seeds_of_their_own(folder):
    def answer(body, number):
        time.sleep(0.02 * (body["seed"] % 3))
        return seeing(body, number)

    more = ("--captions-per-image", 3, "--seed", 5, "--temperature", 0.7)
    with serving(answer) as server:
        assert main(arguments(folder, server, *more)) == 0
        assert server.requests[1]["temperature"] == 0.7
    first = (folder / "c.jsonl").read_bytes()
    lines = [json.loads(line) for line in first.splitlines()]
    assert all(len(set(line["captions"])) == 3 and "caption" not in line for line in lines)
    assert [(key, len(captions)) for key, captions in read_entries(str(folder / "c.jsonl"))] == [
        (f"k{n:04d}", 3) for n in range(COUNT)
    ]
    assert len({caption.partition("seed ")[2] for line in lines for caption in line["captions"]}) == 3 * COUNT
    with serving(seeing) as server:
        assert main(arguments(folder, server, *more, "--concurrency", 1, output="d.jsonl")) == 0
        assert (folder / "d.jsonl").read_bytes() == first
        with pytest.raises(UserError, match="captions_per_image was 3, is 2"):
            main(arguments(folder, server, "--captions-per-image", 2, "--seed", 5, "--temperature", 0.7))


def test_dry_run_shows_captions_and_writes_nothing(folder, capsys):
    before = set(folder.iterdir())
    with serving(seeing) as server:
        url = ["--captioner", "openai:tiny", "--base-url", server.url, "--price-in", "2"]
        assert main(["--input", str(folder / "a.tar"), *url, "--dry-run"]) == 0
        assert len(server.requests) == 11
    shown = capsys.readouterr().out
    assert "k0000\t40 by 30 in red 0" in shown and "k0009\t" in shown and "k0010" not in shown
    assert "10 of 10 in" in shown and "1,100 tokens in" in shown and "1,000 cost about 0.22" in shown
    assert set(folder.iterdir()) == before


def test_options_change_the_request(folder):
    def answer(body, number):
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return seeing(body, number)

    options = ["--option", 'chat_template_kwargs={"enable_thinking": false}', "--option", "temperature=null"]
    with serving(answer) as server:
        assert main(arguments(folder, server, *options, "--top-k", 5, "--sample")) == 0
        body = server.requests[-1]
    assert body["chat_template_kwargs"] == {"enable_thinking": False} and "temperature" not in body
    assert body["max_completion_tokens"] == 30 and body["top_k"] == 5
    assert record(folder)["settings"]["options"]["temperature"] == "null"


def test_thoughts_and_cut_answers(folder, capsys):
    def answer(body, number):
        text = f"<think>so many\nthoughts</think>\n\n{describe(body)}"
        return completion([{"type": "text", "text": text}], finish="length" if red(body) == 1 else "stop")

    with serving(answer) as server:
        assert main(arguments(folder, server)) == 0
    assert read_captions(folder / "c.jsonl") == wanted()
    assert "1 answers ended at --max-new-tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--base-url", ""], "needs --base-url"),
        (["--base-url", "localhost:8000"], "is no base URL"),
        (["--base-url", "http://me:secret@host/v1"], "put the key into"),
        (["--base-url", "http://host:port/v1"], "is no base URL"),
        (["--captioner", "openai:"], "needs the model's name"),
        (["--concurrency", "0"], "--concurrency"),
        (["--num-beams", "3"], "no beam search"),
        (["--price-in", "-1"], "--price-in"),
    ],
)
def test_wrong_arguments(folder, more, message):
    with pytest.raises(UserError, match=message) as caught:
        main([*arguments(folder, "http://127.0.0.1:9/v1"), *more])
    assert "secret" not in str(caught.value)
