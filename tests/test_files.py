"""Files and text: what is read, what is replaced, and what reaches a terminal."""

import gzip
import io
import math
import os
import socket

import numpy as np
import pytest

from jaxpart import files
from jaxpart.errors import FileFormatError, InputError, JaxpartError
from jaxpart.files import (
    check_writable,
    decode_json,
    read_bytes,
    stem_of,
    uncompressed,
    write_whole,
)
from jaxpart.ingest.seconds import write_seconds
from jaxpart.problem.graph import Graph, Node
from jaxpart.text import decimal, name_of, one_line, printable, shortened, tell
from tests.support.full_disk import FULL, WHEN, fill_up


@pytest.fixture
def irregular(tmp_path):
    """What is no regular file, by its kind."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(tmp_path / "socket"))
    listener.close()
    paths = {kind: tmp_path / kind.lower() for kind in ("FIFO", "folder", "socket")}
    return {**paths, "device": "/dev/zero"}


# Text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, größe, 层, 🙂", "plain, größe, 层, 🙂"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\tc\rd\0", r"a\nb\tc\rd\x00"),
        ("\x7f\x85\x9b", r"\x7f\x85\x9b"),
        ("abc\u202efed\u2066\u200b", r"abc\u202efed\u2066\u200b"),
        ("\u2028\ufeff\U000e0041", r"\u2028\ufeff\U000e0041"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("a\\b", "a\\b"),
    ],
)
def test_what_is_not_printable_is_escaped_once(text, expected):
    assert printable(text) == expected
    assert printable(expected) == expected


def test_long_names_lose_their_middle():
    assert shortened("abcdefghijkl", 12) == "abcdefghijkl"
    assert shortened("abcdefghijklm", 12) == "abcdef...klm"
    assert name_of("x" * 5000) == "x" * 52 + "..." + "x" * 25


def test_a_message_is_one_line_of_bounded_length():
    assert one_line("first:\n  second\x1b") == r"first: second\x1b"
    path = "/" + "p" * 250
    assert one_line(f"{path}: short words stay") == f"{path}: short words stay"
    assert one_line("n" * 5000 + " is wrong") == "n" * 198 + "..." + "n" * 99 + " is wrong"
    assert len(one_line("word " * 5000)) == 2000


def test_errors_are_printable_whatever_is_in_them():
    error = JaxpartError("a\x1b[2J\n" + "x" * 5000)

    assert str(error).startswith(r"a\x1b[2J xxx")
    assert str(error).isprintable()
    assert str(InputError(str(error))) == str(error)


def test_decimal_numbers_are_those_that_are_written_in_ascii():
    values = {
        "0": 0,
        "12": 12,
        "-0.5": -0.5,
        "+3": 3,
        ".25": 0.25,
        "4.": 4,
        "1e3": 1e3,
        "2E-2": 0.02,
    }
    assert {text: decimal(text) for text in values} == values
    assert decimal("1e999") == math.inf
    for text in ("", " 1", "1 ", "1\n", "1_0", "1e1_0", "\uff11", "\u0661", "nan", "inf", "-inf"):
        assert decimal(text) is None
    for text in (".", "-", "e5", "1e", "1e+", "0x1", "1,5", "1.2.3", "--1", "[1]", "1j", "True"):
        assert decimal(text) is None


def test_lines_are_spelled_in_the_encoding_of_the_stream():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    tell(stream, "größe \x1b\nsecond")

    assert raw.getvalue() == b"gr\\xf6\\xdfe \\x1b\nsecond\n"
    tell(None, "a program started without a terminal says nothing")


def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        tell(stream, "into the pipe")
        tell(stream, "and on")


def test_a_full_disk_is_an_error():
    with open("/dev/full", "w") as stream, pytest.raises(OSError, match="No space left"):
        tell(stream, "text")


# Reading


@pytest.mark.parametrize("kind", ["FIFO", "folder", "socket", "device"])
def test_what_is_no_regular_file_is_refused_before_it_is_read(irregular, kind):
    with pytest.raises(InputError, match=rf"cannot be read \(it is a {kind}\)"):
        read_bytes(irregular[kind])


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800"])
def test_what_is_no_path_is_refused(path):
    for use in (read_bytes, check_writable, lambda path: write_whole(path, b"")):
        with pytest.raises(InputError, match=r"empty|no valid path"):
            use(path)


def test_names_that_are_no_text_can_be_read_and_named(tmp_path):
    path = os.fsencode(tmp_path) + b"/bad\xff.x.json"
    with open(path, "wb") as file:
        file.write(b"content")

    assert read_bytes(os.fsdecode(path)) == b"content"
    assert stem_of(os.fsdecode(path)) == r"bad\udcff"


def test_a_link_to_a_file_is_read_and_a_name_too_long_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")

    assert read_bytes(tmp_path / "link") == b"content"
    with pytest.raises(InputError, match="cannot be read"):
        read_bytes(tmp_path / ("x" * 5000))


def test_a_file_has_a_largest_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * files.MIB)

    assert len(read_bytes(path, files.MIB)) == files.MIB
    path.write_bytes(b"x" * (files.MIB + 1))
    with pytest.raises(InputError, match="is larger than 1 MiB"):
        read_bytes(path, files.MIB)


def test_gzip_of_several_parts_comes_out_whole():
    parts = gzip.compress(b"one ") + gzip.compress(b"two") + b"\0" * 5

    assert uncompressed(parts, "f") == b"one two"
    assert uncompressed(b"plain", "f") == b"plain"


def test_damaged_gzip_is_refused():
    good = gzip.compress(bytes(range(256)) * 40)
    damaged = {
        "cut": good[:-9],
        "middle": good[:30] + bytes([good[30] ^ 0xFF]) + good[31:],
        "checksum": good[:-8] + bytes(4) + good[-4:],
        "surplus": good + b"more",
        "parts": gzip.compress(b"") * 101,
    }
    for content in damaged.values():
        with pytest.raises(FileFormatError, match="f: broken gzip file"):
            uncompressed(content, "f")


def test_a_decompression_bomb_stops_at_the_limit(monkeypatch):
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 1000)

    assert uncompressed(gzip.compress(b"x" * 1000), "f") == b"x" * 1000
    with pytest.raises(FileFormatError, match="expands to more than 0 MiB"):
        uncompressed(gzip.compress(b"x" * 1001), "f")
    # What hardly shrinks may be larger: models with weights.
    noise = np.random.default_rng(0).bytes(3000)
    assert uncompressed(gzip.compress(noise), "f") == noise


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "\xff"}', "is no utf-8 text"),
        (b'{"a": ' + b"[" * 100_000, "is nested too deep"),
        (b'{"a": ' + b"[" * 1500 + b"]" * 1500 + b"}", "is nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": NaN}', "malformed"),
        (b'{"a": "\\ud800"}', "truncated|malformed"),
        (b"", "truncated"),
    ],
)
def test_json_that_lies_is_refused(content, message):
    with pytest.raises(FileFormatError, match=f"f: here: .*{message}.*; expected it"):
        decode_json(content, dict, "f", place="here: ", expected="; expected it")


def test_json_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 6)

    assert decode_json(b"[1, 2]", list, "f") == [1, 2]
    with pytest.raises(FileFormatError, match="f: is larger than 0 MiB, the limit for JSON"):
        decode_json(b"[1, 2] ", list, "f")


# Writing


@pytest.mark.parametrize("kind", ["FIFO", "folder", "socket", "device", "link"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path, irregular, kind):
    (tmp_path / "link").symlink_to("target")
    path = {**irregular, "link": tmp_path / "link"}[kind]
    before = os.lstat(path)
    for write in (check_writable, lambda path: write_whole(path, b"new")):
        with pytest.raises(InputError, match=f"is a {kind}, expected a file to write"):
            write(path)

    assert os.lstat(path).st_mode == before.st_mode
    assert os.lstat(path).st_ino == before.st_ino


def test_files_that_cannot_be_written_are_found_before(tmp_path):
    protected = tmp_path / "protected"
    protected.write_text("old")
    protected.chmod(0o444)
    refused = {
        tmp_path / ("x" * 300): "cannot write here",
        tmp_path / "none" / "file": "cannot write here",
        protected / "file": "cannot write here",
        f"{tmp_path}/new/": "is a folder",
        protected: "is read-only",
    }
    for path, message in refused.items():
        for write in (check_writable, lambda path: write_whole(path, b"new")):
            with pytest.raises(InputError, match=message):
                write(path)
    assert protected.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["protected"]


WRITERS = {
    "text": lambda path: write_whole(path, b"new"),  # as calibrate.py writes TOML
    "graph": lambda path: Graph((Node("a", "add", 1, 1),), ()).save(path),
    "csv": lambda path: write_seconds(path, {"a": 1.0}),
}


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_fills_up_leaves_the_old_file(kind, when, tmp_path, monkeypatch):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    fill_up(monkeypatch, when)

    with pytest.raises(InputError, match=f"kept: {FULL}"):
        WRITERS[kind](path)

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_name_of_a_file_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)

    assert check_writable(path) == path
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [path]


def test_an_input_is_not_overwritten_under_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graph.json").write_text("graph")
    (tmp_path / "other.json").write_text("other")
    (tmp_path / "same.json").hardlink_to("graph.json")
    (tmp_path / "folder").mkdir()
    for path in ("graph.json", "./folder/../graph.json", tmp_path / "same.json"):
        with pytest.raises(InputError, match=r"is an input \(graph.json\), expected another file"):
            check_writable(path, ["bert-large", "graph.json"])

    assert str(check_writable("other.json", ["bert-large", "graph.json"])) == "other.json"
    assert str(check_writable("new.json", ["graph.json"])) == "new.json"
