"""`trace_model ablate`: options, files, and what is printed."""

import json
from pathlib import Path

import pytest

from tracer.cli import main


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Words that the built-in model's tokenizer knows, as two dozen documents."""
    path = tmp_path / "text.txt"
    path.write_text(
        "\n|\n".join(f"The {n} dogs ran to the big tree and sat down." for n in range(40))
    )
    return path


def ablate(*arguments: object) -> int:
    return main(["ablate", *map(str, arguments)])


@pytest.mark.covers
@pytest.mark.parametrize(("arguments", "message"), [
    ("--report x.pdf", "has the suffix '.pdf'"),
    ("--results none/x.jsonl", " none "),
    ("--fills 3", "these settings make no PTQConfig"),
])  # fmt: skip
def test_wrong_use(refused, tmp_path, monkeypatch, arguments: str, message: str):
    monkeypatch.chdir(tmp_path)
    assert message in refused("ablate", "mask-fill", "tiny-llama", *arguments.split())
    assert not list(tmp_path.glob("*.jsonl"))


class TestConfig:
    @pytest.mark.covers
    def test_a_grid(self, text, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config = tmp_path / "grid.toml"
        config.write_text(
            '[study]\nseeds = [0]\n[grid]\nweight = ["uint8", "uint4"]\n'
            "[workload]\ntokens = 60\nnew_tokens = 0\nseparator = '|'\ncalibration_length = 16\n"
        )
        options = ("--config", config, "tiny-llama", "--text", text, "--report", "out.csv")
        assert ablate(*options) == 0
        printed = capsys.readouterr()
        assert "grid: 2 of 2: seed 0" in printed.err
        assert "uint4" in printed.out
        head, *results = map(json.loads, (tmp_path / "grid.jsonl").read_text().splitlines())
        assert head["workload"]["tokens"] == 60
        assert head["environment"]["command"].startswith("trace_model ablate --config")
        assert [r["trial"]["settings"]["weight"] for r in results] == ["uint8", "uint4"]
        assert len((tmp_path / "out.csv").read_text().splitlines()) == 3
        said = "writes grid.jsonl (a line for each trial; the same command goes on there), out.csv"
        assert printed.out.splitlines()[0] == said
        # Again: nothing is run, and the report is the same.
        assert ablate(*options) == 0
        again = capsys.readouterr()
        assert (again.err, again.out) == ("", printed.out)
        # With other options it is another study, and what is there stays.
        before = (tmp_path / "grid.jsonl").read_bytes()
        assert ablate(*options, "--tokens", 30) == 2
        assert "another study (tokens 60, and now 30)" in capsys.readouterr().err
        assert (tmp_path / "grid.jsonl").read_bytes() == before

    @pytest.mark.covers
    def test_none_has_succeeded_and_another_try(self, text, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config = tmp_path / "grid.toml"
        config.write_text('[study]\nseeds = [0]\n[grid]\nweight = ["uint8"]\n')
        options = ("--config", config, "tiny-llama", "--text", text, "--report", "out.csv")
        options = (*options, "--separator", "|", "--tokens", 60, "--calibration-length", 16)

        def fail(*_: object) -> dict[str, float]:
            raise MemoryError("too large")

        monkeypatch.setattr("wrappers.studies.execute.runner.measure", fail)
        assert ablate(*options) == 2
        printed = capsys.readouterr()
        assert "none of the 1 trials has succeeded; the first: MemoryError" in printed.err
        assert "MemoryError: too large" in printed.out
        assert "MemoryError: too large" in (tmp_path / "out.csv").read_text()
        metrics = {"loss": 0.0, "perplexity": 1.0}
        monkeypatch.setattr("wrappers.studies.execute.runner.measure", lambda *_: metrics)
        assert ablate(*options) == 2
        assert "MemoryError" in capsys.readouterr().err
        assert ablate(*options, "--retry-failed") == 0
        assert "grid: 1 of 1: seed 0" in capsys.readouterr().err
        assert len((tmp_path / "grid.jsonl").read_text().splitlines()) == 3

    def test_what_the_file_says_goes_with_what_is_given(self, text, capsys, tmp_path):
        config = tmp_path / "grid.toml"
        config.write_text(
            f'[grid]\nweight = ["uint99"]\n[workload]\ntext = "{text}"\ntasks = ["piqa"]\n'
        )
        given = ("--config", config, "tiny-llama", "--separator", "|", "--task-limit", 3)
        assert ablate(*given) == 2
        assert "these settings make no PTQConfig" in capsys.readouterr().err
        config.write_text('[grid]\nweight = ["uint8"]\n')
        assert ablate(*given) == 2
        assert "a separator of documents and no text" in capsys.readouterr().err

    def test_no_model_is_named(self, capsys, tmp_path):
        config = tmp_path / "grid.toml"
        config.write_text('[grid]\nweight = ["uint8"]\n')
        assert ablate("--config", config) == 2
        assert "no model is named" in capsys.readouterr().err
