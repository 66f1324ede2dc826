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
import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from tracer.choices import TRACE_HEADER
from tracer.errors import StorageError
from tracer.execution.limits import user_path
from tracer.tensors.fingerprints import Fingerprint, raw_bytes
from tracer.tensors.leaves import dtype_name
from tracer.traces.shards import CONTENTS_BYTES, ShardWriter, shard_name, write_all

FORMAT = 3


EVENTS = "events.jsonl"
END = "finished"


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
            self._events = (self.path / EVENTS).open("xb", buffering=0)
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
                self.write({"event": END})
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
