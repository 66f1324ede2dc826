"""What the command line refuses before anything is loaded, and the requests that it makes."""

import inspect
import re
from pathlib import Path

import pytest

import tracer
from tracer.cli import main
from tracer.cli.checks import check
from tracer.cli.exit_codes import ExitCode
from tracer.cli.parser import make_parser, parse
from tracer.errors import TracerError

RATIO = "expected a ratio of at least 0"
WHOLE = "expected a whole number from 1 up"
COMPARE = {
    "": "arguments are required: MODEL", "tiny-llama --focsu x": "did you mean '--focus'",
    "tiny-llama --foc x": "unknown option or argument '--foc'",
    "tiny-llama --tolerance -1": f"'-1': {RATIO}", "tiny-llama --tolerance nan": f"'nan': {RATIO}",
    "tiny-llama --tolerance small": f"'small': {RATIO}", "tiny-llama --batch 0": WHOLE,
    "tiny-llama --steps 0": WHOLE, "tiny-qwen3-vl --max-pixels 0": WHOLE,
    "tiny-llama --calibrate -1": "expected a whole number from 0 up",
    "tiny-llama --dtype int8": "invalid choice: 'int8'",
    "tiny-llama --map model": "expected REGEX=REPLACEMENT",
    "tiny-llama --map (=x": "rename rule '(' -> 'x' is no valid regular expression",
    "tiny-llama --inputs none.safetensors": "there is no file none",
    "tiny-qwen3-vl --image none.png": "there is no file none.png",
    "tiny-llama --report out.pdf": "suffix '.pdf': expected .html",
    "tiny-llama --report none/out.json": "it first", "tiny-lama": "did you mean 'tiny-llama'",
    "tiny-llama --candidate sdap": "did you mean 'sdpa'",
    "tiny-llama --candidate sdpa --variant x": "--variant goes",
    "tiny-llama --calibrate 3": "goes with --candidate quantized",
    "tiny-llama --what-if 1 --isolate none": "--isolate none measures none",
    "tiny-llama --focus x --json": "choose one",
    "tiny-qwen3-vl --processor none": "no processor 'none'",
    "tiny-qwen3-vl --processor tests": "without preprocessor_config",
    "tiny-llama --inputs pyproject.toml --batch 2": "--batch makes inputs",
    "tiny-llama --inputs pyproject.toml --image pyproject.toml": "--image makes inputs",
    # The sides.
    "a.trace": "is a trace, which is compared with a model or another trace",
    "a.trace --candidate wrapped": "which is compared with a model or another",
    "a.trace --reference a.trace": "is a trace, as --reference is",
    "tiny-llama --reference tiny-llama": "is no trace: expected a folder",
    "tiny-llama --train": "--train: wrapped models have no training mode",
    "tiny-llama --train --candidate a.trace": "--train: the random numbers",
    "tiny-llama --train --reference a.trace": "--train: the random numbers",
    "tiny-llama --train --candidate sdpa --steps 2": "--steps generates",
    "tiny-llama --candidate-device cpu --candidate a.trace": "the candidate is a trace",
    "tiny-llama --candidate-device cpu --offload": "and --offload leaves it on disk",
    "tiny-llama --offload none": "it first",
    "tiny-llama --offload --candidate compile": "another candidate than compile",
    "a.trace --candidate b.trace --offload": "and both are traces",
    "nowhere.py:build": "there is no file nowhere.py",
    "tiny-llama --candidate nowhere:build": "there is no module 'nowhere'",
    # The gate.
    "tiny-llama --fail-on coverage": "--fail-on coverage is checked against a --baseline",
    "tiny-llama --fail-on regression": "--min-cosine, --max-l2), and there are none",
    "tiny-llama --fail-on worse": "invalid choice: 'worse'",
    "tiny-llama --max-peir lm_head": "'lm_head': expected GLOB=PEIR, such as",
    "tiny-llama --max-peir =0.1": "'=0.1': expected GLOB=PEIR",
    "tiny-llama --max-peir lm_head=-1": f"'-1': {RATIO}",
    "tiny-llama --baseline none.json": "there is no file or trace none.json: expected a report",
    # The debugger.
    "tiny-llama --break-at end": "--break-at goes with --break GLOB",
    "tiny-llama --break-when diverged": "--break-when goes with --break GLOB",
    "tiny-llama --debugger pdb": "--debugger goes with --break GLOB or --post-mortem",
    "tiny-llama --break * --json": "choose one, or write the report with --report",
    "tiny-llama --break * --break-at middle": "invalid choice: 'middle'",
}  # fmt: skip
OTHERS = {
    "comapre tiny-llama": "invalid choice: 'comapre'",
    "record tiny-llama": "required: --out",
    "record tiny-lama --out a.trace": "did you mean 'tiny-llama'",
    "record tiny-llama --out a --values some": "invalid choice",
    "record tiny-llama --out a --variant x": "goes with --candidate",
    "record tiny-llama --out a --inclde x": "did you mean '--include'",
    "show tiny-llama --tree --json": "not allowed with argument",
    "show tiny-llama --print-options width=3": "expected KEY=VALUE with one of",
    "show tiny-llama --print-options precision=x": "expected KEY=VALUE with one of",
    "show none": "unknown model 'none'",
    "ablate": "found no study; expected mask-fill or decode-calibration",
    "ablate mask-fil tiny-llama": "found the study 'mask-fil'",
    "ablate mask-fill": "mask-fill of which model?",
    "ablate mask-fill tiny-lama": "did you mean 'tiny-llama'",
    "ablate mask-fill tiny-llama --sizes 3": "--sizes belongs to decode-calibration",
    "ablate decode-calibration tiny-llama --refine": "--refine belongs to mask-fill",
    "ablate mask-fill tiny-llama --separator |": "a separator of documents and no",
    "ablate mask-fill tiny-llama --processor x": "a processor and no image for it",
    "ablate mask-fill tiny-llama --task-limit 3": "--task-limit and no task",
    "ablate mask-fill tiny-llama --task-data x": "--task-data and no task",
    "ablate mask-fill m --pairs uint8": "expected dtypes of activations and weights",
    "ablate mask-fill m --fills a": "expected numbers with commas between them",
    "ablate mask-fill m --text none.txt": "there is no file none.txt",
    "ablate mask-fill m --seeds 0": WHOLE,
    "ablate --config pyproject.toml mask-fill m": "--config is a study, and mask-fill another",
    "ablate --config pyproject.toml m --fills=-40": "--fills belongs into",
}
CASES = {f"compare {given}".strip(): message for given, message in COMPARE.items()} | OTHERS


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command line is refused."""
    try:
        check(parse(arguments))
    except SystemExit as stop:
        assert stop.code == ExitCode.WRONG_USE
        printed = capsys.readouterr()
        assert printed.out == ""
        message = printed.err.removesuffix("\n")
    except TracerError as error:
        message = str(error)
    else:
        pytest.fail("it is accepted")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("given", "message"), CASES.items(), ids=CASES)
def test_refused(capsys, given: str, message: str) -> None:
    assert message in refusal(capsys, *given.split())


def test_a_refusal_is_one_line_on_standard_error(capsys) -> None:
    for given, begin in (
        (["compare", "tiny-lama"], "trace_model: unknown model"),
        (["compare", "tiny-llama", "--foc"], "trace_model compare: unknown option"),
    ):
        assert main(given) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(begin)
        assert printed.err.count("\n") == 1


def test_no_debugger_where_nobody_answers(capsys, monkeypatch) -> None:
    monkeypatch.setenv("CI", "1")
    for option in (["--post-mortem"], ["--break", "*"]):
        message = refusal(capsys, "compare", "tiny-llama", *option)
        assert "CI is set and standard input is no terminal" in message


def test_a_report_over_the_baseline(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("same.json").write_text("{}")
    Path("link.json").symlink_to("same.json")
    for report in ("same.json", str(tmp_path / "link.json")):
        given = ("--baseline", "same.json", "--report", report)
        message = refusal(capsys, "compare", "tiny-llama", *given)
        assert "would write over the baseline" in message


class TestHelp:
    def test_without_arguments_and_version(self, capsys):
        assert main([]) == 2
        assert capsys.readouterr().out.startswith("usage: trace_model")
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"trace_model {tracer.__version__}\n"

    @pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"]])
    def test_exit_codes(self, capsys, arguments: list[str]):
        assert main(arguments) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "0 the models agree, 1 they diverge, 2 wrong use" in printed
        assert [code for code in ExitCode if f"{code:d} {code.meaning}" not in printed] == []

    def test_every_kind_of_candidate_is_listed(self):
        _, commands = make_parser()
        text = commands["compare"].format_help()
        for kind in ("wrapped", "quantized", "bfloat16", "float16", "sdpa", "eager", "compile"):
            assert f"{kind}:" in text

    def test_defaults_of_studies(self):
        """They are written in the studies, which take seconds to import."""
        from wrappers import studies

        _, commands = make_parser()
        kinds = (studies.Workload, studies.MaskFill, studies.DecodeCalibration, studies.Where)
        signatures = [inspect.signature(kind).parameters for kind in kinds]
        checked = 0
        for action in commands["ablate"]._actions:
            told = re.search(r"\(default: (\d[\d,]*)\)", action.help or "")
            for default in [s[action.dest].default for s in signatures if action.dest in s]:
                if told is not None and default is not None:
                    value = len(default) if action.dest == "seeds" else default
                    values = value if isinstance(value, tuple) else (value,)
                    assert told[1] == ",".join(map(str, values)), action.dest
                    checked += 1
        assert checked >= 10
