"""Files of records: one dataclass a line, as strict JSON.

Numbers that JSON lacks are written as the strings "inf", "-inf" and "nan". Fields may be strings, numbers, booleans,
None, and lists, tuples or dicts (from strings) of these. A value that could not be read back is refused.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Record = TypeVar("_Record", bound="DataclassInstance")

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_TYPES = {
    str: "a string",
    int: "an integer",
    float: 'a number, "inf" or "nan"',
    bool: "true or false",
    NoneType: "null",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}


class BrokenRecords(ValueError):
    """A file of records cannot be read. The message is one line that names file, line and reason, and what to do."""


def line(record: "DataclassInstance") -> bytes:
    """Return the record as one line, newline included. Raises `TypeError` where a field does not fit its type."""
    return json.dumps(document(record), allow_nan=False).encode() + b"\n"


def parse(line: bytes | str, kind: type[_Record]) -> _Record:
    """Return the record that `line` wrote. Raises `ValueError` or `TypeError` where the line is none of this kind."""
    try:
        found = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    return from_document(found, kind)


def document(record: "DataclassInstance") -> dict[str, Any]:
    """Return the record as a dict that strict JSON can hold; numpy's and JAX's scalars and arrays become plain."""
    types = get_type_hints(type(record))
    values = {field.name: _plain(getattr(record, field.name)) for field in fields(record)}
    return {name: _strict(_typed(name, value, types[name])) for name, value in values.items()}


def from_document(document: Any, kind: type[_Record]) -> _Record:
    """Return the record that a document holds. Raises `ValueError` or `TypeError` where it is none of this kind."""
    if not isinstance(document, dict):
        raise ValueError(f"must be a JSON object, got {_short(document)}")
    names = [field.name for field in fields(kind)]
    for field in fields(kind):
        if field.name not in document and field.default is MISSING:  # of those that have one, old records lack some
            raise ValueError(f"field {field.name!r} is missing")
    for name in document:
        if name not in names:
            raise ValueError(f"field {name!r} is unknown, expected {', '.join(names)}")
    types = get_type_hints(kind)
    return kind(**{name: _typed(name, value, types[name]) for name, value in document.items()})


def append(path: Path, *records: "DataclassInstance") -> None:
    """Add the records to `path` and wait until they are on disk, so that a kill costs only what is being written."""
    lines = b"".join(map(line, records))
    # All lines are one write to a file opened for appending, so that lines of several processes do not mix.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(file, lines) != len(lines):
            raise OSError(f"{path}: the line was written in part; is the disk full?")
        os.fsync(file)
    finally:
        os.close(file)


def replace(path: Path, records: Iterable["DataclassInstance"]) -> None:
    """Write the whole file anew: the old file stays whole until the new one is on disk."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.writelines(map(line, records))
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def read(path: Path, kind: type[_Record], drop_cut: bool = False) -> list[_Record]:
    """Return the records in `path`, in the order written. Raises `BrokenRecords`.

    With `drop_cut`, a missing file counts as empty, and a last line that was cut short is left out.
    """
    if not path.exists():
        if drop_cut:
            return []
        raise BrokenRecords(f"{path}: no such file; run a study into this folder first")
    *lines, rest = path.read_bytes().split(b"\n")
    if rest and not drop_cut:
        raise BrokenRecords(
            f"{path}, line {len(lines) + 1}: is cut short, as if the process was killed while it wrote; "
            "continue the study, which repairs the file, or remove the line"
        )
    records = []
    for number, text in enumerate(lines, 1):
        try:
            records.append(parse(text, kind))
        except (ValueError, TypeError, OverflowError) as error:
            raise BrokenRecords(f"{path}, line {number}: {error}; mend or remove the line") from None
    return records


def _typed(name: str, value: Any, kind: Any) -> Any:
    """Return `value` as the type `kind` has it, or raise `TypeError`."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for one in kinds:
        origin, inner = get_origin(one) or one, get_args(one)
        if origin in (list, tuple) and type(value) is list:
            return origin(_typed_items(name, value, inner))
        if origin is dict and type(value) is dict:
            return {key: _typed(f"{name}[{key!r}]", item, inner[1]) for key, item in value.items()}
        if type(value) is origin:
            return value
    if float in kinds and type(value) is int:
        return float(value)
    if float in kinds and isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    expected = " or ".join(_TYPES[get_origin(one) or one] for one in kinds)
    raise TypeError(f"field {name!r} must be {expected}, got {_short(value)}")


def _typed_items(name: str, values: Sequence[Any], kinds: tuple[Any, ...]) -> list[Any]:
    """Return the items of a list or tuple: all of one type, unless the tuple's type names one for each."""
    if len(kinds) == 1 or kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if len(values) != len(kinds):
        raise TypeError(f"field {name!r} must be a list of {len(kinds)}, got {_short(values)}")
    return [_typed(f"{name}[{i}]", item, kind) for i, (item, kind) in enumerate(zip(values, kinds, strict=True))]


def _plain(value: Any) -> Any:
    """Return `value` with plain Python types in place of enums, tuples, and the types of numpy and JAX."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _strict(value: Any) -> Any:
    """Return `value` with strings in place of the numbers that JSON lacks."""
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _refuse(constant: str) -> None:
    raise ValueError(f'{constant} must be written as "inf", "-inf" or "nan"')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
