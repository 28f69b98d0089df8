"""What a folder of packed rows holds: one JSON file beside the rows."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from m1jax.data.rows import RowStore
from m1jax.errors import UserError

FILE = "manifest.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class RowFile:
    """The rows of one source at one row length.

    `first_rows` has one entry a window and one more: window w is rows `first_rows[w]` to `first_rows[w + 1]`, that
    one excluded. `fill` is the share of token slots that hold a token; `sha256` is the file's.
    """

    rows: int
    fill: float
    first_rows: tuple[int, ...]
    sha256: str


@dataclasses.dataclass(frozen=True)
class SourceRows:
    """One packed source.

    `tokens` counts each document's own and its EOS once, `utf8_bytes` the text without EOS; `empty` documents had no
    text and are in no window. `files` is by row length.
    """

    language: str
    domain: str
    documents: int
    empty: int
    tokens: int
    utf8_bytes: int
    files: Mapping[int, RowFile]

    @property
    def windows(self) -> int:
        """Packing windows, the same for every row length."""
        return len(next(iter(self.files.values())).first_rows) - 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A folder of packed rows: by whom they were encoded, how they were packed, and what each source holds."""

    tokenizer: str
    """The tokenizer's fingerprint."""
    vocab_size: int
    seed: int
    window_documents: int
    row_lengths: tuple[int, ...]
    sources: Mapping[str, SourceRows]
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
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["format"] != FORMAT:
                raise UserError(f"{path} has format {saved['format']}, this m1jax reads {FORMAT}: run `m1 pack` again.")
            sources = {name: _source(source) for name, source in saved["sources"].items()}
            return cls(**{**saved, "row_lengths": tuple(saved["row_lengths"]), "sources": sources})
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path} is missing: run `m1 pack` first, or give the right folder.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): run `m1 pack` again.") from error


def _source(saved: dict[str, Any]) -> SourceRows:
    files = {
        int(length): RowFile(**{**file, "first_rows": tuple(file["first_rows"])})
        for length, file in saved["files"].items()
    }
    return SourceRows(**{**saved, "files": files})


def row_path(folder: Path, row_length: int, source: str) -> Path:
    """Where the rows of a source lie."""
    return folder / "rows" / str(row_length) / f"{source}.array_record"


Stores = Mapping[tuple[int, str], RowStore]


def open_stores(folder: Path, manifest: Manifest, used: Iterable[tuple[int, str]]) -> Stores:
    """Row stores of the (row length, source) pairs, each opened once; raises UserError for a missing or broken one."""
    stores = {}
    for length, source in used:
        stores[length, source] = RowStore(row_path(folder, length, source), manifest.sources[source].files[length].rows)
        stores[length, source].check()
    return stores
