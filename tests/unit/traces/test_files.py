"""Traces on disk: what is written can be read, whatever happened while it was written."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.builders.traces import as_format_2
from tracer.errors import StorageError
from tracer.tensors.fingerprints import Fingerprint, Shown
from tracer.traces import files as storage
from tracer.traces import shards
from tracer.traces.files import TraceWriter, check_new
from tracer.traces.reading import TraceReader
from tracer.traces.shards import can_store

X = torch.ones(3)
TENSORS = (
    torch.arange(6.0).reshape(2, 3), torch.arange(6).reshape(3, 2).t(), torch.tensor([True, False]),
    torch.tensor(2.5, dtype=torch.bfloat16), torch.ones(3, dtype=torch.float16), torch.empty(0, 4),
    torch.tensor([1 + 2j], dtype=torch.complex64), torch.tensor([1 + 2j], dtype=torch.complex128),
    torch.ones(2, dtype=torch.float8_e4m3fn), torch.ones(5, dtype=torch.uint16),
)  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A trace of three tensors in two lines."""
    with TraceWriter(tmp_path / "run.trace", {"seed": 3}) as writer:
        writer.write({"event": "one", "ids": [writer.add(TENSORS[0]), writer.add(TENSORS[1])]})
        writer.write({"event": "two", "ids": [writer.add(TENSORS[2])]})
    return tmp_path / "run.trace"


def lines(path: Path) -> list[bytes]:
    return (path / "events.jsonl").read_bytes().splitlines(keepends=True)


class TestRoundTrip:
    def test_every_dtype(self, tmp_path: Path) -> None:
        with TraceWriter(tmp_path / "a", {}) as writer:
            for tensor in TENSORS:
                writer.write({"id": writer.add(tensor)})
        reader = TraceReader(tmp_path / "a")
        assert len(reader.events) == len(TENSORS)
        for event, tensor in zip(reader.events, TENSORS, strict=True):
            read = reader.tensor(event["id"])
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(
                read.view(torch.uint8) if read.dim() else read,
                tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor,
            )

    def test_fingerprints(self, tmp_path: Path) -> None:
        found = Fingerprint.of(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
        with TraceWriter(tmp_path / "a", {}) as writer:
            writer.write({"id": writer.add(found)})
        assert (writer.size, TraceReader(tmp_path / "a").tensor(0)) == (176, found)
        x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
        parts = tuple(Shown(f"{dim}:x", Fingerprint.of(x[:dim])) for dim in (1, 0))
        found = replace(Fingerprint.of(x), shown=parts)
        with TraceWriter(tmp_path / "b", {}) as writer:
            writer.write({"id": writer.add(found)})
        assert writer.size == 3 * 176
        read = TraceReader(tmp_path / "b").tensor(0)
        assert read == found
        assert (read.at("1:x"), read.at("2:x")) == (Fingerprint.of(x[:1]), None)

    def test_a_small_trace_is_small(self, tmp_path: Path) -> None:
        with TraceWriter(tmp_path / "a", {}) as writer:
            writer.write({"id": writer.add(X)})
        assert sum(file.stat().st_size for file in (tmp_path / "a").iterdir()) < 4500
        with TraceWriter(tmp_path / "b", {}) as writer:
            for number in range(100):
                writer.write({"id": writer.add(Fingerprint.of(X + number))})
        assert {file.name for file in (tmp_path / "b").iterdir()} == {"header.json", "events.jsonl"}
        assert TraceReader(tmp_path / "b").tensor(99) == Fingerprint.of(X + 99)

    def test_header_and_events(self, written: Path) -> None:
        reader = TraceReader(written)
        assert reader.header == {"format": 3, "seed": 3}
        assert [event["event"] for event in reader.events] == ["one", "two"]
        assert reader.is_complete

    def test_shards_are_plain_safetensors(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(shards, "_SHARD_BYTES", 40)
        with TraceWriter(tmp_path / "a", {}) as writer:
            for tensor in TENSORS[:5]:
                writer.add(tensor)
            writer.write({"event": "all"})
        files = sorted((tmp_path / "a").glob("*.safetensors"))
        assert len(files) > 1
        loaded = {name: t for file in files for name, t in load_file(file).items()}
        for number, tensor in enumerate(TENSORS[:5]):
            assert torch.equal(loaded[str(number)], tensor)

    def test_many_tensors_and_no_place(self, tmp_path) -> None:
        with TraceWriter(tmp_path / "a", {}) as writer:
            for number in range(1500):
                writer.write({"id": writer.add(torch.tensor([number]))})
        files = sorted((tmp_path / "a").glob("*.safetensors"))
        assert len(files) > 1
        assert sum(len(load_file(file)) for file in files) == 1500
        assert TraceReader(tmp_path / "a").tensor(1499).item() == 1499
        assert not can_store(torch.quint8)
        assert all(can_store(tensor.dtype) for tensor in TENSORS)


class TestPlace:
    def test_nothing_is_overwritten(self, written: Path, tmp_path: Path, monkeypatch) -> None:
        with pytest.raises(StorageError, match="exists already: a trace is never overwritten"):
            TraceWriter(written, {})
        assert TraceReader(written).is_complete

        def refuse(self: Path) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(StorageError, match="cannot be written: Permission denied"):
            TraceWriter(tmp_path / "b.trace", {})

    def test_where_nothing_can_be_written(self, tmp_path: Path, monkeypatch) -> None:
        with pytest.raises(StorageError, match=r"the directory .* does not exist; create it first"):
            check_new(tmp_path / "a" / "b.trace")
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(StorageError, match="is not writable"):
            check_new(tmp_path / "b.trace")


class TestDamage:
    def test_no_folder_or_another(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="there is no trace"):
            TraceReader(tmp_path / "none")
        with pytest.raises(StorageError, match=r"has no header.json: it is no trace"):
            TraceReader(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "new"}'])
    def test_a_broken_header(self, written: Path, text: str) -> None:
        (written / "header.json").write_text(text)
        with pytest.raises(StorageError, match=r"is damaged: header.json"):
            TraceReader(written)

    def test_a_newer_format(self, written: Path) -> None:
        header = {"format": 99, "trace_model": "7.1"}
        (written / "header.json").write_text(json.dumps(header))
        with pytest.raises(StorageError, match=r"format 99, made by trace_model 7.1.*up to 3"):
            TraceReader(written)
        (written / "header.json").write_text('{"format": 1}')
        with pytest.raises(StorageError, match=r"of format 1, and .* formats 2 to 3: record it"):
            TraceReader(written)

    @pytest.mark.parametrize("change", [("A", "B"), ("=", "")])
    def test_a_fingerprint_that_is_not_as_written(self, tmp_path: Path, change) -> None:
        with TraceWriter(tmp_path / "a", {}) as writer:
            writer.write({"id": writer.add(Fingerprint.of(X))})
        text = (as_format_2(tmp_path / "a") / "events.jsonl").read_text()
        (tmp_path / "a" / "events.jsonl").write_text(text.replace(*change, 1))
        with pytest.raises(StorageError, match="fingerprint 0 is not as written"):
            TraceReader(tmp_path / "a").tensor(0)

    @pytest.mark.parametrize("line", [b"not JSON\n", b"3\n"])
    def test_a_broken_line(self, written: Path, line: bytes) -> None:
        first, _, last = lines(written)
        (written / "events.jsonl").write_bytes(first + line + last)
        with pytest.raises(StorageError, match=r"damaged: events.jsonl: line 2: "):
            TraceReader(written)

    def test_a_shard_that_is_cut_off(self, written: Path) -> None:
        shard = written / "values-00000.safetensors"
        os.truncate(shard, shard.stat().st_size - 1)
        with pytest.raises(StorageError, match=r"it is cut off: [\d,]+ bytes, expected [\d,]+"):
            TraceReader(written)

    def test_a_missing_shard(self, written: Path) -> None:
        (written / "values-00000.safetensors").unlink()
        with pytest.raises(StorageError, match="it is missing"):
            TraceReader(written)

    def test_shards_that_are_damaged(self, written: Path) -> None:
        shard = written / "values-00000.safetensors"
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        reader = TraceReader(written)
        assert torch.equal(reader.tensor(0), TENSORS[0])
        with pytest.raises(StorageError, match="tensor 2 is not as written"):
            reader.tensor(2)
        with pytest.raises(StorageError, match="does not say where tensor 7 lies"):
            TraceReader(written).tensor(7)


class TestEndedEarly:
    def test_by_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), TraceWriter(tmp_path / "a", {}) as writer:
            writer.write({"id": writer.add(TENSORS[0])})
            raise KeyError
        reader = TraceReader(tmp_path / "a")
        assert not reader.is_complete
        assert torch.equal(reader.tensor(0), TENSORS[0])
        assert load_file(tmp_path / "a" / "values-00000.safetensors").keys() == {"0"}

    def test_before_the_first_event(self, written: Path) -> None:
        (written / "events.jsonl").unlink()
        reader = TraceReader(written)
        assert reader.events == []
        assert not reader.is_complete

    def test_at_every_byte_of_the_last_line(self, written: Path) -> None:
        whole = b"".join(lines(written)[:2])
        first = len(lines(written)[0])
        for end in range(first, len(whole)):
            (written / "events.jsonl").write_bytes(whole[:end])
            reader = TraceReader(written)
            assert not reader.is_complete
            assert [event["event"] for event in reader.events] == ["one"]
            assert torch.equal(reader.tensor(1), TENSORS[1])

    @pytest.mark.parametrize("elements", [64, 0], ids=["in a shard", "in a line"])
    @pytest.mark.slow
    def test_by_a_lack_of_room(self, tmp_path: Path, elements: int) -> None:
        """A real refusal of the operating system's: files may not grow beyond a limit."""
        script = f"""
import resource, signal, torch
from tracer.errors import StorageError
from tracer.traces.files import TraceWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_003,) * 2)
try:
    with TraceWriter({str(tmp_path / "a")!r}, {{}}) as writer:
        for number in range(10_000):
            try:
                writer.write({{"id": writer.add(torch.full(({elements},), float(number)))}})
            except StorageError as error:
                first = str(error)
                writer.write({{"id": "nothing may follow"}})
except StorageError as error:
    assert str(error) == first, error
    print(error)
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert "cannot be written on: File too large" in done.stdout
        assert "--values outputs or fingerprints" in done.stdout
        reader = TraceReader(tmp_path / "a")
        assert not reader.is_complete
        assert len(reader.events) > 100
        for number, event in enumerate(reader.events):
            assert event["id"] == number
            assert torch.equal(reader.tensor(number), torch.full((elements,), float(number)))

    def test_nothing_follows_a_line_that_may_be_cut_off(self, tmp_path, monkeypatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        message = "cannot be written on: No space left on device; the 2 tensors"
        with pytest.raises(StorageError, match=message), TraceWriter(tmp_path / "a", {}) as writer:
            writer.write({"id": writer.add(TENSORS[0])})
            number = writer.add(TENSORS[1])
            monkeypatch.setattr(storage, "write_all", full)
            monkeypatch.setattr(shards, "write_all", full)
            for attempt in (lambda: writer.write({"id": number}), lambda: writer.add(X)):
                with pytest.raises(StorageError, match=message):
                    attempt()
            writer.write({"id": number})
        monkeypatch.undo()
        reader = TraceReader(tmp_path / "a")
        assert [event["id"] for event in reader.events] == [0]

    def test_no_room_for_the_contents_of_a_shard(self, tmp_path, monkeypatch) -> None:
        def full(self: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shards.ShardWriter, "finish", full)
        with (
            pytest.raises(StorageError, match="No space left on device"),
            TraceWriter(tmp_path / "a", {}) as writer,
        ):
            writer.write({"id": writer.add(TENSORS[0])})
        assert torch.equal(TraceReader(tmp_path / "a").tensor(0), TENSORS[0])

    @pytest.mark.slow
    def test_by_a_kill_at_any_moment(self, tmp_path: Path) -> None:
        """Every tensor that a line names is whole, and nothing that was told as done is lost."""
        script = """
import os, random, signal, sys, time, torch
from tracer.traces import files as storage, shards
shards._SHARD_BYTES = 100_000
torch.set_num_threads(1)

def write(path, told):
    with storage.TraceWriter(path, {}) as writer:
        for number in range(1_000_000):
            writer.write({"id": writer.add(torch.full((100 + 7 * (number % 50),), float(number)))})
            os.write(told, number.to_bytes(4, "little"))

chance = random.Random(0)
for attempt in range(8):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        write(f"{sys.argv[1]}/{attempt}.trace", writing)
    os.close(writing)
    first = os.read(reading, 4)
    time.sleep(chance.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    with os.fdopen(reading, "rb") as rest:
        told = first + rest.read()
    os.waitpid(child, 0)
    print(len(told) // 4, flush=True)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        counts = [int(line) for line in done.stdout.split()]
        assert len(counts) == 8
        for attempt, told in enumerate(counts):
            reader = TraceReader(tmp_path / f"{attempt}.trace")
            assert not reader.is_complete
            assert len(reader.events) >= told > 0
            for number, event in enumerate(reader.events):
                tensor = reader.tensor(event["id"])
                assert torch.equal(tensor, torch.full((100 + 7 * (number % 50),), float(number)))
