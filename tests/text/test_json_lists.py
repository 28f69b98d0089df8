"""A .json file that is one list of objects: read piece by piece, whatever its layout, and to where it is broken."""

import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.text import json_lists
from m1jax.text.documents import Document, Rejected
from m1jax.text.folder import read_folder
from m1jax.text.json_lists import BrokenListError, begins_list, elements

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda some: st.lists(some, max_size=3),
    max_leaves=4,
)
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


@given(st.lists(OBJECTS | st.integers(), max_size=6), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_elements_are_those_of_the_list_in_pieces_of_any_size(values, indent, ascii_only, size):
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "_READ", size)
        assert [json.loads(element) for element in elements(io.BytesIO(data))] == values


@pytest.mark.parametrize(
    "data", [b'[{"a": 1}, {"b"', b'[{"a": 1}, {b}]', b'[{"a": 1}', b'[{"a": 1}, ', b'[{"a": 1} x {}]']
)
def test_what_comes_before_the_break_is_read(data):
    found = elements(io.BytesIO(data))
    assert next(found) == b'{"a": 1}'
    with pytest.raises(BrokenListError, match="not JSON from here on"):
        next(found)


def test_an_element_without_end_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr(json_lists, "LARGEST", 1000)
    with pytest.raises(BrokenListError, match="larger than"):
        list(elements(io.BytesIO(b'[{"a": "' + b"x" * 1_000_000)))


def test_what_begins_a_list_of_objects():
    for head in (b"[{", b"\xef\xbb\xbf [\n  {", b"[]", b"["):
        assert begins_list(head)
    for head in (b"{", b"[1", b'["', b"[[", b""):
        assert not begins_list(head)


def test_documents_of_a_list(tmp_path):
    records = [{"text": "one"}, {"txt": "two"}, 3, {"text": "vier", "id": 4}]
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(records, indent=1).encode()))
    (tmp_path / "b.json").write_bytes(b'[{"text": "h\xe4rt"}, {"text": "five"}, {"text": "si')
    (tmp_path / "c.json").write_text("[1, 2]")
    items = list(read_folder(tmp_path, ("text",)))
    assert [(item.id, item.text, item.record_id) for item in items if isinstance(item, Document)] == [
        ("a.json.gz#1", "one", ""), ("a.json.gz#4", "vier", "4"), ("b.json#2", "five", ""),
    ]  # fmt: skip
    assert [(item.origin, item.reason) for item in items if isinstance(item, Rejected)] == [
        ("a.json.gz#2", "no field text or content"),
        ("a.json.gz#3", "not a JSON object"),
        ("b.json#1", "undecodable bytes (not UTF-8)"),
        ("b.json#3", "not JSON from here on"),
        ("c.json", "JSON, but neither a list of objects nor an object in each line"),
    ]
