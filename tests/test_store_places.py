"""Folders on a disk and in a bucket: whole files, and one line where something cannot be done."""

from __future__ import annotations

import errno
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.errors import MissingExtraError, ReasonEmbedError
from reasonembed_mteb.store.places import Place, StoreError, matching, opened

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return an empty folder of each kind."""
    if request.param == "disk":
        return Place(tmp_path / "store")
    return Place(request.getfixturevalue("bucket")) / "store"


def test_what_is_written_is_read(place: Place) -> None:
    assert (place.sizes(), place.folders()) == ({}, [])
    place.write("a.json", b"one")
    place.write("a.json", b"two!")
    (place / "inner").write("b", b"")
    assert place.read("a.json") == b"two!"
    assert place.sizes() == {"a.json": 4}
    assert place.folders() == ["inner"]
    assert (place / "inner").sizes() == {"b": 0}
    with opened(f"{place}/a.json") as stream:
        stream.seek(1)
        assert stream.read() == b"wo!"
    assert [(url.rsplit("/", 1)[1], size) for url, size in matching(str(place))] == [("a.json", 4), ("b", 0)]


def test_another_processs_files_are_seen(place: Place) -> None:
    assert place.sizes() == {}
    Place(place.url).write("a", b"x")
    assert place.sizes() == {"a": 1}


def test_what_is_missing_is_named(place: Place) -> None:
    with pytest.raises(StoreError, match=r"store has no b; it was removed"):
        place.read("b")
    with pytest.raises(StoreError, match=r"cannot read .*store/none"):
        matching(f"{place}/none")


def test_a_missing_bucket_is_named(bucket: str) -> None:
    del bucket
    with pytest.raises(ReasonEmbedError, match=r"s3://no-such-bucket"):
        Place("s3://no-such-bucket/x").write("a", b"x")


class _Refusing(BaseHTTPRequestHandler):
    """Answers as S3 does where keys may not do something."""

    # Clients ask before they send a body, which the older version does not know.
    protocol_version = "HTTP/1.1"

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if self.command != "HEAD" else b"")

    do_GET = do_PUT = do_HEAD = do_POST = _refuse  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_bucket_without_permission_is_named(bucket: str) -> None:
    import s3fs

    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
        s3fs.S3FileSystem.clear_instance_cache()
        place = Place(bucket)
        calls = (lambda: place.write("a", b"x"), place.sizes, lambda: place.read("a"))
        for call in calls:
            with pytest.raises(StoreError, match=r"cannot \w+ s3://.*permissions of your keys"):
                call()
        server.shutdown()


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ReasonEmbedError, match="No space left on device; free space"):
        Place(tmp_path).write("a", b"x")
    assert Place(tmp_path).sizes() == {}


def test_an_address_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(
        MissingExtraError, match=r's3fs is not installed: pip install "reasonembed-mteb\[distrib'
    ):
        Place("s3://bucket").sizes()


def test_an_unknown_kind_of_address_is_refused() -> None:
    with pytest.raises(StoreError, match=r"give a folder, s3://... or gs://..."):
        Place("what://is/this").sizes()
