"""Writing and reading a corpus."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.text.corpus import Document, licences, read_documents, source_documents, write_corpus
from m1jax.text.documents import Rejected
from m1jax.text.fetch import Package
from m1jax.text.overlap import NgramIndex
from m1jax.text.sources import Source

ITEM = "A 45 year old man comes to the clinic because of chest pain that began two hours ago"


DOMAINS = ("general", "medical")


def document(number: int, text: str | None = None, source: str = "notes", **fields: str) -> Document:
    values = {"language": "en", "domain": "medical", **fields}
    return Document(
        f"{source}/{number}", f"text number {number} of {source}" if text is None else text, source, **values
    )


def rows(path: Path) -> list[dict[str, str]]:
    return pq.read_table(path).to_pylist()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    documents = [document(i, source=source) for source in ("b", "a") for i in range(200)]
    documents.append(document(1000, "line\r\n\tend \0 é 急性 \U0001fac0", source="a", language="zh"))
    report = write_corpus(tmp_path, documents, heldout_share=0.1)
    training = list(read_documents(tmp_path))
    heldout = list(read_documents(tmp_path / "heldout"))
    assert sorted(training + heldout, key=str) == sorted(documents, key=str)
    assert [item.source for item in training] == sorted(item.source for item in training)
    schema = pq.read_schema(tmp_path / "documents" / "a.parquet")
    fields = ["id", "text", "source", "language", "domain", "difficulty", "parts", "columns", "shard", "record_id"]
    assert schema.names == fields
    assert [field.type for field in schema][:6] == [pa.string()] * 5 + [pa.float64()]
    for source in ("a", "b"):
        counts = report.sources[source]
        mine = [item for item in training if item.source == source]
        assert counts.documents == len(mine)
        assert counts.bytes == sum(len(item.text.encode()) for item in mine)
        assert counts.heldout_documents == sum(item.source == source for item in heldout)
        assert 5 <= counts.heldout_documents <= 40
    assert report.documents == len(training)
    assert report.sources["a"].languages == ["en", "zh"]
    assert report.rejected == {}


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    trees = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        write_corpus(folder, [document(i) for i in range(300)] + [document(0)])
        trees.append(tree(folder))
    assert trees[0] == trees[1]
    assert set(trees[0]) == {"documents/notes.parquet", "heldout/notes.parquet", "rejected.parquet"}


def test_the_split_depends_on_the_identifier_alone(tmp_path: Path) -> None:
    chosen = []
    for name, documents in {
        "forward": [document(i) for i in range(500)],
        "backward": [document(i, f"other text {i}") for i in reversed(range(500))],
    }.items():
        (tmp_path / name).mkdir()
        write_corpus(tmp_path / name, documents, heldout_share=0.05)
        chosen.append({item.id for item in read_documents(tmp_path / name / "heldout")})
    assert chosen[0] == chosen[1]
    by_hash = {
        f"notes/{i}"
        for i in range(500)
        if int.from_bytes(hashlib.blake2b(f"notes/{i}".encode(), digest_size=8).digest(), "big") < 0.05 * 2**64
    }
    assert chosen[0] == by_hash


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.sampled_from([0.02, 0.3, 0.9]), st.integers(1, 2000))
def test_held_out_text_is_bounded_and_never_missing(
    tmp_path_factory: pytest.TempPathFactory, count: int, share: float, most: int
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    documents = [document(i, f"{i} " + "x" * (i * 37 % 90)) for i in range(count)]
    report = write_corpus(folder, documents, heldout_share=share, heldout_bytes=most)
    training = {item.id for item in read_documents(folder)}
    heldout = list(read_documents(folder / "heldout"))
    assert training
    assert heldout
    assert not training & {item.id for item in heldout}
    assert len(training) + len(heldout) == count
    size = sum(len(item.text.encode()) for item in heldout)
    assert size == report.sources["notes"].heldout_bytes
    assert size <= most or len(heldout) == 1


def test_nothing_is_held_out_of_a_single_document_or_when_the_share_is_zero(tmp_path: Path) -> None:
    for name, documents, share in (("one", [document(0)], 0.5), ("none", [document(i) for i in range(50)], 0.0)):
        (tmp_path / name).mkdir()
        report = write_corpus(tmp_path / name, documents, heldout_share=share)
        assert report.documents == len(documents)
        assert not (tmp_path / name / "heldout").exists()


def test_bad_documents_are_set_aside_with_reason_and_counted(tmp_path: Path) -> None:
    good = [document(0), document(1, "unlike any other"), document(2, "the third")]
    good.append(document(0, "another text under a known id"))
    bad = {
        document(3, ""): "empty",
        document(4, " \n\0\t\u3000"): "empty",
        document(5, "unlike any other"): "duplicate text",
        document(6, "a lone \ud800 surrogate"): "no valid Unicode",
        document(7, domain="cooking"): "domain 'cooking' is not in data.domains",
        document(8, "é" * (16 << 20) + "!"): "larger than 32 MiB",
        document(9, f"Case: {ITEM.upper()}."): "evaluation overlap",
        document(10, source="a/b"): "source is no file name",
        Rejected("x.txt", "undecodable bytes (not UTF-8)", "\\xff", "notes"): "undecodable bytes (not UTF-8)",
    }
    report = write_corpus(tmp_path, [*good[:2], *bad, *good[2:]], evaluation=NgramIndex([ITEM]), domains=DOMAINS)
    assert report.rejected == dict(Counter(bad.values()))
    assert report.documents + sum(source.heldout_documents for source in report.sources.values()) == len(good)
    assert sum(source.rejected for source in report.sources.values()) == len(bad)
    aside = rows(tmp_path / "rejected.parquet")
    assert Counter(row["reason"] for row in aside) == Counter(bad.values())
    texts = {row["reason"]: row["text"] for row in aside}
    assert texts["evaluation overlap"] == f"Case: {ITEM.upper()}."
    assert texts["no valid Unicode"] == "a lone \\ud800 surrogate"
    kept = [*read_documents(tmp_path), *read_documents(tmp_path / "heldout")]
    assert sorted(kept, key=str) == sorted(good, key=str)


def test_a_document_set_aside_does_not_count_as_seen_text(tmp_path: Path) -> None:
    first, second = document(0, "same text", domain="cooking"), document(1, "same text")
    report = write_corpus(tmp_path, [first, second], domains=DOMAINS)
    assert list(read_documents(tmp_path)) == [second]
    assert report.rejected == {"domain 'cooking' is not in data.domains": 1}


def test_a_source_of_several_domains_becomes_one_of_each(tmp_path: Path) -> None:
    """The first domain that comes keeps the name, whatever the order after it; a name that is taken is not joined."""
    domains = ["pathology", "guidelines", "pathology", "interventional radiology"] * 20
    documents = [document(i, domain=domain) for i, domain in enumerate(domains)]
    documents += [document(i, source="notes-guidelines", domain="radiology") for i in range(3)]
    report = write_corpus(tmp_path, [documents[-1], *documents[:-1]], heldout_share=0)
    assert {name: source.domains for name, source in report.sources.items()} == {
        "notes": ["pathology"],
        "notes-guidelines": ["radiology"],
        "notes-guidelines-guidelines": ["guidelines"],
        "notes-interventional-radiology": ["interventional radiology"],
    }
    read = list(read_documents(tmp_path))
    assert {item.id: (item.text, item.domain) for item in read} == {i.id: (i.text, i.domain) for i in documents}
    assert all(report.sources[item.source].domains == [item.domain] for item in read)


def test_an_empty_corpus_is_an_error_that_counts_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus is empty.*\(none came in\)"):
        write_corpus(tmp_path, [])
    with pytest.raises(UserError, match=r"\(empty: 2\)"):
        write_corpus(tmp_path, [document(0, ""), document(1, " ")])


def test_a_source_that_differs_in_every_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="over 200 sources"):
        write_corpus(tmp_path, [document(i, source=f"s{i}") for i in range(600)])
    with pytest.raises(UserError, match=r"'s0', 's1', 's2'.*data\.fields\.source = ''.*one folder"):
        write_corpus(tmp_path, [document(i, source=f"s{i}") for i in range(600)])


def test_sources_of_which_nothing_is_kept_do_not_fill_the_report(tmp_path: Path) -> None:
    """A field such as an address may hold another value in every record."""
    bad = [document(i, source=f"s{i}", domain="cooking") for i in range(600)]
    report = write_corpus(tmp_path, [*bad, document(0)], heldout_share=0, domains=DOMAINS)
    assert len(report.sources) == 202 and report.sources["notes"].documents == 1
    assert report.sources["other sources"].rejected == 400
    assert sum(source.rejected for source in report.sources.values()) == 600


def test_many_row_groups_keep_all_text(tmp_path: Path) -> None:
    documents = [document(i, f"{i} " + "y" * 300_000) for i in range(40)]
    write_corpus(tmp_path, documents, heldout_share=0)
    assert pq.ParquetFile(tmp_path / "documents" / "notes.parquet").num_row_groups > 3
    assert sorted(read_documents(tmp_path), key=str) == sorted(documents, key=str)


def test_reading_names_the_file_at_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.parquet is missing"):
        list(read_documents(tmp_path / "nowhere.parquet"))
    with pytest.raises(UserError, match=r"holds no \.parquet file"):
        list(read_documents(tmp_path))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no more than this")
    with pytest.raises(UserError, match=r"broken\.parquet is no readable Parquet") as failure:
        list(read_documents(broken))
    assert "\n" not in str(failure.value)
    pq.write_table(pa.table({"id": ["1"], "text": ["t"], "source": ["s"]}), broken)
    with pytest.raises(UserError, match=r"broken\.parquet has no column language, domain"):
        list(read_documents(broken))
    columns = {name: ["x"] for name in ("id", "source", "language", "domain")}
    pq.write_table(pa.table({**columns, "text": pa.array([None], pa.string())}), broken)
    with pytest.raises(UserError, match=r"broken\.parquet has rows without text"):
        list(read_documents(broken))
    empty = pa.table({name: pa.array([], pa.string()) for name in (*columns, "text")})
    pq.write_table(empty, broken)
    with pytest.raises(UserError, match="holds no document"):
        list(read_documents(broken))


def test_a_truncated_corpus_is_an_error(tmp_path: Path) -> None:
    write_corpus(tmp_path, [document(i) for i in range(100)])
    path = tmp_path / "documents" / "notes.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"notes\.parquet is no readable Parquet"):
        list(read_documents(tmp_path))


def test_licences_name_package_version_and_citation(tmp_path: Path) -> None:
    package = Package("npm", "words", "1.2.3", "0" * 64, "MIT")
    source = Source("poems", package, "zh", "general", "CC0-1.0", "Somebody, 1900.", lambda path: iter([("1", "t")]))
    licences(tmp_path, [source])
    text = (tmp_path / "LICENCES.md").read_text()
    assert all(part in text for part in ("poems", "words 1.2.3", "MIT", "CC0-1.0", "Somebody, 1900."))
    [record] = json.loads((tmp_path / "sources.json").read_text())
    assert record["package"]["sha256"] == "0" * 64
    assert (record["licence"], record["domain"]) == ("CC0-1.0", "general")
    assert list(source_documents(source, tmp_path)) == [Document("poems/1", "t", "poems", "zh", "general")]
