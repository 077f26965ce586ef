import pytest

from alip.remote import access
from tests.helpers.s3 import Proxy, environment, s3_server


@pytest.fixture(scope="session")
def _server():
    with s3_server() as proxy:
        yield proxy


@pytest.fixture
def s3(_server, monkeypatch) -> Proxy:
    """A server without faults; pauses and time limits are short."""
    for name, value in environment(_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(access, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(access, "TIMEOUT_S", 1.0)
    _server.fault = lambda method, path: None
    _server.rate = 0
    _server.requests.clear()
    yield _server
    _server.fault = lambda method, path: None
