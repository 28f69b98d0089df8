"""What a folder of packed rows holds: one JSON file beside the rows."""

import bisect
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from m1jax.errors import UserError, first_line
from m1jax.rows.store import RowStore

FILE = "manifest.json"
FORMAT = 4


@dataclasses.dataclass(frozen=True)
class RowFile:
    """The rows of one source at one row length.

    `first_rows` has one entry a packing window and one more: window w is rows `first_rows[w]` to `first_rows[w + 1]`,
    that one excluded. `fill` is the share of token slots that hold a token; `sha256` and `bytes` are the file's. `cut`
    documents are in more than one piece, `long` ones of these because they are longer than a row.
    """

    rows: int
    fill: float
    first_rows: tuple[int, ...]
    sha256: str
    bytes: int = 0
    cut: int = 0
    long: int = 0


@dataclasses.dataclass(frozen=True)
class SourceRows:
    """One packed source, or one difficulty bucket of it.

    `tokens` counts each document's own and its EOS once, `utf8_bytes` the text without EOS; `documents` are those
    packed, `rejected` those set aside (rejected.parquet). `trained_tokens` are the tokens that are targets of a weight
    above 0 (never a document's first), `target_weight` is the sum of their weights. `files` is by row length; `columns`
    holds the dtype, int32 or float32, of each column of the documents. A bucket is stored under the name
    `bucket_name(of, bucket)`; `difficulty` is then the lowest and highest of its documents' numbers, and `buckets` how
    many there are, 0 the easiest. A source that is not divided has an empty `of`. `inserted` are tokens that are of
    other documents, by the source of these, and `surrounded` the documents that hold some.
    """

    language: str
    domain: str
    documents: int
    rejected: int
    tokens: int
    trained_tokens: int
    target_weight: float
    utf8_bytes: int
    files: Mapping[int, RowFile]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    of: str = ""
    bucket: int = 0
    buckets: int = 1
    difficulty: tuple[float, float] | None = None
    inserted: Mapping[str, int] = dataclasses.field(default_factory=dict)
    surrounded: int = 0

    @property
    def packing_windows(self) -> int:
        """Number of packing windows, the same for every row length."""
        return len(next(iter(self.files.values())).first_rows) - 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A folder of packed rows: which tokenizer encoded them, how they were packed, and what each source holds."""

    tokenizer: str
    """The tokenizer's fingerprint."""
    vocab_size: int
    seed: int
    packing_window: int
    row_lengths: tuple[int, ...]
    sources: Mapping[str, SourceRows]
    chat_format: str = ""
    """The fingerprint of the chat format of its conversations; empty where it has none."""
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        """Writes manifest.json."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """The manifest in `folder`; raises UserError where it is missing, damaged or of another format."""
        path = folder / FILE
        try:
            return cls.parse(path.read_bytes(), path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path} is missing: run `m1 pack` first, or give the right folder.") from error

    @classmethod
    def parse(cls, text: bytes, path: Path | str) -> "Manifest":
        """The manifest whose file at `path` holds `text`; raises UserError where it is damaged or of another format."""
        try:
            saved = json.loads(text)
            if saved["format"] != FORMAT:
                raise UserError(f"{path} has format {saved['format']}, this m1jax reads {FORMAT}: run `m1 pack` again.")
            sources = {name: _source(source) for name, source in saved["sources"].items()}
            return cls(**{**saved, "row_lengths": tuple(saved["row_lengths"]), "sources": sources})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): run `m1 pack` again.") from error


def _source(saved: dict[str, Any]) -> SourceRows:
    files = {
        int(length): RowFile(**{**file, "first_rows": tuple(file["first_rows"])})
        for length, file in saved["files"].items()
    }
    difficulty = saved["difficulty"] and tuple(saved["difficulty"])
    return SourceRows(**{**saved, "files": files, "difficulty": difficulty})


def bucket_name(source: str, bucket: int) -> str:
    """The name under which a difficulty bucket of a source is stored, 0 the easiest."""
    return f"{source}.d{bucket}"


def index_path(folder: Path, source: str) -> Path:
    """Where a source's documents are listed: identifiers, tokens, bytes and difficulty by the number that rows use."""
    return folder / "documents" / f"{source}.parquet"


class DocumentIds(NamedTuple):
    """A document's identifier inside its source, and the id of its record, which may be empty.

    `inserted` says which of its tokens are of other documents: see `encoding.Indexed`.
    """

    id: str
    record_id: str
    inserted: Sequence[Mapping[str, Any]] = ()


def document_ids(folder: Path, source: str, numbers: Iterable[int]) -> dict[int, DocumentIds]:
    """Identifiers of a source's documents by the numbers that rows hold; a bucket's documents are its source's.

    Raises UserError where the list is missing or damaged.
    """
    path = index_path(folder, source)
    wanted = sorted(set(numbers))
    found: dict[int, DocumentIds] = {}
    first = 0
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                here = wanted[bisect.bisect_left(wanted, first) : bisect.bisect_left(wanted, last)]
                if here:
                    # Rows of an earlier version have no column of inserted documents.
                    columns = [name for name in DocumentIds._fields if name in file.schema_arrow.names]
                    rows = file.read_row_group(group, columns=columns).take([n - first for n in here]).to_pylist()
                    found |= {
                        n: DocumentIds(row["id"], row["record_id"], row.get("inserted") or ())
                        for n, row in zip(here, rows, strict=True)
                    }
                first = last
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): run `m1 pack` again.") from error
    if len(found) < len(wanted):
        raise UserError(f"{path} lists {first} documents, but rows name number {wanted[-1]}: run `m1 pack` again.")
    return found


def row_path(folder: Path, row_length: int, source: str) -> Path:
    """The file of a source's rows."""
    return folder / "rows" / str(row_length) / f"{source}.array_record"


Stores = Mapping[tuple[int, str], RowStore]


def open_stores(folder: Path, manifest: Manifest, used: Iterable[tuple[int, str]]) -> Stores:
    """Row stores of the (row length, source) pairs, each opened once; raises UserError for a missing or broken one."""
    stores = {}
    for length, source in used:
        file = manifest.sources[source].files[length]
        stores[length, source] = RowStore(row_path(folder, length, source), file.rows)
        stores[length, source].check(file.bytes)
    return stores
