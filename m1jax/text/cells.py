"""Columns of Parquet files as Python's values, of whichever type another program has written them."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

_TEXT = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
    pa.types.is_null,
)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold text: strings, bytes, a dictionary of them, or nothing at all."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return not isinstance(kind, pa.UuidType) and is_text(kind.storage_type)
    return any(check(kind) for check in _TEXT)


def values(column: pa.Array) -> list[Any]:
    """A column's values: bytes for text, since strings inside Parquet are not checked to be UTF-8, else Python's own.

    What has no value of Python's, such as a time to the nanosecond, is given as Arrow writes it, or as None.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        # Not value by value: a dictionary may hold all texts of a file, and a batch only some.
        return values(column.dictionary_decode())
    if is_text(kind):
        return column.cast(pa.large_binary()).to_pylist()
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        return _written(column)


def _written(column: pa.Array) -> list[Any]:
    try:
        return column.cast(pa.string()).to_pylist()
    except (ValueError, pa.ArrowException):
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        return None


def all_of(schema: pa.Schema, name: str, text: bool = False) -> Sequence[int]:
    """The places of all columns of this name; with `text` only of those that may hold text."""
    return [i for i, field in enumerate(schema) if field.name == name and (is_text(field.type) or not text)]
