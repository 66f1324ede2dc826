"""What is damaged is named, whatever it is, and what stands before it can be used."""

import json
import random
from pathlib import Path

import pytest

import tracer
from tests.builders.small_net import X, recorded
from tests.builders.traces import as_format_2
from tracer.errors import StorageError, TracerError
from tracer.traces.recorded import open_trace

DEEP = b"[" * 100_000 + b"]" * 100_000


def flipped(file: Path, place: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["header.json", "events.jsonl"])
def test_any_flipped_bit_is_found(tmp_path: Path, net, name: str) -> None:
    recorded(net, X, tmp_path / "a")
    file = tmp_path / "a" / name
    whole = file.read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        flipped(file, draw.randrange(len(whole) - 2), draw.randrange(8))
        with pytest.raises(StorageError, match=f"(damaged: {name}|of format)"):
            open_trace(tmp_path / "a")
        file.write_bytes(whole)


@pytest.mark.parametrize("change", [lambda ls: ls[:2] + ls[3:], lambda ls: [ls[1], ls[0], *ls[2:]]])
def test_a_line_that_is_gone_or_elsewhere_is_found(tmp_path: Path, net, change) -> None:
    recorded(net, X, tmp_path / "a")
    file = tmp_path / "a" / "events.jsonl"
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(StorageError, match=r"damaged: events.jsonl: line \d: it is not as written"):
        open_trace(tmp_path / "a")


# Of a format without checksums, and of traces that were made to deceive.
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"index":0', b'"index":-1', "line 2: index is -1"),
        (b'"caller"', b'"celler"', "line 2: it names no caller"),
        (b'"module":"block', b'"module":"blocx', "module is 'blocx'"),
        (b'"shape":[3,', b'"shape":[4,', "bytes for"),
        (b'"shape":[3,', b'"shape":[9e9,', "has the shape"),
        (b'"float32"', b'"float33"', "has the dtype 'float33'"),
        (b'"parent":0', b'"parent":77', "parent is 77"),
        (b'"event":"end"', b'"event":"ent"', "event is 'ent'"),
        (b'"output":{', b'"output":{"x":1,', "output is no value"),
        (b'"shard":0', b'"shard":7', "it is missing"),
        (b'{"event":"start"', DEEP + b'\n{"event":"start"', "nested more than 200 levels deep"),
        (b'{"event":"start"', b'\xff\n{"event":"start"', "line 2: "),
    ],
)
def test_values_are_checked_where_they_are_read(tmp_path: Path, net, old, new, said) -> None:
    recorded(net, X, tmp_path / "a")
    file = as_format_2(tmp_path / "a") / "events.jsonl"
    assert tracer.compare(open_trace(tmp_path / "a"), net).verdict.agrees
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new, 1))
    with pytest.raises(StorageError, match="damaged") as raised:
        open_trace(tmp_path / "a")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {"values": "some"},
        {"dtype": "float33"},
        {"modules": []},
        {"files": [1]},
        {"training": 0},
        {"modules": {"": {"class": "a\0", "recorded": True}}},
        {"modules": {"": {"class": "A", "recorded": True, "definition": [99, 1, "f"]}}},
        {"modules": {"": {"class": "A", "recorded": True, "parameters": {"w": [1]}}}},
        {"modules": {"a." * 5000: {"class": "A", "recorded": True}}},
    ],
)
def test_the_header_is_checked(tmp_path: Path, net, change: dict[str, object]) -> None:
    recorded(net, X, tmp_path / "a")
    file = as_format_2(tmp_path / "a") / "header.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StorageError, match=r"damaged: header\.json"):
        open_trace(tmp_path / "a")


@pytest.mark.parametrize("part", ["events.jsonl", "values-00000.safetensors"])
def test_what_stands_before_a_damage_is_used(tmp_path: Path, net, part: str) -> None:
    whole = recorded(net, X, tmp_path / "a")
    file = tmp_path / "a" / part
    flipped(file, file.stat().st_size - (500 if part == "events.jsonl" else 20), 0)
    trace = open_trace(tmp_path / "a", salvage=True)
    assert 0 < len(trace.file.events) < len(whole.file.events)
    assert trace.file.damage
    assert not trace.file.is_complete
    comparison = tracer.compare(trace, net)
    assert comparison.rows
    assert not comparison.verdict.agrees


def test_bits_flipped_without_checksums_raise_nothing_else(tmp_path: Path, net) -> None:
    recorded(net, X, tmp_path / "a")
    file = as_format_2(tmp_path / "a") / "events.jsonl"
    whole = file.read_bytes()
    draw = random.Random(1)
    for _ in range(60):
        flipped(file, draw.randrange(len(whole)), draw.randrange(8))
        try:
            tracer.compare(open_trace(tmp_path / "a"), net)
        except TracerError:
            pass
        finally:
            file.write_bytes(whole)
