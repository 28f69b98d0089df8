"""Text in the formats that people have: compressed, in columns of any type, of another encoding."""

import bz2
import gzip
import json
import lzma
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from m1jax.errors import UserError
from m1jax.text.documents import Document, Rejected
from m1jax.text.encodings import UNDECODABLE, undecodable
from m1jax.text.folder import read_folder

DOMAINS = ("general", "medical")


def lines(path: Path, *records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)))


def read(folder: Path) -> list[Document]:
    """The documents of a folder of which nothing is set aside."""
    items = list(read_folder(folder, DOMAINS))
    assert not [item for item in items if isinstance(item, Rejected)]
    return [item for item in items if isinstance(item, Document)]


def compress(kind: str, text: bytes) -> bytes:
    if kind == "zst":
        wide = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
        frame = zstandard.ZstdCompressor(compression_params=wide).compressobj()
        return frame.compress(text) + frame.flush()
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](text)


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2", "xz"])
def test_compressed_shards_are_read_whole(tmp_path: Path, kind: str) -> None:
    """Of several members or frames, and of a window that decoders refuse unless they are told to allow it."""
    parts = [json.dumps({"text": f"line {i}"}).encode() + b"\n" for i in range(400)]
    packed = compress(kind, b"".join(parts[:150])) + compress(kind, b"".join(parts[150:]))
    shard = tmp_path / f"a.jsonl.{kind}"
    shard.write_bytes(packed)
    (tmp_path / f"b.txt.{kind.upper()}").write_bytes(compress(kind, "a text, 急性".encode()))
    (tmp_path / f"c.json.{kind}").write_bytes(compress(kind, b'{"text": "as C4 has it"}\n'))
    found = read(tmp_path)
    assert [item.text for item in found] == [*(f"line {i}" for i in range(400)), "a text, 急性", "as C4 has it"]
    assert found[-2].id == f"b.txt.{kind.upper()}"
    shard.write_bytes(packed[:-9])
    with pytest.raises(UserError, match=rf"a\.jsonl\.{kind} cannot be read"):
        list(read_folder(tmp_path, DOMAINS))
    shard.write_bytes(b"no such format")
    with pytest.raises(UserError, match=rf"a\.jsonl\.{kind} cannot be read"):
        list(read_folder(tmp_path, DOMAINS))


def test_json_that_is_not_one_object_a_line_is_set_aside_once(tmp_path: Path) -> None:
    (tmp_path / "dataset_infos.json").write_text(json.dumps({"a": [1, 2], "b": {}}, indent=1))
    (tmp_path / "list.json").write_text(json.dumps([["x"]] * 3, indent=1))
    lines(tmp_path / "lines.ndjson", {"text": "good"})
    items = list(read_folder(tmp_path, DOMAINS))
    assert [getattr(item, "text", "") for item in items if isinstance(item, Document)] == ["good"]
    reason = "JSON, but neither a list of objects nor an object in each line"
    aside = [(item.origin, item.reason) for item in items if isinstance(item, Rejected)]
    assert aside == [("dataset_infos.json", reason), ("list.json", reason)]


TEXTS = ["first text", "second 急性", None]
COLUMNS = {
    "string": pa.array(TEXTS),
    "string_view": pa.array(TEXTS, pa.string_view()),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "binary": pa.array(TEXTS, pa.string()).cast(pa.binary()),
    "binary_view": pa.array([text and text.encode() for text in TEXTS], pa.binary_view()),
    "large_binary": pa.array(TEXTS, pa.large_string()).cast(pa.large_binary()),
    "json": pa.array(TEXTS, pa.json_()),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_text_of_any_type(tmp_path: Path, kind: str) -> None:
    pq.write_table(pa.table({"text": COLUMNS[kind], "id": COLUMNS[kind]}), tmp_path / "a.parquet")
    *good, bad = read_folder(tmp_path, DOMAINS)
    assert [(item.text, item.record_id) for item in good] == [(text, text) for text in TEXTS[:2]]
    assert (bad.origin, bad.reason) == ("a.parquet#3", "no field text or content")


def test_text_of_a_fixed_size(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"abcd", b"efgh"], pa.binary(4))}), tmp_path / "a.parquet")
    assert [item.text for item in read(tmp_path)] == ["abcd", "efgh"]


def test_optional_columns_of_any_type_cost_neither_the_run_nor_a_document(tmp_path: Path) -> None:
    """What cannot be used is ignored; an id is kept as text whatever it is."""
    key = uuid.UUID(int=7)
    odd = {
        "uuid": (pa.array([key.bytes], pa.uuid()), str(key)),
        "bytes": (pa.array([b"\xff\x01"], pa.binary()), "ff01"),
        "number": (pa.array([12]), "12"),
        "list": (pa.array([["a", "b"]]), '["a", "b"]'),
        "struct": (pa.array([{"a": 1}]), '{"a": 1}'),
        "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), '[["a", 1]]'),
        "time": (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
        "null": (pa.nulls(1), ""),
        "dictionary": (pa.array(["x"]).dictionary_encode(), "x"),
    }
    for name, (column, _) in odd.items():
        fields = dict.fromkeys(("id", "source", "language", "domain", "difficulty"), column)
        if name in ("number", "dictionary", "time", "uuid"):
            del fields["domain"], fields["source"]
        pq.write_table(pa.table({"text": [f"text of {name}"], **fields}), tmp_path / f"{name}.parquet")
    found = {item.text.removeprefix("text of "): item for item in read(tmp_path)}
    assert {name: found[name].record_id for name in odd} == {name: own for name, (_, own) in odd.items()}
    assert {item.domain for item in found.values()} == {"general"}
    assert found["number"].difficulty == 12 and found["struct"].difficulty is None
    bad = [{"text": f"line {i}", field: value} for i, (field, value) in enumerate(
        (field, value)
        for field in ("id", "source", "language", "domain", "difficulty")
        for value in ("\ud800", ["a"], {"b": 1}, "", None)
    )]  # fmt: skip
    lines(tmp_path / "odd" / "lines.jsonl", *bad, {"text": "nan", "difficulty": float("nan")})
    (tmp_path / "odd" / "torn.jsonl").write_bytes(b'{"text": "\xe6\x80\xa5", "title": "caf\xe9", "domain": "\xff"}')
    torn = read(tmp_path / "odd")
    assert [item.text for item in torn] == [*(f"line {i}" for i in range(len(bad))), "nan", "急"]
    assert {(item.source, item.language, item.domain, item.difficulty) for item in torn} == {
        ("odd", "en", "general", None)
    }


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    arrays = [[7], [""], ["second"], ["dotted"], [["list"]], ["own"]]
    names = ["text", "text", "text", "text.raw", "id", "id"]
    table = pa.Table.from_arrays([pa.array(values) for values in arrays], names=names)
    pq.write_table(table, tmp_path / "a.parquet")
    (found,) = read(tmp_path)
    assert (found.text, found.record_id) == ("second", '["list"]')


def test_empty_or_null_text_beside_full_content_means_the_same_in_every_format(tmp_path: Path) -> None:
    records = [
        {"text": text, "content": content} for content in ("full", None, "") for text in (None, "", " \0", "own")
    ]
    lines(tmp_path / "lines" / "a.jsonl", *records)
    (tmp_path / "table").mkdir()
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "table" / "a.parquet")
    found = []
    for name in ("lines", "table"):
        items = read_folder(tmp_path / name, DOMAINS)
        found.append([item.reason if isinstance(item, Rejected) else item.text for item in items])
    missing = "no field text or content"
    assert found == [["full", "full", "full", "own", missing, "", " \0", "own", "", "", " \0", "own"]] * 2


CHINESE = "患者因发热三天入院，体温三十九度，给予抗生素治疗后好转。"


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "utf-16", "utf-16-le"])
def test_bytes_of_another_encoding_are_named(tmp_path: Path, encoding: str) -> None:
    name = "UTF-16" if "16" in encoding else "GBK"
    reason = f"undecodable bytes (not UTF-8, they look like {name})"
    # Without its mark UTF-16 shows in Latin letters only.
    text = "A patient came with a fever." if encoding == "utf-16-le" else CHINESE
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    both = f'{{"text": "{text}"}}\n' * 2
    (tmp_path / "b.jsonl").write_bytes(both.encode(encoding))
    items = list(read_folder(tmp_path, DOMAINS))
    places = ["a.txt", "b.jsonl"] if name == "UTF-16" else ["a.txt", "b.jsonl#1", "b.jsonl#2"]
    assert [(item.origin, item.reason) for item in items] == [(place, reason) for place in places]
    pq.write_table(pa.table({"text": pa.array([text.encode("gbk")], pa.binary())}), tmp_path / "c.parquet")
    if name == "GBK":
        assert list(read_folder(tmp_path, DOMAINS))[-1].reason == reason


@pytest.mark.parametrize(
    "raw", ["caf\xe9 cr\xe8me \xe9t\xe9".encode("latin-1"), bytes(range(128, 256)), b"ok \xe6\x80"]
)
def test_other_bytes_are_not_given_a_wrong_name(raw: bytes) -> None:
    assert undecodable(raw) == UNDECODABLE


def test_strings_of_a_table_that_are_no_utf8_are_set_aside(tmp_path: Path) -> None:
    bad = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "t.parquet")
    items = list(read_folder(tmp_path, DOMAINS))
    assert [getattr(item, "reason", "") for item in items] == ["", UNDECODABLE]
