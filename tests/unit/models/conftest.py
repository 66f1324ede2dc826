"""The built-in models, loaded once a file."""

import pytest

from tracer.models.loading import Loaded, load


@pytest.fixture(scope="module")
def llama() -> Loaded:
    return load("tiny-llama")


@pytest.fixture(scope="module")
def qwen() -> Loaded:
    return load("tiny-qwen3-vl")
