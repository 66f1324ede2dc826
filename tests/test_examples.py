"""The examples run as they stand and print what they are there to show."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_find_a_wrong_mask(monkeypatch, capsys) -> None:
    printed = run("find_a_wrong_mask.py", monkeypatch, capsys)
    assert "`model` hands a wrong `attention_mask` to `model.layers.0` and 3 more" in printed
    assert "Confirmed: with the reference's `attention_mask`" in printed


def test_compare_under_other_names(monkeypatch, capsys) -> None:
    printed = run("compare_under_other_names.py", monkeypatch, capsys)
    assert "agrees" in printed
    assert "unpaired: the candidate has no such module: attention.query" in printed
    assert "unpaired: the reference has no such module: attn.qkv" in printed


def test_quantize_llama(monkeypatch, capsys) -> None:
    printed = run("quantize_llama.py", monkeypatch, capsys)
    assert "quantisation off: The models agree" in printed
    assert "logits: PEIR 0." in printed


def test_every_example_is_tested() -> None:
    source = Path(__file__).read_text()
    assert all(f'run("{path.name}"' in source for path in EXAMPLES.glob("*.py"))
