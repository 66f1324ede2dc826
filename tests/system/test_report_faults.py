"""What is left of a report where writing it fails half way: the old one, whole."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tracer.comparison.result import Comparison
from tracer.reports import WRITERS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of POSIX")
SUFFIXES = [suffix for suffix in WRITERS if suffix != ".parquet"]  # which needs a package
COMPARED = """
import resource, signal, sys, time
from pathlib import Path
import torch
from torch import nn
import tracer
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
comparison = tracer.compare(net, net, torch.ones(2, 4))
target = Path(sys.argv[1])
"""
LIMITED = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for size in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        comparison.save(target)
    except tracer.TracerError as error:
        print(error)
    else:
        print("written")
"""
PAUSING = """
write = Path.write_bytes
def half(path, data):
    write(path, data[: len(data) // 2])
    print("half", flush=True)
    time.sleep(60)
Path.write_bytes = half
comparison.save(target)
"""


@pytest.fixture
def comparison() -> Comparison:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    return tracer.compare(net, net, torch.ones(2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_room_at_any_byte(suffix: str, tmp_path: Path, comparison: Comparison) -> None:
    """A real refusal of the operating system's: files may not grow beyond a limit."""
    target = tmp_path / f"report{suffix}"
    comparison.save(target)
    size = target.stat().st_size
    target.write_text("old")
    sizes = [0, 1, size // 3, size // 2, size - 100]
    done = subprocess.run(
        [sys.executable, "-c", COMPARED + LIMITED, str(target), *map(str, sizes)],
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    assert len(said) == len(sizes)
    assert all(line.endswith("cannot be written: File too large") for line in said)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_kill_between_the_bytes(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"report{suffix}"
    target.write_text("old")
    with subprocess.Popen(
        [sys.executable, "-c", COMPARED + PAUSING, str(target)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert target.read_text() == "old"
    # What was begun lies beside it under a hidden name, and is no report.
    assert all(
        name == target.name or name.startswith(".")
        for name in (each.name for each in tmp_path.iterdir())
    )


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(
    kind: type[BaseException],
    tmp_path: Path,
    comparison: Comparison,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")
    write: Callable[[Path, bytes], int] = Path.write_bytes

    def interrupted(path: Path, data: bytes) -> int:
        write(path, data[:10])
        raise kind

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(kind):
        comparison.save(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
