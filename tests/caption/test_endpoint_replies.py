"""What is read from a server's replies: waiting times, limits, answers and refusals; and the key that is sent."""

import json

import pytest

from alip.caption.endpoint.limits import duration, exhausted, retry_after
from alip.caption.endpoint.replies import Mistake, Refusal, Trouble, read_reply
from alip.caption.endpoint.settings import EndpointSettings
from alip.errors import UserError


def test_a_key_with_odd_characters_is_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk two\x07")
    with pytest.raises(UserError, match="holds no API key") as caught:
        EndpointSettings("m", "http://h/v1").key()
    assert "two" not in str(caught.value)
    assert EndpointSettings("m", "http://h/v1/chat/completions/").url == "http://h/v1/chat/completions"


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("20", 20), ("1.5s", 1.5), ("6m0s", 360), ("250ms", 0.25), ("1h2m3s", 3723), (str(int(NOW) + 7), 7)],
        *[("2027-01-15T08:00:30Z", 30), ("soon", None), ("-3", None), ("nan", None), ("5 minutes", None), ("", None)],
    ],
)
def test_durations(text, seconds):
    assert duration(text, NOW) == seconds


def test_rate_limit_headers():
    assert retry_after({"retry-after": "Fri, 15 Jan 2027 08:00:09 GMT"}, NOW) == 9
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}, NOW) == 1.5
    assert retry_after({"retry-after": "whenever"}, NOW) is None
    spent = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s"}
    assert exhausted(spent, NOW) == retry_after(spent, NOW) == 2
    assert exhausted({**spent, "x-ratelimit-remaining-tokens": "5000"}, NOW) is None
    assert (
        exhausted({"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": "9"}, NOW) == 9
    )
    assert exhausted({"ratelimit-remaining": "0", "ratelimit-reset": "4"}, NOW) == 4
    assert exhausted({"x-ratelimit-remaining-requests": "many", "x-ratelimit-reset-requests": "4"}, NOW) is None


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (403, b'{"error": {"message": "flagged by moderation"}}', Refusal),
        (403, b'{"error": {"message": "no access"}}', Mistake),
        (402, b"", Mistake),
        (404, b"<h1>404</h1>", Trouble),
        (413, b"too large", Refusal),
        (529, b"", Trouble),
        (200, b"[]", Trouble),
        (200, b'{"choices": [3]}', None),
        (200, b'{"choices": [{"message": {"refusal": "no"}}]}', Refusal),
        (200, b"[" * 100_000, Trouble),
        (200, b"\xff\xfe", Trouble),
    ],
)
def test_kinds_of_replies(status, content, kind):
    if kind is None:
        assert read_reply(status, {}, content, None).text == ""
    else:
        with pytest.raises(kind):
            read_reply(status, {}, content, None)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>a\nb</think> a dog", " a dog"),
        ("a thought\n</think>\n\na dog", "\n\na dog"),
        ("<think>never done", ""),
        ("a <think> b", "a <think> b"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "image"}, 3, {"text": None}], "a"),
    ],
)
def test_the_text_of_an_answer(content, text):
    message = {"content": content, "reasoning_content": "not the answer"}
    reply = {"choices": [{"message": message}], "usage": {"prompt_tokens": "7", "completion_tokens": -1}}
    answer = read_reply(200, {}, json.dumps(reply).encode(), None)
    assert (answer.text, answer.tokens_in, answer.tokens_out) == (text, 0, 0)
