"""Anybody's folder of text: places and ids, shards, sources and domains, settings, links."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m1jax.errors import UserError
from m1jax.text.corpus import Document, Report, read_documents, read_folder, write_corpus
from m1jax.text.documents import Rejected
from m1jax.text.folder import files_of

DOMAINS = ("general", "medical")


def rows(path: Path) -> list[dict[str, str]]:
    return pq.read_table(path).to_pylist()


def lines(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def read(folder: Path, domains: tuple[str, ...] = DOMAINS, **settings: object) -> list[Document]:
    """The documents of a folder of which nothing is set aside."""
    items = list(read_folder(folder, domains, **settings))
    assert not [item for item in items if isinstance(item, Rejected)]
    return items


def folder_corpus(folder: Path, tmp_path: Path) -> tuple[Report, dict[str, Document]]:
    out = tmp_path / "out"
    out.mkdir()
    report = write_corpus(out, read_folder(folder, DOMAINS), heldout_share=0)
    return report, {item.id: item for item in read_documents(out)}


def test_a_folder_of_text_is_read_with_domains_and_sources(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for path, text in {
        "a.txt": "\ufeffplain",
        "medical/b.TXT": "a case",
        "medical/letters/c.txt": "a letter",
        "letters/deep/er/d.txt": "another letter",
        "general/e f!.jsonl": '{"text": "one", "id": 7, "language": "zh", "domain": "medical", "source": "q & a"}\n\n'
        '{"content": "two"}\r\n{"text": "three", "id": null}',
        ".hidden/x.txt": "never",
        ".y.txt": "never",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8", newline="")
    pq.write_table(pa.table({"content": ["four", "five"], "id": pa.array([1, 2])}), folder / "table.parquet")
    report, documents = folder_corpus(folder, tmp_path)
    assert report.rejected == {}
    found = {key: (item.text, item.source, item.language, item.domain) for key, item in documents.items()}
    assert found == {
        "a.txt": ("plain", "mine", "en", "general"),
        "medical/b.TXT": ("a case", "medical", "en", "medical"),
        "medical/letters/c.txt": ("a letter", "letters-medical", "en", "medical"),
        "letters/deep/er/d.txt": ("another letter", "letters", "en", "general"),
        "general/e f!.jsonl#1": ("one", "q-a-medical", "zh", "medical"),
        "general/e f!.jsonl#3": ("two", "general", "en", "general"),
        "general/e f!.jsonl#4": ("three", "general", "en", "general"),
        "table.parquet#1": ("four", "mine", "en", "general"),
        "table.parquet#2": ("five", "mine", "en", "general"),
    }
    own = {"general/e f!.jsonl#1": "7", "table.parquet#1": "1", "table.parquet#2": "2"}
    assert {key: item.record_id for key, item in documents.items()} == dict.fromkeys(found, "") | own
    assert all(key.startswith(item.shard) for key, item in documents.items())
    others = {item.id: item for item in read_folder(folder, ("deep", "medical"), "de") if isinstance(item, Document)}
    assert {(others[key].language, others[key].domain) for key in ("a.txt", "general/e f!.jsonl#3")} == {("de", "deep")}
    assert (others["letters/deep/er/d.txt"].source, others["letters/deep/er/d.txt"].domain) == ("letters", "deep")
    assert others["general/e f!.jsonl#3"].source == "general"


def test_bad_files_and_lines_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "good.txt").write_text("fine")
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "nul.txt").write_bytes(b"\0\0\0")
    (folder / "empty.txt").write_text("")
    (folder / "page.html").write_text("<p>")
    (folder / os_name()).write_text("name that is no UTF-8")
    deep = "[" * 100_000
    lines = [
        b'{"text": "fine too"}',
        b"{broken",
        b'"a string"',
        b'{"title": "no text"}',
        b'{"text": 5}',
        b'{"text": "\xff"}',
    ]
    lines += [b'{"text": "\\ud800"}', deep.encode(), b'{"text": ""}', b"null", b'{"text": "fine", "id": "good.txt"}']
    (folder / "lines.jsonl").write_bytes(b"\n".join(lines))
    binary = pa.array([b"good bytes", b"\xff", None], pa.binary())
    pq.write_table(pa.table({"text": binary}), folder / "t.parquet")
    report, documents = folder_corpus(folder, tmp_path)
    assert sorted(item.text for item in documents.values()) == [
        "fine",
        "fine too",
        "good bytes",
        "name that is no UTF-8",
    ]
    assert report.rejected == {
        "undecodable bytes (not UTF-8)": 3,
        "empty": 3,
        "no field text or content": 3,
        "not a JSON object": 2,
        "not JSON": 2,
        "not a .txt, .jsonl or .parquet file": 1,
        "no valid Unicode": 1,
        "duplicate text": 1,
    }
    aside = {(row["origin"], row["reason"]) for row in rows(tmp_path / "out" / "rejected.parquet")}
    assert ("lines.jsonl#2", "not JSON") in aside
    assert ("latin.txt", "undecodable bytes (not UTF-8)") in aside
    assert ("t.parquet#3", "no field text or content") in aside


def os_name() -> str:
    return os.fsdecode(b"\xffname.txt")


def test_a_line_or_file_beyond_the_limit_is_set_aside_and_the_rest_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("m1jax.text.folder.LARGEST", 100)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 1000}) + "\n" + json.dumps({"text": "after"}) + "\n")
    (tmp_path / "b.txt").write_text("y" * 101)
    (tmp_path / "c.txt").write_text("z" * 100)
    items = list(read_folder(tmp_path, DOMAINS))
    assert [type(item) for item in items] == [Rejected, Document, Rejected, Document]
    assert [item.reason for item in items if isinstance(item, Rejected)] == ["larger than 32 MiB"] * 2
    assert [item.id for item in items if isinstance(item, Document)] == ["a.jsonl#2", "c.txt"]


def test_folders_and_tables_that_cannot_serve_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        list(read_folder(tmp_path / "nowhere", DOMAINS))
    (tmp_path / "note.md").write_text("text")
    with pytest.raises(UserError, match=r"holds no \.txt, \.jsonl or \.parquet file"):
        list(read_folder(tmp_path, DOMAINS))
    path = tmp_path / "x.parquet"
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"x\.parquet is no readable Parquet"):
        list(read_folder(tmp_path, DOMAINS))
    for table in ({"body": ["t"]}, {"text": [1]}):
        pq.write_table(pa.table(table), path)
        with pytest.raises(UserError, match=r"x\.parquet has no column of text named text or content"):
            list(read_folder(tmp_path, DOMAINS))


def test_an_unreadable_folder_inside_is_not_passed_over(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="locked cannot be read"):
        list(read_folder(tmp_path, DOMAINS))


def test_ids_that_begin_again_in_every_shard_cost_nothing(tmp_path: Path) -> None:
    """Only an equal text is a duplicate; 7 and "7", and one id for several records, are as good."""
    for name, letter in (("a", "x"), ("b", "y"), ("c", "z")):
        records = [{"id": number, "text": f"{letter}{number}"} for number in range(4)]
        lines(tmp_path / "notes" / f"{name}.jsonl", *records, {"id": "0", "text": f"{letter}!"}, records[1])
    report, documents = folder_corpus(tmp_path / "notes", tmp_path)
    assert report.rejected == {"duplicate text": 3}
    assert len(documents) == 15
    assert {name: (item.text, item.record_id) for name, item in documents.items() if name.startswith("b")} == {
        **{f"b.jsonl#{number + 1}": (f"y{number}", str(number)) for number in range(4)},
        "b.jsonl#5": ("y!", "0"),
    }
    aside = rows(tmp_path / "out" / "rejected.parquet")
    assert [(row["origin"], row["record_id"]) for row in aside] == [(f"{name}.jsonl#6", "1") for name in "abc"]


def test_shards_of_one_folder_are_one_source_however_many(tmp_path: Path) -> None:
    for number in range(300):
        lines(
            tmp_path / "text" / "medical" / "trials" / f"train-{number:05d}-of-00300.jsonl", {"text": f"trial {number}"}
        )
        lines(tmp_path / "text" / "general" / f"part-{number}.jsonl", {"text": f"page {number}"})
    report, _ = folder_corpus(tmp_path / "text", tmp_path)
    assert {name: source.documents for name, source in report.sources.items()} == {
        "general": 300,
        "trials-medical": 300,
    }


def test_the_domain_belongs_to_the_key_of_a_source(tmp_path: Path) -> None:
    """The key means the same text whatever other text comes later, before it or after it."""
    for domain in ("medical", "general"):
        lines(tmp_path / domain / "letters" / "train.jsonl", {"text": f"a letter, {domain}"})
        lines(tmp_path / domain / "train.jsonl", {"text": f"a text, {domain}"})
    lines(tmp_path / "mixed" / "a.jsonl", {"text": "one", "domain": "medical"}, {"text": "two"})
    assert {item.text: (item.source, item.domain) for item in read(tmp_path)} == {
        "a letter, general": ("letters", "general"),
        "a letter, medical": ("letters-medical", "medical"),
        "a text, general": ("general", "general"),
        "a text, medical": ("medical", "medical"),
        "one": ("mixed-medical", "medical"),
        "two": ("mixed", "general"),
    }
    (tmp_path / "general" / "letters" / "train.jsonl").unlink()
    assert {"letters-medical"} == {item.source for item in read(tmp_path) if "letter" in item.text}


def test_a_folder_may_be_called_otherwise_than_its_domain(tmp_path: Path) -> None:
    for path in ("Medical/a.jsonl", "Medical/trials/b.jsonl", "Wiki/c.jsonl"):
        lines(tmp_path / path, {"text": path})
    names = {"Medical": "medical", "Wiki": "", "*": "medical"}
    assert {item.text: (item.source, item.domain) for item in read(tmp_path, domain_names=names)} == {
        "Medical/a.jsonl": ("medical", "medical"),
        "Medical/trials/b.jsonl": ("trials-medical", "medical"),
        "Wiki/c.jsonl": ("Wiki", "general"),
    }


def test_the_given_folder_itself_may_be_called_like_a_domain(tmp_path: Path) -> None:
    for path in ("a.jsonl", "trials/b.jsonl", "general/c.jsonl"):
        lines(tmp_path / "medical" / path, {"text": path})
    assert {item.text: (item.source, item.domain) for item in read(tmp_path / "medical")} == {
        "a.jsonl": ("medical", "medical"),
        "trials/b.jsonl": ("trials-medical", "medical"),
        "general/c.jsonl": ("general", "general"),
    }


def test_fields_are_named_mapped_and_ignored_by_settings(tmp_path: Path) -> None:
    web = {"url": "u1", "text": "short", "body": "one", "domain": "example.org", "source": {"crawl": 3}}
    lines(tmp_path / "web" / "a.jsonl", web, {**web, "body": "two", "domain": "Medical"}, {**web, "body": "three"})
    table = {"body": ["four"], "url": ["u4"], "domain": [["medical"]], "source": [b"\xff"], "text": [5]}
    pq.write_table(pa.table(table), tmp_path / "web" / "b.parquet")
    fields = {"text": "body", "id": "url", "domain": ""}
    assert {(item.text, item.record_id, item.source, item.domain) for item in read(tmp_path, fields=fields)} == {
        ("one", "u1", "web", "general"),
        ("two", "u1", "web", "general"),
        ("three", "u1", "web", "general"),
        ("four", "u4", "web", "general"),
    }
    fields = {"text": "body"}
    for names, medical in (({"Medical": "medical", "*": ""}, {"two"}), ({"*": "medical"}, {"one", "two", "three"})):
        found = read(tmp_path, fields=fields, domain_names=names)
        assert {item.text for item in found if item.domain == "medical"} == medical
        assert {item.source for item in found} == {"web", "web-medical"}
    lines(tmp_path / "web" / "a.jsonl", {"body": "listed", "domain": "medical"}, {"body": "other", "domain": "law"})
    found = read(tmp_path, fields=fields, domain_names={"*": "general"})
    assert {item.text: item.domain for item in found} == {"listed": "medical", "other": "general", "four": "general"}
    with pytest.raises(UserError, match=r"no column of text named text or content .*data\.fields\.text"):
        list(read_folder(tmp_path, DOMAINS))


def test_links_are_followed_or_said(tmp_path: Path) -> None:
    """As in a hub's cache, where a file is a link to one without an ending; a link back ends, and so does the walk."""
    blobs, text = tmp_path / "blobs", tmp_path / "text"
    lines(blobs / "0a1b", {"text": "from a blob"})
    lines(blobs / "inner" / "x.jsonl", {"text": "from a folder"})
    text.mkdir()
    (text / "shard.jsonl").symlink_to(blobs / "0a1b")
    (text / "more").symlink_to(blobs / "inner")
    (text / "gone.jsonl").symlink_to(tmp_path / "nothing")
    (text / "back").symlink_to(text)
    (text / "itself").symlink_to(text / "itself")
    os.mkfifo(text / "pipe.txt")
    items = list(read_folder(text, DOMAINS))
    assert {item.id: (item.text, item.source) for item in items if isinstance(item, Document)} == {
        "shard.jsonl#1": ("from a blob", "text"),
        "more/x.jsonl#1": ("from a folder", "more"),
    }
    assert {item.origin: item.reason for item in items if isinstance(item, Rejected)} == {
        "gone.jsonl": "a broken link",
        "itself": "a broken link",
        "pipe.txt": "not a regular file",
        "back": "a link to a folder that contains it",
    }
    (tmp_path / "linked").symlink_to(text)
    assert {item.source for item in read_folder(tmp_path / "linked", DOMAINS)} == {"linked", "more"}
    assert (text / "more" / "x.jsonl", "") in list(files_of(text))
