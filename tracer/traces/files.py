"""Traces on disk: tensors in safetensors shards, events in a file of JSON lines.

    run.trace/
      header.json               the format, what ran, versions, checksums (`recording`)
      events.jsonl              one line per event, in execution order; fingerprints are in it
      values-00000.safetensors  the tensors that the events refer to
      values-00001.safetensors

A tensor is written to its shard first and the line that refers to it after that, each by one call
of the operating system's: whenever the process is killed, every line that is there can be read. The
line says where in the shard the tensor lies. A shard that is still being written has no table of
contents yet: room for it is kept at the front, and filled when the shard is full or the trace ends.
The first shards keep little, so that a small trace is small. A trace that has come to its end says
so in its last line.

Nothing is ever pickled. What lies in a file is checked when it is read: a checksum of the header,
and of each line with all before it; the length of the shards; a checksum with each tensor. Traces
of format 2, whose lines have none, are read too.
"""

import base64
import binascii
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from tracer.choices import TRACE_HEADER
from tracer.errors import StorageError
from tracer.limits import read_json, user_path, what_it_is
from tracer.tensors.fingerprints import Fingerprint, Shown, raw_bytes
from tracer.tensors.leaves import dtype_name
from tracer.traces.checking import check_entry
from tracer.traces.shards import CONTENTS_BYTES, DTYPES, ShardWriter, shard_name, write_all

FORMAT = 3
_OLDEST = 2  # without checksums of lines

# The end of a line or a header with the checksum of what stands before it.
_CRC = re.compile(rb',\s*"crc": ?"([0-9a-f]{8})"\s*}\s*')

_EVENTS = "events.jsonl"
_END = "finished"


def check_new(path: str | Path) -> None:
    """Checks that a trace can be made at a path, before the work for it is done.

    Raises:
        StorageError: something is there already, or nothing can be written beside it.
    """
    folder = user_path(path)
    if folder.exists():
        raise StorageError(
            f"{path} exists already: a trace is never overwritten; remove it or choose another name"
        )
    if not folder.parent.is_dir():
        raise StorageError(
            f"the directory {folder.parent} of the trace {path} does not exist; create it first"
        )
    if not os.access(folder.parent, os.W_OK):
        raise StorageError(f"the directory {folder.parent} of the trace {path} is not writable")


class TraceWriter:
    """Writes a trace, which can be read up to the last line at any moment.

    As a context manager it ends the trace if nothing was raised, and closes its files.

    Args:
        path: the folder to make.
        header: plain values; the format is added.

    Raises:
        StorageError: as for `check_new`, or nothing can be written there.

    Attributes:
        size: bytes of all tensors written.
        tensors: how many were.
    """

    def __init__(self, path: str | Path, header: Mapping[str, object]) -> None:
        check_new(path)
        self.path = user_path(path)
        self.size = self.tensors = 0
        self._pending: list[dict[str, object]] = []
        self._shards = 0
        self._shard: ShardWriter | None = None
        self._failure: StorageError | None = None
        text = _in_lines({"format": FORMAT, **header}).encode()
        self._crc = zlib.crc32(text)
        try:
            self.path.mkdir()
            partial = self.path / f"{TRACE_HEADER}.partial"
            partial.write_bytes(text + b',\n "crc": "%08x"\n}\n' % self._crc)
            partial.replace(self.path / TRACE_HEADER)
            self._events = (self.path / _EVENTS).open("xb", buffering=0)
        except OSError as error:
            raise StorageError(f"the trace {path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._failure is None:
                self._close_shard()
            if kind is None:
                self.write({"event": _END})
        finally:
            self._events.close()
            if self._shard is not None:
                self._shard.file.close()

    def add(self, tensor: torch.Tensor | Fingerprint) -> int:
        """Writes a tensor or a fingerprint, and returns the number that the next line refers to it
        by.

        Raises:
            StorageError: it cannot be written.
        """
        self._check()
        number = self.tensors
        where: dict[str, object]
        if isinstance(tensor, Fingerprint):
            parts = [_packed(tensor), *(_packed(part.fingerprint) for part in tensor.shown)]
            data = memoryview(b"".join(parts))
            where = _in_line(tensor, parts)
        else:
            data = raw_bytes(tensor)
            try:
                at = self._open_shard().append(str(number), tensor, data)
            except OSError as error:
                raise self._stopped(error) from error
            where = {"shard": self._shards - 1, "at": at, "bytes": len(data)}
        self._pending.append(
            {
                "id": number,
                "dtype": dtype_name(tensor.dtype),
                "shape": tuple(tensor.shape),
                **where,
                "crc": zlib.crc32(data),
            }
        )
        self.tensors += 1
        self.size += len(data)
        return number

    def write(self, event: Mapping[str, object]) -> None:
        """Writes the line of an event, with where the tensors lie that were added for it.

        Raises:
            StorageError: it cannot be written.
        """
        self._check()
        line = {**event, "tensors": self._pending} if self._pending else event
        data = json.dumps(line, separators=(",", ":")).encode()[:-1]
        self._crc = zlib.crc32(data, self._crc)
        try:
            write_all(self._events, data + b',"crc":"%08x"}\n' % self._crc)
        except OSError as error:
            raise self._stopped(error) from error
        self._pending = []

    def _open_shard(self) -> "ShardWriter":
        if self._shard is None or self._shard.is_full:
            self._close_shard()
            room = CONTENTS_BYTES[min(self._shards, len(CONTENTS_BYTES) - 1)]
            self._shard = ShardWriter(self.path / shard_name(self._shards), room)
            self._shards += 1
        return self._shard

    def _close_shard(self) -> None:
        if self._shard is not None:
            try:
                self._shard.finish()
            except OSError as error:
                raise self._stopped(error) from error
            self._shard = None

    def _check(self) -> None:
        """Nothing is written after a line that may be cut off."""
        if self._failure is not None:
            raise self._failure

    def _stopped(self, error: OSError) -> StorageError:
        self._failure = StorageError(
            f"the trace {self.path} cannot be written on: {error.strerror}; the {self.tensors} "
            f"tensors ({self.size / 2**20:.1f} MiB) that it holds can be read. Make room, or "
            "record less: --include GLOB, --values outputs or fingerprints"
        )
        return self._failure


class TraceReader:
    """Reads a trace.

    Args:
        path: the folder.
        salvage: reads what stands before a damage instead of refusing it.
        checks: makes of the header what checks each event; either raises ValueError.

    Raises:
        StorageError: it is no trace, one of a newer format, or damaged.

    Attributes:
        header: what the writer was given, and the format.
        events: in execution order.
        is_complete: whether the recording came to its end.
        damage: what had to be left out, in words; "" for a whole one.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        salvage: bool = False,
        checks: Callable[[Mapping[str, Any]], Callable[[Mapping[str, Any]], None]] | None = None,
    ) -> None:
        self.path = user_path(path)
        self.header, self._crc = _read_header(self.path)
        self.events: list[dict[str, Any]] = []
        self.damage = ""
        self._entries: dict[int, dict[str, Any]] = {}
        try:
            check = None if checks is None else checks(self.header)
        except ValueError as error:
            raise _damaged(self.path, TRACE_HEADER, str(error)) from error
        try:
            self._read_events(check)
            self._check_lengths()
            if salvage:
                self._check_tensors()
        except StorageError as error:
            if not salvage:
                raise
            self.damage = str(error)
        self.is_complete = bool(self.events) and self.events[-1].get("event") == _END
        if self.is_complete:
            self.events.pop()

    def _read_events(self, check: Callable[[Mapping[str, Any]], None] | None) -> None:
        """Reads the lines that were written whole; a kill may have cut off the last one."""
        path = self.path / _EVENTS
        for number, line in enumerate(_bytes_of(path).split(b"\n")[:-1], start=1):
            try:
                event, self._crc = _parsed(line, self._crc, self.header["format"])
                entries = event.get("tensors", [])
                if not isinstance(entries, list):
                    raise ValueError("tensors is no list")
                for place, entry in enumerate(entries, start=len(self._entries)):
                    check_entry(entry, place)
                if check is not None:
                    check(event)
            except ValueError as error:
                raise self._damaged(_EVENTS, f"line {number}: {error}") from error
            self.events.append(event)
            self._entries.update((entry["id"], entry) for entry in entries)

    def _check_tensors(self) -> None:
        """Leaves out the events from the first on whose tensors cannot be read."""
        for place, event in enumerate(self.events):
            for entry in event.get("tensors", ()):
                try:
                    self.tensor(entry["id"])
                except StorageError:
                    del self.events[place:]
                    raise

    def tensor(self, number: int) -> torch.Tensor | Fingerprint:
        """Reads a tensor, or a fingerprint where that is all there is.

        Raises:
            StorageError: the file is not as it was written.
        """
        entry = self._entries.get(number)
        if entry is None:
            raise self._damaged(_EVENTS, f"it does not say where tensor {number} lies")
        shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
        if "fingerprint" in entry:
            return self._fingerprint(entry, shape, dtype)
        data = self._bytes(entry)
        if not data:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).reshape(shape)

    def _fingerprint(
        self, entry: Mapping[str, Any], shape: tuple[int, ...], dtype: torch.dtype
    ) -> Fingerprint:
        texts = [entry["fingerprint"], *(text for *_, text in entry.get("shown", ()))]
        try:
            parts = [base64.b64decode(text) for text in texts]
        except binascii.Error:
            parts = []
        if zlib.crc32(b"".join(parts)) != entry["crc"]:
            raise self._damaged(_EVENTS, f"fingerprint {entry['id']} is not as written")
        shown = (
            Shown(where, Fingerprint.from_numbers(_unpacked(part), tuple(own), dtype))
            for (where, own, _), part in zip(entry.get("shown", ()), parts[1:], strict=True)
        )
        try:
            whole = Fingerprint.from_numbers(_unpacked(parts[0]), shape, dtype)
            return replace(whole, shown=tuple(shown))
        except (ValueError, OverflowError, struct.error) as error:
            what = f"fingerprint {entry['id']} is not as written"
            raise self._damaged(_EVENTS, what) from error

    def _bytes(self, entry: Mapping[str, Any]) -> bytearray:
        name = shard_name(entry["shard"])
        with (self.path / name).open("rb", buffering=0) as file:
            file.seek(entry["at"])
            data = bytearray(file.read(entry["bytes"]))
        if len(data) != entry["bytes"] or zlib.crc32(data) != entry["crc"]:
            raise self._damaged(name, f"tensor {entry['id']} is not as written")
        return data

    def _check_lengths(self) -> None:
        ends: dict[int, int] = {}
        for entry in self._entries.values():
            if "fingerprint" in entry:
                continue
            ends[entry["shard"]] = max(ends.get(entry["shard"], 0), entry["at"] + entry["bytes"])
        for shard, end in ends.items():
            file = self.path / shard_name(shard)
            if found := what_it_is(file):
                what = "it is missing" if found == "nothing" else f"it is {found}"
                raise self._damaged(file.name, what)
            if file.stat().st_size < end:
                raise self._damaged(
                    file.name, f"it is cut off: {file.stat().st_size:,} bytes, expected {end:,}"
                )

    def _damaged(self, name: str, what: str) -> StorageError:
        return _damaged(self.path, name, what)


def _in_lines(header: Mapping[str, object]) -> str:
    """A header as JSON, with a line for each key, and for each item of what is large in it.

    It is not closed: a checksum comes last.
    """
    lines = []
    for key, value in header.items():
        text = json.dumps(value, separators=(",", ":"))
        if isinstance(value, Mapping) and value:
            items = (
                f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in value.items()
            )
            text = "{\n" + ",\n".join(f"  {item}" for item in items) + "}"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines)


def _in_line(fingerprint: Fingerprint, parts: list[bytes]) -> dict[str, object]:
    """A fingerprint as it stands in the line of an event; `parts` are its numbers as bytes."""
    whole, *rest = (base64.b64encode(part).decode() for part in parts)
    if not rest:
        return {"fingerprint": whole}
    shown = [
        (part.where, part.fingerprint.shape, text)
        for part, text in zip(fingerprint.shown, rest, strict=True)
    ]
    return {"fingerprint": whole, "shown": shown}


def _packed(fingerprint: Fingerprint) -> bytes:
    numbers = fingerprint.numbers
    return struct.pack(f"<{len(numbers)}d", *numbers)


def _unpacked(data: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 8}d", data))


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and its checksum, which that of the first line goes on from."""
    if not path.is_dir():
        raise StorageError(
            f"there is no trace {path}: expected a folder that `trace_model record` has made"
        )
    data = _bytes_of(path / TRACE_HEADER)
    if not data:
        raise StorageError(
            f"{path} has no {TRACE_HEADER}: it is no trace, or its recording was ended before it "
            "began"
        )
    try:
        header = read_json(data)
    except ValueError as error:
        raise _damaged(path, TRACE_HEADER, f"it is no JSON ({error})") from error
    found = header.get("format") if isinstance(header, dict) else None
    if type(found) is not int:
        raise _damaged(path, TRACE_HEADER, "it names no format")
    if found > FORMAT:
        raise StorageError(
            f"the trace {path} is of format {found}, made by trace_model "
            f"{header.get('trace_model', 'of another version')}; this version reads up to "
            f"{FORMAT}: install a newer one"
        )
    if found < _OLDEST:
        raise StorageError(
            f"the trace {path} is of format {found}, and this version of trace_model reads formats "
            f"{_OLDEST} to {FORMAT}: record it again"
        )
    try:
        return _parsed(data, 0, found)
    except ValueError as error:
        raise _damaged(path, TRACE_HEADER, str(error)) from error


def _parsed(data: bytes, crc: int, form: int) -> tuple[dict[str, Any], int]:
    """A line or a header without its checksum, and what the next line's goes on from."""
    value = read_json(data)
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    if form < FORMAT:
        return value, crc
    end = next(_CRC.finditer(data, max(0, len(data) - 64)), None)
    if end is None or end.end() != len(data):
        raise ValueError("its checksum is missing")
    crc = zlib.crc32(data[: end.start()], crc)
    if f"{crc:08x}" != end[1].decode() or value.pop("crc", None) != f"{crc:08x}":
        raise ValueError("it is not as written: its checksum is another")
    return value, crc


def _bytes_of(path: Path) -> bytes:
    """A file of a trace; nothing where there is none, as after a kill."""
    found = what_it_is(path)
    if found == "nothing":
        return b""
    if found:
        raise _damaged(path.parent, path.name, f"it is {found}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def _damaged(path: Path, name: str, what: str) -> StorageError:
    return StorageError(
        f"the trace {path} is damaged: {name}: {what}; copy or record the trace again, or use "
        "what stands before with --salvage (salvage=True)"
    )
