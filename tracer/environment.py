"""The versions of what a comparison ran on."""

import platform
from importlib import metadata

import torch

import tracer


def environment() -> dict[str, str]:
    """The versions by name, and the platform."""
    return {
        "trace_model": tracer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "platform": platform.platform(),
    }
