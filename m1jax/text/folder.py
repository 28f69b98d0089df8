"""The user's own text: a folder of .txt, .jsonl and .parquet files, read record by record."""

import json
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m1jax.errors import UserError, first_line
from m1jax.text import cells
from m1jax.text.documents import Document, Rejected
from m1jax.text.encodings import BROKEN, Readable, is_utf16, kind_of, open_text, undecodable
from m1jax.text.json_lists import BrokenListError, begins_list, elements
from m1jax.text.records import LARGEST, DocumentReading, Place, Reading, Record

KINDS = (".txt", ".jsonl", ".ndjson", ".json", ".parquet")
"""Endings of the files that are read; all but Parquet may be compressed."""

_TOO_LARGE = f"larger than {LARGEST >> 20} MiB"
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
    record; a .json file may also be one list of objects. Text and lines may be compressed (.gz, .zst, .bz2, .xz). The
    text is in `text`, or in `content` where that is missing or blank, and optionally there are `id`, `source`,
    `language` and `domain`, which win over what follows, and `difficulty`, a number, larger for harder. `fields` and
    `domain_names` are those of DataConfig. Values of the optional ones that cannot be used are ignored.

    The domain is the first folder on the way that is called like one of `domains`, else `folder` itself where it is,
    else the first of `domains`. The source is the first folder below `folder` that is not called so, for a file outside
    of such a folder the one that holds it, with the domain (see `source_key`): files of one folder are shards of one
    source. The identifier is the path, with #line, #row or #element. Hidden files are left alone; links are followed.

    What is no text is yielded as Rejected: undecodable bytes, a line that is no JSON object with text, a row without
    text, more than 32 MiB, a file of another kind, a broken link or one that leads back. Raises UserError for a missing
    folder, one without such files, an unreadable file, a broken compressed or Parquet file, and a Parquet file without
    a column of text.
    """
    return read_records(folder, DocumentReading(tuple(domains), language, fields, domain_names))


def read_records[Item](folder: Path, reading: Reading[Item]) -> Iterator[Item | Rejected]:
    """What `reading` makes of all records below `folder`: see `read_folder`, which says what is Rejected or refused."""
    kinds, listed = (KINDS, ".txt, .jsonl or .parquet") if reading.whole else (KINDS[1:], ".jsonl or .parquet")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give a folder of {listed} files.")
    if not any(kind_of(path)[0] in kinds for path, fault in files_of(folder) if not fault):
        raise UserError(f"{folder} holds no {listed} file: put your text there, or give its folder.")
    for path, fault in files_of(folder):
        place = Place(folder, path, reading)
        if not fault and kind_of(path)[0] not in kinds:
            fault = f"not a {listed} file"
        if fault:
            yield place.rejected(fault)
            continue
        try:
            yield from _items(path, place, reading)
        except (OSError, *BROKEN) as error:
            raise UserError(
                f"{path} cannot be read ({first_line(error)}): check the file and its rights, or make it again."
            ) from error


def _items[Item](path: Path, place: Place, reading: Reading[Item]) -> Iterator[Item | Rejected]:
    kind, packing = kind_of(path)
    if kind == ".parquet" and packing:
        yield place.rejected("a compressed Parquet file")
    elif kind == ".parquet":
        yield from _parquet_rows(path, place, reading)
    else:
        with open_text(path) as file:
            if kind == ".txt":
                text: Item | Rejected = _text_file(file, place, reading)
                yield text
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


def _text_file[Item](file: Readable, place: Place, reading: Reading[Item]) -> Item | Rejected:
    raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        return place.rejected(_TOO_LARGE, raw=raw)
    if is_utf16(raw):
        return place.rejected(undecodable(raw), raw=raw)
    assert reading.whole
    return reading.item(place, Record({reading.whole: [raw.removeprefix(b"\xef\xbb\xbf")]}, raw))


def _json_lines[Item](
    file: Readable, place: Place, reading: Reading[Item], only_lines: bool
) -> Iterator[Item | Rejected]:
    """Items of lines, or of a list; where the file may be something else than `only_lines`, its beginning decides."""
    number = 0
    head = file.peek(_HEAD)
    if is_utf16(head):
        yield place.rejected(undecodable(head), raw=head)
        return
    if not only_lines and begins_list(head):
        yield from _json_list(file, place, reading)
        return
    while line := file.readline(LARGEST + 1):
        number += 1
        if len(line) > LARGEST:
            yield place.rejected(_TOO_LARGE, Record({}, line, number))
            while line and not line.endswith(b"\n"):
                line = file.readline(LARGEST)
        elif line.strip():
            item = _json_line(line, place, reading, number)
            if not only_lines and isinstance(item, Rejected) and item.reason.startswith("not "):
                yield place.rejected("JSON, but neither a list of objects nor an object in each line", raw=line)
                return
            only_lines = True
            yield item


def _json_list[Item](file: Readable, place: Place, reading: Reading[Item]) -> Iterator[Item | Rejected]:
    number = 0
    try:
        for number, element in enumerate(elements(file), 1):
            item: Item | Rejected = _json_line(element, place, reading, number)
            yield item
    except BrokenListError as error:
        yield place.rejected(str(error), Record({}, error.rest, number + 1))


def _json_line[Item](line: bytes, place: Place, reading: Reading[Item], number: int) -> Item | Rejected:
    text, torn = _decoded(line.removeprefix(b"\xef\xbb\xbf"))
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return place.rejected(undecodable(line) if torn else "not JSON", Record({}, line, number))
    if not isinstance(record, dict):
        return place.rejected("not a JSON object", Record({}, line, number))
    return reading.item(place, Record({name: [value] for name, value in record.items()}, line, number, torn))


def _decoded(line: bytes) -> tuple[str, bool]:
    """A line's text, and whether some bytes are no UTF-8: these are kept as surrogates, so that they cost no other
    field than their own.
    """
    try:
        return line.decode(), False
    except UnicodeDecodeError:
        return line.decode(errors="surrogateescape"), True


def _parquet_rows[Item](path: Path, place: Place, reading: Reading[Item]) -> Iterator[Item | Rejected]:
    try:
        with pq.ParquetFile(path) as file:
            reading.check_columns(file.schema_arrow, path)
            wanted = sorted({*reading.names}.intersection(file.schema_arrow.names))
            number = 0
            for batch in file.iter_batches(_BATCH, columns=wanted):
                columns = {
                    name: [cells.values(batch.column(at)) for at in cells.all_of(batch.schema, name)] for name in wanted
                }
                for i in range(batch.num_rows):
                    number += 1
                    values = {name: [column[i] for column in some] for name, some in columns.items()}
                    yield reading.item(place, Record(values, number=number))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable Parquet file ({first_line(error)}): make it again.") from error
