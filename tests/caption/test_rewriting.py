"""Raw texts rewritten behind a server: kept apart from captions, joined by data2rec, resumed exactly."""

import json

import pytest

from alip.build.joined_texts import TextFiles
from alip.caption.pipeline import main
from alip.caption.rewriting import checked_prompt
from alip.data.shards import read_texts
from alip.errors import UserError
from tests.helpers.chat_server import completion, error, serving
from tests.helpers.shards import build_shards, encoded, make_image

TEXTS = {
    "0.jpg": ["IMG 0 #dog", "the dog Rex"],
    "1.jpg": ["cat {caption} 1"],
    "2.jpg": ["", "a tree"],
    "3.jpg": ["boat"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four images with one or two raw texts each, one of them empty; and captions."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(make_image(i)))
    write_texts(tmp_path, TEXTS)
    captions = [{"key": f"{i}.jpg", "caption": f"seen {i}"} for i in range(4)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))
    return tmp_path


def write_texts(folder, texts):
    rows = [{"image": key, "text": text} for key, several in texts.items() for text in several]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def shouting(body, number):
    """Answers with the text in capitals."""
    return completion(body["messages"][0]["content"].rpartition("Text: ")[2].upper().replace("\n", " "))


def run(folder, server, *more):
    given = ["--input", folder / "t.jsonl", "--output", folder / "r.jsonl", "--rewrite", "--captioner", "openai:llm"]
    return main([*map(str, [*given, "--base-url", server.url, "--outage-timeout", 5, *more])])


def rewrites(folder):
    lines = [json.loads(line) for line in (folder / "r.jsonl").read_text().splitlines()]
    return [(line["key"], line["rewrite"]) for line in lines]


def test_each_raw_text_is_rewritten_once_and_joined(folder, capsys):
    with serving(shouting) as server:
        assert run(folder, server) == 1  # one raw text is missing
        assert len(server.requests) == 1 + 5
    found = [("0.jpg", "IMG 0 #DOG"), ("0.jpg", "THE DOG REX"), ("1.jpg", "CAT {CAPTION} 1"), ("2.jpg", "A TREE")]
    assert rewrites(folder) == [*found, ("3.jpg", "BOAT")]
    assert "6 raw texts: 5 have a rewritten text" in capsys.readouterr().out
    failures = [json.loads(line) for line in (folder / "r-failures.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"]) for line in failures] == [("2.jpg", "no-text")]

    texts = TextFiles((str(folder / "captions.jsonl"),), rewrites=str(folder / "r.jsonl"))
    manifest = build_shards(folder / "t.jsonl", folder / "set", texts=texts)
    rows = [(row["text"], row["caption"], json.loads(row["metadata"])) for row in read_texts(manifest)]
    assert rows[0] == ("IMG 0 #DOG", "seen 0", {"original_text": "IMG 0 #dog"})
    assert rows[1] == ("THE DOG REX", "seen 0", {"original_text": "the dog Rex"})
    made_by = manifest.metadata["rewrites"]["made_by"]
    assert made_by["rewrite"] and made_by["captioner"] == "openai:llm" and "{text}" in made_by["prompt"]


def test_a_text_that_changes_is_rewritten_again(folder):
    with serving(shouting) as server:
        run(folder, server)
    write_texts(folder, TEXTS | {"3.jpg": ["ship"], "2.jpg": ["a tree"]})
    with serving(shouting) as server:
        assert run(folder, server) == 0
        assert len(server.requests) == 1 + 1
    assert ("3.jpg", "SHIP") in rewrites(folder)


def test_captions_go_into_the_prompt(folder):
    prompt = "Say {caption} of Text: {text}"
    with serving(shouting) as server:
        run(folder, server, "--captions", folder / "captions.jsonl", "--prompt", prompt)
        asked = [body["messages"][0]["content"] for body in server.requests[1:]]
    assert "Say seen 0 of Text: IMG 0 #dog" in asked
    assert "Say seen 1 of Text: cat {caption} 1" in asked  # what a raw text holds is no placeholder


def test_single_failures_and_prompts(folder):
    def answer(body, number):
        content = body["messages"][0]["content"]
        if content.endswith("boat"):
            return error(400, "too nautical")
        return completion(" ") if content.endswith("tree") else shouting(body, number)

    with serving(answer) as server:
        assert run(folder, server) == 1
    reasons = [json.loads(line)["reason"] for line in (folder / "r-failures.jsonl").read_text().splitlines()]
    assert sorted(reasons) == ["empty-text", "no-text", "refused"]
    for prompt, captions, message in (
        ("no place", None, "must hold {text}"),
        ("{text} {caption}", None, "go together"),
        ("{text}", "c.jsonl", "go together"),
    ):
        with pytest.raises(UserError, match=message):
            checked_prompt(prompt, captions)
    assert "{caption}" in checked_prompt(None, "c.jsonl") and "{caption}" not in checked_prompt(None, None)


@pytest.mark.parametrize("more", [["--captioner", "blip"], ["--captions-per-image", "2"]])
def test_mistakes(folder, more):
    with pytest.raises((UserError, SystemExit)):
        main(["--input", str(folder / "t.jsonl"), "--output", "x.jsonl", "--rewrite", "--captioner", "openai:m", *more])
