from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest

from flq.cli.output import Failure, ago, cell, duration, envelope, number, plain, size, table_lines
from flq.cli.plot import sparkline
from flq.wire.status import RunStatus
from tests.unit.cli_double import RUN


def test_the_envelope_of_an_answer():
    assert json.loads(envelope([1])) == {"schema_version": 1, "status": "ok", "data": [1], "error": None}


def test_the_envelope_of_a_failure():
    assert json.loads(envelope(None, Failure("usage", "no", "try this"))) == {
        "schema_version": 1,
        "status": "error",
        "data": None,
        "error": {"code": "usage", "message": "no", "hint": "try this"},
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (timedelta(0), 0.0),
        (timedelta(milliseconds=1500), 1.5),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (b"\x01\xff", "01ff"),
        (b"", ""),
        (RunStatus.PENDING, "pending"),
        (("a", 1), ["a", 1]),
        ({"run_id": 7, "node_ids": 3}, {"run_id": "7", "node_ids": 3}),
        (MappingProxyType({"x": frozenset({1})}), {"x": [1]}),
    ],
)
def test_values_in_terms_of_json(value, expected):
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


def test_a_row_in_terms_of_json():
    row = plain(RUN)
    assert row["run_id"] == "7"
    assert row["bundle"] == "ab" * 32
    assert row["created_at"].startswith("2026-11-24T12:00:00")
    assert row["select"] == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (0.123456, "0.1235"),
        ({"a": 1, "b": 0.5}, "a=1 b=0.5"),
        (("x", 2), "x,2"),
        (b"\xab" * 32, "abababababab"),
        (timedelta(seconds=3), "3.0 s"),
    ],
)
def test_values_as_people_read_them(value, expected):
    assert cell(value) == expected


def test_numbers_and_spans_have_the_unit_that_fits():
    assert [number(value) for value in (1e-7, 0.5, 12345.678)] == ["1e-07", "0.5", "1.235e+04"]
    spans = [timedelta(milliseconds=2), timedelta(seconds=90), timedelta(minutes=50), timedelta(hours=30), timedelta(9)]
    assert [duration(span) for span in spans] == ["2 ms", "90.0 s", "50 min", "30 h", "9 days"]
    assert [size(count) for count in (0, 1023, 2048, 3 << 30)] == ["0 B", "1023 B", "2.0 KB", "3.0 GB"]
    assert ago(None) == ""
    assert ago(datetime.now(UTC)) == "now"


def test_a_table_is_aligned_and_one_line_a_row():
    assert table_lines(("A", "LONG"), [("x", "1"), ("yyy", "two\nlines")]) == ["A    LONG", "x    1", "yyy  two lines"]


def test_a_sparkline_goes_from_low_to_high():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([1.0, None, 1.0, math.nan]) == "▅·▅·"
    assert sparkline([]) == sparkline([None]) == ""
    assert len(sparkline(list(map(float, range(1000))), width=60)) == 60
    assert sparkline(list(map(float, range(1000))))[-1] == "█"
