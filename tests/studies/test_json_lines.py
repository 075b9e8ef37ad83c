"""Lines of records come back as they were written, and a line that is no record is named."""

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Status
from hypergrad_studies.json_lines import BrokenRecords, append, document, from_document, line, parse, read
from hypergrad_studies.json_lines import replace as rewrite
from hypergrad_studies.records import Record

RECORD = Record("digits", "tpe", 3, 0, 0.25, 0.5, 100, 1.5, 0.25, 0.125, "ok", None)


@dataclass
class Nested:
    """One field of every kind."""

    name: str = "a"
    count: int = 1
    flag: bool | None = None
    values: list[float] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    pair: tuple[str, float] = ("b", 2.0)
    norms: dict[str, float] = field(default_factory=dict)
    maybe: list[int] | None = None


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, value=math.inf, test_value=None, status="overflow", error='two\nlines, "quoted", \u2028 ü'),
        replace(RECORD, value=-math.inf, test_value=math.inf),
        replace(RECORD, value=0.1 + 0.2, seconds=5e-324),
    ],
)
def test_records_round_trip(tmp_path: Path, record: Record) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record)
    append(path, RECORD)
    assert read(path, Record) == [record, RECORD]


def test_nan_round_trips_as_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, replace(RECORD, value=math.nan, status="nan"))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["value"] == "nan"
    assert math.isnan(read(path, Record)[0].value)


def test_array_scalars_become_plain_numbers(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    scalars: dict[str, Any] = {"value": np.float32(0.25), "trial": np.int64(0), "gradient_evaluations": np.int32(100)}
    append(path, replace(RECORD, **scalars))
    assert read(path, Record) == [RECORD]


def test_what_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for wrong in ({"trial": 1.5}, {"value": None}, {"status": 3}):
        with pytest.raises(TypeError):
            append(path, replace(RECORD, **wrong))
    assert not path.exists()


def test_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    assert read(tmp_path / "records.jsonl", Record) == []


def changed(**fields: object) -> str:
    return json.dumps(asdict(RECORD) | fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({k: v for k, v in asdict(RECORD).items() if k != "value"}), "field 'value' is missing"),
        (changed(stepz=1), "field 'stepz' is unknown"),
        (changed(seed="3"), "field 'seed' must be an integer, got '3'"),
        (changed(trial=1.0), "field 'trial' must be an integer, got 1.0"),
        (changed(trial=True), "field 'trial' must be an integer, got True"),
        (changed(value=None), "field 'value' must be a number"),
        (changed(value="Infinity"), "got 'Infinity'"),
        (changed(error=7), "field 'error' must be a string or null, got 7"),
        (changed(value=math.inf), 'Infinity must be written as "inf"'),
        ('{"problem": ', "is not JSON"),
        ("\x00\x00", "is not JSON"),
        ("", "is not JSON"),
        ("[]", "must be a JSON object, got []"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    append(path, RECORD)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BrokenRecords) as caught:
        read(path, Record)
    text = str(caught.value)
    assert text.startswith(f"{path}, line 2: ")
    assert message in text
    assert text.endswith("; mend or remove the line")
    assert "\n" not in text


@pytest.mark.parametrize(
    "record",
    [
        Nested(),
        Nested(flag=True, values=[1.0, math.inf, -math.inf], shape=(3, 4), norms={"rate": math.inf}, maybe=[1]),
        Nested(flag=False, values=[0.1 + 0.2], pair=("ü\n", 5e-324)),
    ],
)
def test_lists_tuples_and_dicts_round_trip(record: Nested) -> None:
    found = parse(line(record), Nested)
    assert found == record
    for one in fields(record):
        assert type(getattr(found, one.name)) is type(getattr(record, one.name))
    assert from_document(document(record), Nested) == record


def test_arrays_and_enums_inside_of_fields_become_plain() -> None:
    values: dict[str, Any] = {"values": np.array([0.5, np.inf], np.float32), "shape": jnp.arange(2)}
    record = Nested(name=Status.NAN, norms={"rate": jnp.float32(2)}, **values)
    plain = Nested(name="nan", values=[0.5, math.inf], shape=(0, 1), norms={"rate": 2.0})
    assert line(record) == line(plain)
    found = parse(line(record), Nested)
    assert found == plain
    assert type(found.name) is str
    assert type(found.shape[0]) is int


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flag": 1}, "field 'flag' must be true or false or null, got 1"),
        ({"values": 1.0}, "field 'values' must be a list, got 1.0"),
        ({"values": [1.0, "two"]}, r"field 'values\[1\]' must be a number"),
        ({"values": [True]}, r"field 'values\[0\]' must be a number"),
        ({"shape": [1.5]}, r"field 'shape\[0\]' must be an integer, got 1.5"),
        ({"pair": ["b"]}, r"field 'pair' must be a list of 2, got \['b'\]"),
        ({"norms": {"rate": None}}, r"field \"norms\['rate'\]\" must be a number"),
        ({"norms": [1.0]}, "field 'norms' must be an object"),
        ({"maybe": {}}, "field 'maybe' must be a list or null"),
    ],
)
def test_a_field_of_another_type_is_named_and_not_written(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        from_document(document(Nested()) | wrong, Nested)
    with pytest.raises(TypeError, match=message):
        line(replace(Nested(), **wrong))


def test_several_records_are_appended_at_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, RECORD, replace(RECORD, trial=1))
    append(path)
    append(path, replace(RECORD, trial=2))
    assert [record.trial for record in read(path, Record)] == [0, 1, 2]
    with pytest.raises(TypeError):
        append(path, replace(RECORD, trial=3), replace(RECORD, value=cast(float, None)))
    assert [record.trial for record in read(path, Record)] == [0, 1, 2]


def test_a_file_is_rewritten_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, RECORD)
    before = path.read_bytes()

    def cut_off() -> Any:
        yield replace(RECORD, trial=1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite(path, cut_off())
    assert path.read_bytes() == before
    rewrite(path, [replace(RECORD, trial=2)])
    assert read(path, Record) == [replace(RECORD, trial=2)]


def test_a_line_cut_short_can_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    assert read(path, Record, drop_cut=True) == []
    with pytest.raises(BrokenRecords, match=r"records\.jsonl: no such file; run a study"):
        read(path, Record)
    path.write_bytes(line(RECORD) + line(RECORD)[:-5])
    assert read(path, Record, drop_cut=True) == [RECORD]
    with pytest.raises(BrokenRecords, match=r"line 2: is cut short.*continue the study"):
        read(path, Record)
