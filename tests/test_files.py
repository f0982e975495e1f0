"""Files: whole or not at all, line numbers in errors, hashes."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.files import (
    content_hash,
    file_blocks,
    fingerprint,
    json_hash,
    package_versions,
    read_json_lines,
    read_json_object,
    replacing_folder,
    write_whole,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_as_people_have_them(tmp_path: Path) -> None:
    content = '\ufeff{"a": 1}\r\n\n  \n{"b": "x\u2028y", "c": NaN}'.encode()
    expected = [(1, {"a": 1}), (4, {"b": "x\u2028y", "c": None})]
    write_whole(tmp_path / "rows.jsonl", content)
    write_whole(tmp_path / "rows.jsonl.gz", gzip.compress(content, mtime=0))
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        assert list(read_json_lines(tmp_path / name)) == expected


@pytest.mark.parametrize("line", [b'{"a', b"\xff\xfe", b'{"a": Infinity}', b"[" * 100_000])
def test_a_broken_line_is_named(line: bytes, tmp_path: Path) -> None:
    write_whole(tmp_path / "rows.jsonl", b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:2 is not JSON .*; fetch it"):
        list(read_json_lines(tmp_path / "rows.jsonl", "fetch it"))


def test_broken_lines_can_be_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n{\n\n\xff\n2\n')
    broken: list[int] = []
    found = list(read_json_lines(file, broken=lambda number, _: broken.append(number)))
    assert found == [(1, {"a": 1}), (5, 2)]
    assert broken == [2, 4]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent.jsonl: No such file"):
        list(read_json_lines(tmp_path / "absent.jsonl"))
    write_whole(tmp_path / "cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9])
    with pytest.raises(DataError, match=r"cannot read .*cut.jsonl.gz"):
        list(read_json_lines(tmp_path / "cut.jsonl.gz"))


def test_an_object_or_nothing(tmp_path: Path) -> None:
    file = tmp_path / "note.json"
    assert read_json_object(file) is None
    for content, expected in (('{"a": 1}', {"a": 1}), ('{"a', None), ("[1]", None)):
        write_whole(file, content)
        assert read_json_object(file) == expected


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(ReasonEmbedError, match=r"cannot write .*a/b: (File exists|Not a directory)"):
        write_whole(tmp_path / "a" / "b", "one")
    with pytest.raises(ReasonEmbedError, match=r"cannot write .*a/b/c: Not a directory"):
        write_whole(tmp_path / "a" / "b" / "c", "one")


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"

    def fill(text: str, *, replace: bool = False, fail: bool = False) -> None:
        with replacing_folder(folder, replace=replace) as part:
            (part / "file").write_text(text, encoding="utf-8")
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill("half", fail=True)
    assert list(folder.parent.iterdir()) == []
    fill("one")
    with pytest.raises(DataError, match="is not an empty folder"):
        fill("two")
    with pytest.raises(KeyboardInterrupt):
        fill("half", replace=True, fail=True)
    assert (folder / "file").read_text(encoding="utf-8") == "one"
    fill("two", replace=True)
    assert (folder / "file").read_text(encoding="utf-8") == "two"
    assert [file.name for file in folder.parent.iterdir()] == ["b"]


def test_hashes_that_stand_in_old_folders(tmp_path: Path) -> None:
    # Golden values: another one would make everything again that users have.
    write_whole(tmp_path / "b", "two")
    write_whole(tmp_path / "a", "one")
    golden = "xxh3:1208abb99dfd3491472ea3f01c2c911e"
    assert content_hash([tmp_path / "b", tmp_path / "a"]) == content_hash([tmp_path / "a", tmp_path / "b"])
    assert content_hash([tmp_path / "a", tmp_path / "b"]) == golden
    assert fingerprint("a", [1, {"ä": None}]) == "cf362f88b0b69b6596dbac9d045c803f"
    assert json_hash({"b": [1, None], "a": "ä"}) == "76631e7fd1109825b7a3d04ad84808f0"
    assert json_hash({"a": tmp_path}, default=lambda _: "ä") == json_hash({"a": "ä"})


def test_a_file_comes_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonembed_mteb.files._BLOCK", 3)
    write_whole(tmp_path / "x", b"abcdefgh")
    write_whole(tmp_path / "empty", b"")
    assert list(file_blocks(tmp_path / "x")) == [b"abc", b"def", b"gh"]
    assert list(file_blocks(tmp_path / "empty")) == []


def test_versions_of_what_is_installed() -> None:
    found = package_versions()
    assert list(found)[:2] == ["reasonembed-mteb", "mteb"]
    assert package_versions(["no-such-package", "mteb"]) == {"mteb": found["mteb"]}
