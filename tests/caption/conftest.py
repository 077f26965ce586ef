"""What several modules of these tests need."""

import pytest

from tests.helpers.captioning import png, write_tar
from tests.helpers.endpoint_runs import COUNT


@pytest.fixture
def quick_endpoint(monkeypatch):
    """Short pauses, no key, no figure (it takes a second each time)."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("alip.caption.endpoint.client.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("alip.caption.pipeline.read_pairs", lambda *given: [])


@pytest.fixture
def folder(tmp_path):
    """A tar of twelve images of different colours."""
    write_tar(tmp_path / "a.tar", {f"k{n:04d}": png(8 * n + 4, (40, 30)) for n in range(COUNT)})
    return tmp_path
