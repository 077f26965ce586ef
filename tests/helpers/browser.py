"""A headless Chromium, for tests of pages as people see them."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str:
    """The program; skips the test where there is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"no headless browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")


def open_page(path: Path, profile: Path, state: str = "", size=(1400, 1000), screenshot: Path | None = None) -> str:
    """The document as HTML after the page's scripts have run. state: what follows # in its address."""
    command = [find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=10000"]
    command += [f"--screenshot={screenshot}"] if screenshot else ["--dump-dom"]
    done = subprocess.run([*command, f"file://{path}#{state}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


class Page(HTMLParser):
    """What a test asks of a document: title, the body's data- values, the cards in the gallery, all image sources."""

    def __init__(self, html: str):
        super().__init__()
        self.title, self.count, self.body = "", "", {}
        self.cards: list[dict[str, str]] = []
        self.images: list[str] = []
        self.elements: list[str] = []
        self._open: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        self.elements.append(tag)
        if tag == "body":
            self.body = values
        if tag == "article":
            self.cards.append({"index": values["data-index"], "class": values["class"]})
        if tag == "img":
            self.images.append(values.get("src", ""))
        if tag not in ("img", "input", "meta", "br", "path", "circle", "rect"):
            self._open.append((tag, values.get("id") or values.get("class", "")))

    def handle_endtag(self, tag):
        while self._open:
            name, _ = self._open.pop()
            if name == tag:
                return

    def handle_data(self, text):
        if not self._open:
            return
        tag, name = self._open[-1]
        if tag == "title" and not self.title:
            self.title = text
        if name == "count":
            self.count += text
        if self.cards and name.split(" ")[0] in ("text", "caption", "value", "tag"):
            self.cards[-1][name.split(" ")[0]] = text
