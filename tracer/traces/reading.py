"""Reads a trace: what lies in its files is checked where it is read; a damaged one is named."""

import base64
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tracer.choices import TRACE_HEADER
from tracer.errors import StorageError
from tracer.execution.limits import read_json, user_path, what_it_is
from tracer.tensors.fingerprints import Fingerprint, Shown
from tracer.traces.checking import check_entry
from tracer.traces.files import END, EVENTS, FORMAT
from tracer.traces.shards import DTYPES, shard_name

_OLDEST = 2  # without checksums of lines

# The end of a line or a header with the checksum of what stands before it.
_CRC = re.compile(rb',\s*"crc": ?"([0-9a-f]{8})"\s*}\s*')


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
        self.is_complete = bool(self.events) and self.events[-1].get("event") == END
        if self.is_complete:
            self.events.pop()

    def _read_events(self, check: Callable[[Mapping[str, Any]], None] | None) -> None:
        """Reads the lines that were written whole; a kill may have cut off the last one."""
        path = self.path / EVENTS
        least = 0
        for number, line in enumerate(_bytes_of(path).split(b"\n")[:-1], start=1):
            try:
                event, self._crc = _parsed(line, self._crc, self.header["format"])
                entries = event.get("tensors", [])
                if not isinstance(entries, list):
                    raise ValueError("tensors is no list")
                for entry in entries:
                    check_entry(entry, least)
                    least = entry["id"] + 1
                if check is not None:
                    check(event)
            except ValueError as error:
                raise self._damaged(EVENTS, f"line {number}: {error}") from error
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
            raise self._damaged(EVENTS, f"it does not say where tensor {number} lies")
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
        except ValueError:  # binascii.Error, and what is no ASCII
            parts = []
        if zlib.crc32(b"".join(parts)) != entry["crc"]:
            raise self._damaged(EVENTS, f"fingerprint {entry['id']} is not as written")
        shown = (
            Shown(where, Fingerprint.from_numbers(_unpacked(part), tuple(own), dtype))
            for (where, own, _), part in zip(entry.get("shown", ()), parts[1:], strict=True)
        )
        try:
            whole = Fingerprint.from_numbers(_unpacked(parts[0]), shape, dtype)
            return replace(whole, shown=tuple(shown))
        except (ValueError, OverflowError, struct.error) as error:
            what = f"fingerprint {entry['id']} is not as written"
            raise self._damaged(EVENTS, what) from error

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
