"""Runs of `python -m alip.caption` with a server: their arguments, and what comes of them."""

import json

COUNT = 12  # images in the tar of the fixture `folder`


def wanted(count=COUNT):
    """Captions by key."""
    return {f"k{n:04d}": f"40 by 30 in red {n}" for n in range(count)}


def arguments(folder, server, *more, output="c.jsonl"):
    """The words of the command. server: a ChatServer, or a URL."""
    url = server if isinstance(server, str) else server.url
    given = ["--input", folder / "a.tar", "--output", folder / output, "--captioner", "openai:tiny", "--base-url", url]
    return [*map(str, given), "--workers", "0", "--concurrency", "4", "--outage-timeout", "5", *map(str, more)]


def record(folder, name="c-run.json"):
    """The run's record."""
    return json.loads((folder / name).read_text())
