"""`trace_model ablate`: what is refused before a model is loaded."""

from pathlib import Path

import pytest

from tracer.cli.ablate import ablate
from tracer.cli.requests import AblateRequest
from tracer.errors import UsageError


def test_no_model_is_named(tmp_path: Path) -> None:
    config = tmp_path / "grid.toml"
    config.write_text('[grid]\nweight = ["uint8"]\n')
    with pytest.raises(UsageError, match="no model is named"):
        ablate(AblateRequest(config=config), "trace_model ablate")
