"""Fixtures of the rooms that make inputs of images."""

from pathlib import Path

import pytest

from tracer.models.inputs.processors import Processor, load_processor


@pytest.fixture(scope="session")
def photos(shared_data: Path) -> dict[str, Path]:
    """Real photos by name."""
    return {path.name: path for path in (shared_data / "images").iterdir()}


@pytest.fixture(scope="session")
def processor_folder(shared_data: Path) -> Path:
    """The processor of a real Qwen3-VL."""
    return shared_data / "qwen_processor" / "qwen3vl"


@pytest.fixture(scope="session")
def processor(processor_folder: Path) -> "Processor":
    return load_processor(str(processor_folder), processor_folder)
