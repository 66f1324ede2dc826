"""Where models of the Hugging Face hub are kept."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hub_cache(folder: Path | None) -> Iterator[None]:
    """Takes models of the hub from a folder meanwhile, and keeps there what is downloaded.

    Args:
        folder: None for the usual one; worker processes take the same.
    """
    if folder is None:
        yield
        return
    from huggingface_hub import constants  # which reads the variable only when it is imported

    former, variable = constants.HF_HUB_CACHE, os.environ.get("HF_HUB_CACHE")
    constants.HF_HUB_CACHE = os.environ["HF_HUB_CACHE"] = str(folder)
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = former
        del os.environ["HF_HUB_CACHE"]
        if variable is not None:
            os.environ["HF_HUB_CACHE"] = variable
