"""Documents that say what of them is learned, and the numbers that they carry: on disk and back, or set aside."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.text.corpus import write_corpus
from m1jax.text.documents import DOCUMENT_SCHEMA, Document, Part, Rejected, Table, read_documents
from m1jax.text.set_aside import fault, screen

WEIGHTS = st.floats(0, 10) | st.sampled_from([0.0, 1.0])
PARTS = st.builds(Part, text=st.text(max_size=5), weight=WEIGHTS) | st.builds(
    Part, ids=st.lists(st.integers(0, 2**32), min_size=1, max_size=3).map(tuple), weight=WEIGHTS
)
COLUMNS = st.dictionaries(
    st.sampled_from(["pair", "side", "größe"]), st.integers(-(2**31), 2**31 - 1) | st.floats(-5, 5), max_size=2
)


def of_parts(*parts, **rest):
    return Document.of_parts("i", parts, "s", "en", "general", **rest)


@given(st.lists(st.tuples(st.lists(PARTS, max_size=4), COLUMNS), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_parts_and_columns_are_read_back_as_they_were_written(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("parts") / "s.parquet"
    documents = [
        Document.of_parts(str(i), parts, "s", "en", "general", columns=columns)
        for i, (parts, columns) in enumerate(contents)
    ]
    with Table(path, DOCUMENT_SCHEMA) as table:
        for document in documents:
            table.write(document, 1)
    found = list(read_documents(path))
    assert found == documents
    kinds = [[type(value) for value in document.columns.values()] for document in documents]
    assert [[type(value) for value in document.columns.values()] for document in found] == kinds


@pytest.mark.parametrize("missing", [["parts", "columns"], ["difficulty"], ["difficulty", "parts"]])
def test_files_without_the_optional_columns(tmp_path, missing):
    document = of_parts(Part("a", weight=0.0), Part("b"), difficulty=2.0, columns={"side": 1})
    with Table(tmp_path / "s.parquet", DOCUMENT_SCHEMA) as table:
        table.write(document, 1)
    pq.write_table(pq.read_table(tmp_path / "s.parquet").drop_columns(missing), tmp_path / "s.parquet")
    (found,) = read_documents(tmp_path / "s.parquet")
    expected = {"difficulty": 2.0, "parts": document.parts, "columns": {"side": 1}}
    empty = {"difficulty": None, "parts": (), "columns": {}}
    assert {name: getattr(found, name) for name in empty} == {**expected, **{name: empty[name] for name in missing}}


def test_parts_that_another_program_wrote(tmp_path):
    """Other widths of numbers are as good; a weight that is missing is not taken for 1."""
    part = pa.struct([("text", pa.string()), ("ids", pa.list_(pa.int32())), ("weight", pa.float32())])
    whole = [{"text": "ab", "ids": None, "weight": 0.5}, {"text": None, "ids": [7], "weight": 0.0}]
    table = {name: ["x", "y"] for name in ("id", "source", "language")}
    table |= {"domain": pa.array(["general"] * 2).dictionary_encode(), "text": pa.array(["ab"] * 2, pa.string_view())}
    table |= {"difficulty": ["2.5", "hard"], "shard": pa.array([None, 3])}
    without = [{"text": "ab", "ids": None, "weight": None}]
    pq.write_table(pa.table({**table, "parts": pa.array([whole, without], pa.list_(part))}), tmp_path / "other.parquet")
    good, bad = read_documents(tmp_path / "other.parquet")
    assert good.parts == (Part("ab", weight=0.5), Part(ids=(7,), weight=0.0))
    assert (good.text, good.domain, good.difficulty, bad.difficulty) == ("ab", "general", 2.5, None)
    # The file is a shard of its own, and its ids are those of its records.
    assert (good.id, good.shard, good.record_id, bad.id) == ("other.parquet#1", "other.parquet", "x", "other.parquet#2")
    assert fault(bad) == "the weight of part 1 is not a finite number of 0 or more"


BAD = {
    "part 1 has a token id that is not a whole number of 0 or more": of_parts(Part(ids=(3, -1)), Part("a")),
    "the weight of part 1 is not a finite number of 0 or more": of_parts(Part("a", weight=-0.5), Part("b")),
    "the weight of part 2 is not a finite number of 0 or more": of_parts(Part("a"), Part("b", weight=float("inf"))),
    "no part has a weight above 0": of_parts(Part("a", weight=0.0), Part("b", weight=0.0)),
    "the text is not that of the parts": Document("i", "ab", "s", "en", "general", parts=(Part("a"),)),
    "empty": of_parts(Part(" "), Part("\n")),
    "column 'weights' needs another name": of_parts(Part("a"), columns={"weights": 1}),
    "column 'a b' needs another name": of_parts(Part("a"), columns={"a b": 1}),
    "column 'pair' is not a whole number": of_parts(Part("a"), columns={"pair": 1.0}),
    "column 'side' is not a number": of_parts(Part("a"), columns={"side": "left"}),
    "column 'side' is not a finite number of 32 bits": of_parts(Part("a"), columns={"side": 2**31}),
    "column 'score' is not a finite number of 32 bits": of_parts(Part("a"), columns={"score": float("nan")}),
}


@pytest.mark.parametrize("reason", BAD)
def test_parts_and_columns_that_cannot_be_packed_are_set_aside(reason):
    (found,) = screen([BAD[reason]])
    assert found == Rejected("i", reason, BAD[reason].text, "s")


def test_the_largest_numbers_of_32_bits_are_kept():
    columns = {"least": -(2**31), "most": 2**31 - 1, "float": float(np.finfo(np.float32).max)}
    document = of_parts(Part(ids=(3,)), Part("", weight=0.0), columns=columns)
    assert list(screen([document])) == [document]


def test_documents_of_parts_repeat_one_another_where_all_of_them_is_equal(tmp_path):
    def make(number, weight, side):
        parts = [Part("question ", weight=weight), Part("answer")]
        return Document.of_parts(f"s/{number}", parts, "s", "en", "general", columns={"side": side})

    documents = [make(0, 0.0, 0), make(1, 0.5, 0), make(2, 0.0, 1), make(3, 0.0, 0)]
    found = list(screen(documents))
    assert found[:3] == documents[:3] and found[3].reason == "duplicate text"
    report = write_corpus(tmp_path, documents, heldout_share=0.0)
    assert report.documents == 3 and list(read_documents(tmp_path)) == documents[:3]
