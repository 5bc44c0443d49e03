from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpy.errors import BadInputError
from xenpy.watch import KEPT, SLACK, ConsoleText, Watch, compile_pattern


def said(*chunks: bytes) -> ConsoleText:
    text = ConsoleText()
    for chunk in chunks:
        text.append(chunk)
    return text


def test_matches_across_chunk_borders() -> None:
    text = ConsoleText()
    watch = Watch(text, compile_pattern("log.n: $"))
    text.append(b"Debian lo")
    assert not watch()
    text.append(b"gin:")
    assert not watch()
    text.append(b" ")
    assert watch()
    assert watch.match is not None
    assert watch.match.group() == "login: "


def test_lines_end_plainly() -> None:
    assert said(b"one\r", b"\ntwo\r\n", b"10%\r20%\r").text == "one\ntwo\n10%\r20%"
    assert said(b"ready\r\n").search(compile_pattern("^ready$")) is not None


def test_characters_split_between_chunks() -> None:
    assert said("grün".encode()[:3], "grün".encode()[3:], b"\xff!").text == "grün\ufffd!"


def test_a_match_is_used_up() -> None:
    text = said(b"# ")
    prompt = compile_pattern("# ")
    assert text.search(prompt) is not None
    assert text.search(prompt) is None
    text.append(b"ls\r\n# ")
    assert text.search(prompt) is not None


def test_a_flood_is_bounded_and_still_matched() -> None:
    text = ConsoleText()
    watch = Watch(text, compile_pattern("END"))
    for _ in range(40):
        text.append(b"x" * 65536)
        assert not watch()
    text.append(b"END")
    assert watch()
    assert len(text.text) <= KEPT + SLACK
    assert text.dropped + len(text.text) == 40 * 65536 + 3


@pytest.mark.parametrize("pattern", ["(", "*", "[a", "(?P<x", "a{99999999999999999999}"])
def test_bad_patterns_say_so(pattern: str) -> None:
    with pytest.raises(BadInputError, match=r"--until .* is no regular expression"):
        compile_pattern(pattern, "--until")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_chunks_make_no_difference(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(data)]
    chunked = said(*(data[a:b] for a, b in pairwise(edges)))
    assert chunked.text == said(data).text
    assert data.decode("utf-8", "replace").replace("\r\n", "\n").startswith(chunked.text)
