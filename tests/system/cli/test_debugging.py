"""`trace_model compare --break` and `--post-mortem`: prompts and exit codes."""

import copy
import functools
import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from tracer import models
from tracer.cli import main


@pytest.fixture
def at_prompt(monkeypatch, capsys):
    """Runs `compare random-llama` with answers for its prompts: the code, and what is printed."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(answers: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(answers.replace("; ", "\n") + "\n"))
        code = main(["compare", "random-llama", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_stops_and_goes_on(at_prompt) -> None:
    code, out, err = at_prompt(
        "p reference.attn_output.shape; c; c", "--break", "*.0.self_attn.[vo]_proj"
    )
    assert (code, err) == (0, "")
    assert re.findall(r"`\S+\.(\w_proj)`, call 0, starts", out) == ["v_proj", "o_proj"]
    assert "The models agree" in out


def test_at_the_end_where_it_diverges(at_prompt, tmp_path: Path) -> None:
    """With a tolerance of 0, rounding is a divergence."""
    code, out, _ = at_prompt(
        *("p diff(ref_call.output, cand_call.output).max > 0; c; c; c; c; c", "--tolerance", 0),
        *("--break", "*_proj", "--break-at", "end", "--break-when", "diverged"),
        *("--report", tmp_path / "out.json"),
    )
    assert code == 1
    stops = re.findall(r"`(\S+)`, call 0, ends; different", out)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    wrong = [
        row["module"]
        for row in rows
        if row["module"].endswith("_proj") and row["value"] == "output" and not row["agrees"]
    ]
    assert (stops, len(stops)) == (wrong[: len(stops)], 6)
    assert "(Pdb) True" in out


def test_masks_that_one_side_does_without_are_no_divergence(at_prompt) -> None:
    """Fused attention is given no mask where the reference is given a causal one."""
    options = ("--candidate", "sdpa", "--break", "*", "--break-when", "diverged")
    code, out, _ = at_prompt("q", *options)
    assert code == 0
    assert "the candidate is given no `attention_mask`" in out
    assert "(Pdb)" not in out


def test_ended_before_anything_differed(at_prompt, tmp_path: Path) -> None:
    report = tmp_path / "out.json"
    options = ("--break", "model.layers.1.mlp", "--report", report, "--focus", "model.norm")
    code, out, err = at_prompt("q", *options)
    assert (code, err) == (2, "")
    assert "model.embed_tokens" in out
    assert "no verdict\nThe run was ended by the user" in out
    assert "Traceback" not in out
    written = json.loads(report.read_text())
    assert written["coverage"]["ended"] is True
    assert written["verdict"]["agrees"] is False
    assert "model.norm" in written["coverage"]["reference_only"]


@pytest.mark.covers
def test_ended_early(at_prompt) -> None:
    code, out, _ = at_prompt("q", "--tolerance", 0, "--break", "model.layers.3")
    assert code == 1
    assert "diverges at model.layers.0.self_attn.k_proj" in out
    assert "The run was ended by the user" in out
    options = ("--candidate", "quantized", "--calibrate", "1", "--break", "model.layers.3")
    code, out, _ = at_prompt("q", *options)
    assert code == 2
    assert "The run was ended by the user" in out


def test_post_mortem(at_prompt, monkeypatch) -> None:
    @functools.wraps(models.candidate)
    def candidate(loaded: models.Loaded, kind: str, **options: object) -> torch.nn.Module:
        def forward(hidden: torch.Tensor) -> torch.Tensor:
            height = hidden.shape[1]
            raise ValueError(f"no such luck at {height}")

        made = copy.deepcopy(loaded.model)
        made.model.layers[2].mlp.forward = forward
        return made

    monkeypatch.setattr(models, "candidate", candidate)
    code, out, err = at_prompt("p height; q", "--candidate", "sdpa", "--post-mortem")
    assert code == 2
    assert "The candidate raised ValueError: no such luck at 32." in out
    assert "(Pdb) 32\n" in out
    assert "model.layers.2.post_attention_layernorm" in out
    assert err.startswith("trace_model: the candidate raised ValueError in module 'model.layers.2")


def test_kept_closed(at_prompt, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")
    code, out, err = at_prompt("q", "--break", "*.o_proj")
    assert (code, err) == (0, "")
    assert "PYTHONBREAKPOINT is 0: the debugger stays closed" in out
    assert "(Pdb)" not in out


def test_breakpoints_that_are_never_reached(at_prompt) -> None:
    code, out, err = at_prompt("q", "--break", "*.o_prj")
    assert (code, out) == (2, "")
    assert "did you mean '*o_proj'" in err
    with pytest.warns(UserWarning, match="'model.layers' was never reached: model.layers was not"):
        code, out, _ = at_prompt("q", "--candidate", "sdpa", "--break", "model.layers")
    assert code == 0
    assert "(Pdb)" not in out
