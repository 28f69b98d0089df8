"""The user's own text: a folder of .txt, .jsonl and .parquet files, read as documents."""

import json
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m1jax.errors import UserError, first_line
from m1jax.text import cells
from m1jax.text.documents import Document, Rejected
from m1jax.text.encodings import BROKEN, Readable, is_utf16, kind_of, open_text, undecodable
from m1jax.text.records import LARGEST, Place, Reading

KINDS = (".txt", ".jsonl", ".ndjson", ".json", ".parquet")
"""Endings of the files that are read; all but Parquet may be compressed."""

_TOO_LARGE = f"larger than {LARGEST >> 20} MiB"
_OTHER = "not a .txt, .jsonl or .parquet file"
_BATCH = 256
_HEAD = 1 << 12
_NONE: Mapping[str, str] = types.MappingProxyType({})


def read_folder(
    folder: Path,
    domains: Sequence[str],
    language: str = "en",
    *,
    fields: Mapping[str, str] = _NONE,
    domain_names: Mapping[str, str] = _NONE,
) -> Iterator[Document | Rejected]:
    """Documents of all .txt, .jsonl and .parquet files below `folder`, in the order of their paths.

    A .txt file is one document (UTF-8), a line of a .jsonl, .ndjson or .json file one object, a .parquet row one
    record; text and lines may be compressed (.gz, .zst, .bz2, .xz). The text is in `text`, or in `content` where that
    is missing or blank, and optionally there are `id`, `source`, `language` and `domain`, which win over what follows,
    and `difficulty`, a number, larger for harder. `fields` and `domain_names` are those of DataConfig. Values of the
    optional ones that cannot be used are ignored.

    The domain is the first folder on the way that is called like one of `domains`, else `folder` itself where it is,
    else the first of `domains`. The source is the first folder below `folder` that is not called so, for a file outside
    of such a folder the one that holds it, with the domain (see `source_key`): files of one folder are shards of one
    source. The identifier is the path, with #line or #row. Hidden files are left alone; links are followed.

    What is no text is yielded as Rejected: undecodable bytes, a line that is no JSON object with text, a row without
    text, more than 32 MiB, a file of another kind, a broken link or one that leads back. Raises UserError for a missing
    folder, one without such files, an unreadable file, a broken compressed or Parquet file, and a Parquet file without
    a column of text.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give a folder of .txt, .jsonl or .parquet files.")
    if not any(kind_of(path)[0] in KINDS for path, fault in files_of(folder) if not fault):
        raise UserError(f"{folder} holds no .txt, .jsonl or .parquet file: put your text there, or give its folder.")
    reading = Reading(tuple(domains), language, fields, domain_names)
    for path, fault in files_of(folder):
        place = Place(folder, path, reading)
        if fault:
            yield place.rejected(fault)
            continue
        try:
            yield from _documents(path, place, reading)
        except (OSError, *BROKEN) as error:
            raise UserError(
                f"{path} cannot be read ({first_line(error)}): check the file and its rights, or make it again."
            ) from error


def _documents(path: Path, place: Place, reading: Reading) -> Iterator[Document | Rejected]:
    kind, packing = kind_of(path)
    if kind not in KINDS:
        yield place.rejected(_OTHER)
    elif kind == ".parquet":
        yield from [place.rejected("a compressed Parquet file")] if packing else _parquet_rows(path, place, reading)
    else:
        with open_text(path) as file:
            if kind == ".txt":
                yield _text_file(file, place)
            else:
                yield from _json_lines(file, place, reading, only_lines=kind != ".json")


def files_of(folder: Path) -> Iterator[tuple[Path, str]]:
    """All files below a folder that are not hidden, through links, in an order that is the same on every machine.

    With each comes what is wrong with it: a broken link, a link to a folder that contains it, a pipe or a device.
    """
    yield from _files_of(folder, (os.path.realpath(folder),))


def _files_of(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    inner = []
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
        for entry in found:
            path = Path(folder, entry.name)
            # For a link, pathlib looks at the target, and says False for a link to itself, where os.DirEntry raises.
            link = entry.is_symlink()
            if path.is_dir() if link else entry.is_dir():
                inner.append(path)
            elif path.is_file() if link else entry.is_file():
                yield path, ""
            else:
                yield path, "a broken link" if link else "not a regular file"
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): check the folder and its rights.") from (
            error
        )
    for path in inner:
        real = os.path.realpath(path)
        if real in above:
            yield path, "a link to a folder that contains it"
        else:
            yield from _files_of(path, (*above, real))


def _text_file(file: Readable, place: Place) -> Document | Rejected:
    raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        return place.rejected(_TOO_LARGE, raw)
    if is_utf16(raw):
        return place.rejected(undecodable(raw), raw)
    return place.document([raw.removeprefix(b"\xef\xbb\xbf")], {}, raw)


def _json_lines(file: Readable, place: Place, reading: Reading, only_lines: bool) -> Iterator[Document | Rejected]:
    """Documents of lines; where the file may be something else than `only_lines`, its first line decides."""
    number = 0
    head = file.peek(_HEAD)
    if is_utf16(head):
        yield place.rejected(undecodable(head), head)
        return
    while line := file.readline(LARGEST + 1):
        number += 1
        if len(line) > LARGEST:
            yield place.rejected(_TOO_LARGE, line, number)
            while line and not line.endswith(b"\n"):
                line = file.readline(LARGEST)
        elif line.strip():
            item = _json_line(line, place, reading, number)
            if not only_lines and isinstance(item, Rejected) and item.reason.startswith("not "):
                yield place.rejected("JSON, but not an object in each line", line)
                return
            only_lines = True
            yield item


def _json_line(line: bytes, place: Place, reading: Reading, number: int) -> Document | Rejected:
    text, torn = _decoded(line.removeprefix(b"\xef\xbb\xbf"))
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return place.rejected(undecodable(line) if torn else "not JSON", line, number)
    if not isinstance(record, dict):
        return place.rejected("not a JSON object", line, number)
    texts = [record.get(name) for name in reading.texts]
    if torn:
        texts = [_torn(value) for value in texts]
    return place.document(texts, {what: record.get(name) for what, name in reading.others.items()}, line, number)


def _decoded(line: bytes) -> tuple[str, bool]:
    """A line's text, and whether some bytes are no UTF-8: these are kept as surrogates, so that they cost no other
    field than their own.
    """
    try:
        return line.decode(), False
    except UnicodeDecodeError:
        return line.decode(errors="surrogateescape"), True


def _torn(value: Any) -> Any:
    """A string of such a line as the bytes that it was."""
    try:
        return value.encode(errors="surrogateescape") if isinstance(value, str) else value
    except UnicodeEncodeError:
        return value


def _parquet_rows(path: Path, place: Place, reading: Reading) -> Iterator[Document | Rejected]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if not any(cells.all_of(schema, name, text=True) for name in reading.texts):
                raise UserError(
                    f"{path} has no column of text named {' or '.join(reading.texts)} (its columns: "
                    f"{', '.join(schema.names) or 'none'}): name it with config key data.fields.text."
                )
            wanted = {*reading.texts, *reading.others.values()}.intersection(schema.names)
            number = 0
            for batch in file.iter_batches(_BATCH, columns=sorted(wanted)):
                texts, others = _columns(batch, reading)
                for i in range(batch.num_rows):
                    number += 1
                    row = {what: values[i] for what, values in others.items()}
                    yield place.document([values[i] for values in texts], row, b"", number)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable Parquet file ({first_line(error)}): make it again.") from error


def _columns(batch: pa.RecordBatch, reading: Reading) -> tuple[list[list[Any]], dict[str, list[Any]]]:
    """Values of the columns that may hold text, and of the others by what they hold, each the first of its name."""
    texts = [place for name in reading.texts for place in cells.all_of(batch.schema, name, text=True)]
    others = {what: cells.all_of(batch.schema, name) for what, name in reading.others.items()}
    return (
        [cells.values(batch.column(place)) for place in texts],
        {what: cells.values(batch.column(places[0])) for what, places in others.items() if places},
    )
