"""Fixtures that every test may use: the folder of real checkpoints and texts."""

import os
from pathlib import Path

import pytest
import torch

# Tiny models gain nothing from a second thread, and lose much where the cores are busy.
torch.set_num_threads(1)

_BESIDE_THE_REPOSITORY = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; a test that needs it is skipped where there is none."""
    folder = Path(os.environ.get("TRACE_MODEL_DATA", _BESIDE_THE_REPOSITORY))
    if not folder.is_dir():
        pytest.skip(
            f"the real checkpoints are not at {folder} (set TRACE_MODEL_DATA to their folder)"
        )
    return folder
