"""Files at URLs: whatever the store and the network do, the bytes are right or there is one line."""

import hashlib
import os

import pytest

from alip.errors import UserError
from alip.remote import access, reading, urls, writing
from alip.remote.access import RemoteError

DATA = os.urandom(300_000)


def faults(*plan, method="GET"):
    """The first requests of a method meet these faults, later ones none."""
    left = list(plan)
    return lambda asked, path: left.pop(0) if asked == method and left else None


def public(url: str) -> None:
    files, path = access.filesystem(url)
    files.chmod(path, "public-read")


@pytest.fixture
def blob(s3, monkeypatch) -> str:
    monkeypatch.setattr(reading, "BLOCK", 1 << 16)
    writing.write_url("s3://bucket/folder/blob.bin", DATA)
    s3.requests.clear()
    return "s3://bucket/folder/blob.bin"


@pytest.mark.parametrize("fault", ["drop", "503", "truncate", "cut", "stall"])
def test_a_fault_that_passes_costs_nothing_but_time(s3, blob, fault, tmp_path):
    s3.fault = faults(fault, None, fault)
    with reading.open_url(blob) as file:
        assert file.read() == DATA
        file.seek(100_000)
        assert file.read(10) == DATA[100_000:100_010]
    s3.fault = faults(fault)
    assert reading.read_url(blob, 1 << 20) == DATA
    s3.fault = faults(fault)
    reading.download(blob, tmp_path / "blob", len(DATA), hashlib.sha256(DATA).hexdigest())
    assert (tmp_path / "blob").read_bytes() == DATA


@pytest.mark.parametrize("fault", ["drop", "503", "truncate", "cut"])
def test_a_fault_that_stays_is_one_line(s3, blob, fault, monkeypatch):
    monkeypatch.setattr(access, "ATTEMPTS", 2)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    s3.fault = lambda method, path: fault if method == "GET" else None
    with reading.open_url(blob) as file, pytest.raises(RemoteError, match=r"blob\.bin: reading failed 2 times"):
        file.read()
    with pytest.raises(RemoteError, match="run the same command again"):
        reading.read_url(blob, 1 << 20)


@pytest.mark.parametrize("fault", ["drop", "503", "stall"])
def test_writing_is_repeated_and_its_length_checked(s3, fault, tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    s3.fault = faults(fault, method="PUT")
    writing.upload(tmp_path / "file", f"s3://bucket/up/{fault}")
    s3.fault = faults(None)
    assert reading.read_url(f"s3://bucket/up/{fault}", 1 << 20) == DATA
    assert reading.glob("s3://bucket/up/*")[-1].startswith("s3://bucket/up/")
    writing.remove_url(f"s3://bucket/up/{fault}")
    writing.remove_url(f"s3://bucket/up/{fault}")
    assert not reading.exists(f"s3://bucket/up/{fault}")


def test_a_web_server(s3, blob):
    address = f"{s3.url}/bucket/folder/blob.bin"
    with pytest.raises(RemoteError, match=r"refuses the request.*403"):
        reading.open_url(address)
    public(blob)
    s3.fault = faults("drop", "cut")
    with reading.open_url(address) as file:
        assert file.read() == DATA
    with pytest.raises(UserError, match="a web server lists no files"):
        reading.glob(f"{s3.url}/bucket/*")
    with reading.open_url(address) as file, pytest.raises(RemoteError, match="changed while it was read"):
        writing.write_url(blob, DATA[:-1] + b"x")
        public(blob)
        file.read()
    s3.fault = lambda method, path: "503" if method == "HEAD" else None
    assert reading.stat(address).size == len(DATA), "asked with GET instead"
    with pytest.raises(UserError, match="no such file"):
        reading.open_url(f"{s3.url}/bucket/none")


def test_a_file_that_changes_under_the_reader_is_named(s3, blob):
    with reading.open_url(blob) as file:
        assert file.read(10) == DATA[:10]
        writing.write_url(blob, DATA[::-1])
        with pytest.raises(RemoteError, match="changed while it was read"):
            file.seek(250_000)
            file.read(10)
    with reading.open_url(blob) as file:
        assert file.read(10) == DATA[::-1][:10]
        writing.remove_url(blob)
        with pytest.raises(RemoteError, match="removed while it was read"):
            file.seek(250_000)
            file.read(10)


def test_a_wrong_checksum_is_never_accepted(s3, blob, tmp_path):
    with pytest.raises(RemoteError, match="SHA-256 is not the manifest's, 3 times"):
        reading.download(blob, tmp_path / "blob", len(DATA), "0" * 64)
    with pytest.raises(RemoteError, match="300,000 bytes, its manifest 299,999"):
        reading.download(blob, tmp_path / "blob", len(DATA) - 1)


def test_what_cannot_help_is_not_repeated(s3, blob, monkeypatch):
    monkeypatch.setattr(access, "FIRST_PAUSE_S", 100)
    with pytest.raises(UserError, match="no such file: s3://bucket/none"):
        reading.open_url("s3://bucket/none")
    with pytest.raises(FileNotFoundError):
        reading.stat("s3://no-such-bucket/none")
    with pytest.raises(ValueError, match="the limit is 10"):
        reading.read_url(blob, 10)
    with pytest.raises(UserError, match="a web server takes no files"):
        writing.check_writable("https://example.org/x")


def test_without_credentials_one_line(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(access, "TIMEOUT_S", 1.5)  # another one: another client
    with pytest.raises(RemoteError, match="no credentials were found: set AWS_PROFILE"):
        reading.stat("s3://bucket/none")


def test_other_schemes():
    assert not urls.is_url("/a/b") and not urls.is_url("a:b") and urls.is_url("hf://datasets/x/y")
    with pytest.raises(UserError, match="ftp:// cannot be read"):
        urls.is_url("ftp://u:p@host/x")
    assert urls.local_path("file:///a/b%20c") == "/a/b c" and urls.local_path("/a") == "/a"
    assert urls.local_path("file://localhost/a?b#c") == "/a?b#c"
    with pytest.raises(UserError, match="file:///path has three slashes"):
        urls.is_url("file://data/a.tar")


def test_secrets_are_not_shown():
    signed = "https://user:pass@host/a/b.tar?X-Amz-Signature=abc"
    assert urls.redact(signed) == "https://***@host/a/b.tar?***" and urls.name_of(signed) == "b.tar"
    assert urls.redact("s3://bucket/what?.tar") == "s3://bucket/what?.tar"
    text = urls.redact_text(f"cannot open '{signed}' at all")
    assert "abc" not in text and "pass" not in text and text.endswith("at all")
    assert "abc" not in str(urls.redact_all({"a": [signed, ("x", signed)]}))
    assert "abc" not in f"{urls.UrlPath(signed)!r}"


def test_names_in_a_table_stay_in_their_bucket():
    assert urls.join("s3://b/data", "x/1.jpg") == "s3://b/data/x/1.jpg"
    assert urls.join("s3://b/data", "s3://b/other/1.jpg") == "s3://b/other/1.jpg"
    assert urls.folder_of("https://h/a/b.csv?sig=1/2") == "https://h/a"
    for root in ("s3://b/data", "/data", ""):
        with pytest.raises(ValueError, match="outside of"):
            urls.join(root, "http://169.254.169.254/latest")


@pytest.mark.parametrize("address", ["http://[::1/x.tar", "https://host:port/x.tar", "s3://[bucket/x.tar"])
def test_addresses_that_are_none(address):
    with pytest.raises(UserError, match="no URL"):
        urls.is_url(address)
