"""One file of tensors, which safetensors can read."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tracer.traces.shards import CONTENTS_BYTES, ShardWriter, can_store, shard_name


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / shard_name(3)
    assert path.name == "values-00003.safetensors"
    writer = ShardWriter(path, CONTENTS_BYTES[0])
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False])}
    for name, tensor in tensors.items():
        data = tensor.numpy().tobytes()
        at = writer.append(name, tensor, memoryview(data))
        assert path.read_bytes()[at : at + len(data)] == data
    assert not writer.is_full
    writer.finish()
    with safe_open(path, "pt") as opened:
        assert all(torch.equal(opened.get_tensor(name), t) for name, t in tensors.items())


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, True), (torch.qint8, False)])
def test_dtypes(dtype: torch.dtype, expected: bool) -> None:
    assert can_store(dtype) is expected
