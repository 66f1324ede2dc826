"""How the models of a comparison were made, by the options."""

from pathlib import Path

import pytest

from tracer.cli.parser import parse
from tracer.cli.settings import settings

WRAPPED = {"reference": "m", "candidate": "wrapped", "variant": "prefill"}
QUANTIZED = {
    "reference": "m", "candidate": "quantized", "variant": "prefill", "activation": "uint8",
    "weight": "uint8", "calibrate": "8", "seed": "0",
}  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), [
    ("m", WRAPPED),
    ("m --seed 1", WRAPPED),  # nothing of a candidate depends on it
    ("m --candidate sdpa", {"reference": "m", "candidate": "sdpa"}),
    ("m --candidate sdpa --train", {"reference": "m", "candidate": "sdpa", "seed": "0"}),
    ("m --candidate quantized", QUANTIZED),
    ("m --candidate quantized --weight uint4 --seed 3 --calibrate 2",
     QUANTIZED | {"weight": "uint4", "seed": "3", "calibrate": "2"}),
    ("m --candidate port.py:build --seed 2",
     {"reference": "m", "candidate": "port.py:build", "seed": "2"}),
    ("m --reference run.trace --candidate other", {"candidate": "other"}),
    ("m --candidate run.trace", {"reference": "m"}),
])  # fmt: skip
def test_of_a_command_line(given: str, expected: dict[str, str]) -> None:
    assert settings(parse(["compare", *given.split()])) == expected


def test_paths_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("a b c")
    arguments = ["compare", str(tmp_path / "m"), "--candidate", "quantized"]
    found = settings(parse([*arguments, "--calibration-text", str(text)]))
    assert found["reference"] == "m"
    (tmp_path / "elsewhere").mkdir()
    moved = text.rename(tmp_path / "elsewhere" / "text.txt")
    again = settings(parse([*arguments, "--calibration-text", str(moved)]))
    assert again == found
    moved.write_text("a b d")
    assert settings(parse([*arguments, "--calibration-text", str(moved)])) != found
