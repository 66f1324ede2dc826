"""`trace_model compare`, as a user meets it: exit codes, what is printed where, and how soon."""

import copy
import functools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tracer import models
from tracer.choices import VARIANTS
from tracer.cli import main
from tracer.reports import WRITERS

HEAVY = ("torch", "transformers", "pandas", "rich", "numpy", "wrappers", "plotext")
# What no part of a comparison of two plain models needs; transformers itself imports more.
NEEDLESS = (
    *("pandas", "IPython", "ipdb", "numba", "onnx", "onnxruntime", "pyarrow", "ray"),
    *("tico", "lm_eval", "sklearn", "torchvision", "torch._export.serde.serialize"),
    *("tracer.adapters.circle_model", "tracer.adapters.exported", "tracer.adapters.onnx_model"),
    *("tracer.reports.html", "tracer.testing", "transformers.models.qwen3_vl"),
    *("wrappers.algorithms", "wrappers.deploy", "wrappers.evaluate", "wrappers.families.qwen3_vl"),
    *("wrappers.recipes", "wrappers.studies"),
)
# What transformers imports for a model of its own, and nothing else here does.
OF_TRANSFORMERS = (
    *("transformers", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy"),
    *("scipy", "accelerate", "jinja2", "huggingface_hub", "tokenizers", "PIL", "wrappers"),
)
SDPA = ("tiny-llama", "--candidate", "sdpa")
DECODING = ("--variant decode", "--candidate sdpa")


def embedded(report: dict) -> dict:
    """The row of the token embeddings."""
    return next(row for row in report["rows"] if row["module"] == "model.embed_tokens")


def agrees(report: dict) -> bool:
    """The verdict, each row, and nothing of the reference is left out."""
    assert all(row["agrees"] for row in report["rows"])
    assert report["coverage"]["reference_only"] == []
    return report["verdict"]["agrees"]


class TestWrongUse:
    @pytest.mark.parametrize(("arguments", "message"), [
        ("tiny-llama --device quux", "device 'quux' cannot be used here"),
        ("tiny-llama --focus model.layers.*.self_atn", "layers.3.self_attn'"),
        (
            "tiny-llama --sequence-length 600",
            "a sequence of 600 tokens: LlamaForCausalLM has 512 positions; give a shorter text, or "
            "--sequence-length",
        ),
        ("tiny-llama --candidate quantized --weight uint99", "not 99"),
        ("tiny-qwen3-vl --prompt Hi.", "to a Qwen3-VL a --processor"),
        (
            "tiny-llama --variant decode --sequence-length 1",
            "a row has 1 tokens, of which 1 would be decode steps",
        ),
        (
            "tiny-llama --steps 5 --sequence-length 6 --batch 3",
            "a row has 4 tokens, of which 5 would be decode steps",
        ),
    ])  # fmt: skip
    def test_before_anything_is_compared(self, refused, arguments: str, message: str):
        assert message in refused("compare", *arguments.split())

    def test_inputs_that_do_not_fit(self, refused, tmp_path: Path):
        path = tmp_path / "inputs.safetensors"
        save_file({"input_ids": torch.tensor([[1, 600]])}, path)
        assert "input_ids holds 600" in refused("compare", "tiny-llama", "--inputs", path)

    @pytest.mark.slow
    def test_images_that_do_not_fit(self, refused, shared_data: Path):
        folder = shared_data / "images"
        photo, other = ("--image", folder / "camera.png"), ("--image", folder / "rocket.jpg")
        qwen = ("tiny-qwen3-vl", "--processor", shared_data / "qwen_processor" / "qwen3vl")
        for options, message in (
            (("tiny-qwen3-vl", *photo), "has no processor for images: give --processor"),
            (("tiny-llama", *photo), "is a LlamaForCausalLM: images"),
            ((*qwen, *photo, "--video", 2), "choose one"),
            ((*qwen, *photo, *other), "a sequence of 532 tokens: tiny-qwen3-vl has 512 positions"),
        ):
            assert message in refused("compare", *options)

    def test_without_pillow(self, refused, monkeypatch, tmp_path: Path):
        monkeypatch.setitem(sys.modules, "PIL", None)
        photo = tmp_path / "photo.png"
        photo.write_bytes(b"")
        message = refused("compare", "tiny-qwen3-vl", "--image", photo)
        assert "pip install 'pillow>=11.0'" in message

    def test_what_is_out_of_reach(self, refused, tmp_path: Path, monkeypatch):
        assert "without config.json" in refused("compare", tmp_path)

        def fail(*args: object, **kwargs: object) -> None:
            raise OSError("Name or service not known")

        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
        message = refused("compare", "organisation/none")
        assert "the hub cannot be reached (Name or service not known)" in message


@pytest.mark.covers
class TestOutcome:
    def test_agrees(self, compare):
        ran = compare("tiny-llama")
        assert ran.code == 0
        assert ran.out.startswith(
            "tiny-llama (LlamaForCausalLM, float32, cpu) against wrapped (variant prefill)"
        )
        assert re.search(r"^inputs: \d+ tokens of the default prompt$", ran.out, re.MULTILINE)
        assert ran.out.split("\n\n")[-1].startswith("agrees\n")
        assert "\x1b" not in ran.out

    @pytest.mark.parametrize("kind", ["bfloat16", "float16", "sdpa", "eager"])
    def test_candidates_without_wrappers(self, compare, kind: str):
        assert compare("tiny-qwen3-vl", "--candidate", kind).code == 0

    @pytest.mark.parametrize("options", ["", "--variant prefill_reference --batch 3", "--video 3"])
    def test_a_model_with_images_and_its_wrapped_form(self, compare, options: str):
        assert agrees(compare("tiny-qwen3-vl", *options.split()).report)

    @pytest.mark.covers
    def test_a_photo(self, compare, shared_data: Path):
        report = compare(
            "tiny-qwen3-vl",
            *("--image", shared_data / "images" / "chelsea.png"),
            *("--processor", shared_data / "qwen_processor" / "qwen3vl"),
            *("--prompt", "Describe this image."),
        ).report
        assert report["verdict"]["agrees"] is True
        assert report["run"]["notes"][-1] == (
            "inputs: 140 tokens: the prompt with chelsea.png (18 x 28 patches, 126 tokens)"
        )
        shapes = [row["shape"] for row in report["rows"] if row["module"] == "lm_head"]
        assert shapes[-1] == [1, 140, 151669]

    @pytest.mark.slow
    def test_photos_in_a_batch_quantised(self, compare, shared_data: Path):
        images = (shared_data / "images" / name for name in ("chelsea.png", "rocket.jpg"))
        report = compare(
            "tiny-qwen3-vl",
            *(word for image in images for word in ("--image", image)),
            *("--processor", shared_data / "qwen_processor" / "qwen3vl"),
            *("--batch", 2, "--padding", "left", "--max-pixels", 20_000),
            *("--candidate", "quantized", "--calibrate", 1),
        ).report
        assert "with random parts of the images and other questions" in report["run"]["notes"][-1]
        assert report["isolation"]["modules"][0]["causes"]

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_decode_step(self, compare, side: str):
        report = compare(
            "tiny-llama", "--variant", "decode", "--batch", 3, "--padding", side
        ).report
        assert agrees(report)
        assert report["run"]["notes"][-1].startswith("a decode step: the last token of each")
        assert embedded(report)["shape"] == [3, 1, 64]

    @pytest.mark.parametrize(
        "options", ["--variant decode", *(f"{o} --padding left" for o in DECODING)]
    )
    def test_several_steps(self, compare, options: str):
        report = compare("random-llama", "--steps", 3, "--batch", 3, *options.split()).report
        assert report["verdict"]["agrees"] is True
        assert report["coverage"]["reference_only"] == []
        note = report["run"]["notes"][-1]
        assert "call #0 is the prefill's, and call #3 that of the last" in note
        outputs = [row for row in report["rows"] if row["value"] == "output"]
        shapes = [row["shape"] for row in outputs if row["module"] == "lm_head"]
        assert shapes == [[3, 29, 512], *[[3, 1, 512]] * 3]

    @pytest.mark.slow
    def test_decode_quantised(self, compare):
        options = "--candidate", "quantized", "--variant", "decode", "--calibrate", 2
        report = compare("tiny-llama", *options, "--steps", 2).report
        assert report["isolation"]["modules"][0]["causes"]
        assert report["run"]["candidate"] == (
            "quantized (variant decode, activation uint8, weight uint8)"
        )

    @pytest.mark.slow
    def test_what_is_isolated(self, compare):
        quantized = "tiny-llama", "--candidate", "quantized", "--calibrate", 1
        isolation = compare(*quantized, "--isolate", "blocks", "--what-if", 1).report["isolation"]
        assert (isolation["level"], len(isolation["calls"])) == ("blocks", 8)
        (recovery,) = isolation["recoveries"]
        assert recovery["modules"] == [isolation["modules"][0]["module"]]
        report = compare(*quantized, "--isolate", "none").report
        assert report["isolation"] is None
        assert report["ranking"]

    @pytest.mark.covers
    def test_what_if_isolates_a_float_candidate(self, compare, broken: Path):
        isolation = compare("tiny-llama", "--candidate", broken, "--what-if", 1).report["isolation"]
        (recovery,) = isolation["recoveries"]
        assert isolation["level"] == "leaves"
        assert recovery["modules"] == ["model.layers.2.mlp.up_proj"]
        assert recovery["after"] < 1e-6 < 1e-3 < recovery["before"]

    @pytest.mark.covers
    def test_a_divergence_unless_the_tolerance_allows_it(self, compare, broken: Path):
        ran = compare("tiny-llama", "--candidate", broken)
        assert ran.code == 1
        assert ran.err == ""  # without progress bars nothing goes there
        assert "▶ model.layers.2.mlp.up_proj" in ran.out
        assert ran.out.split("\n\n")[-1].startswith(
            "diverges: `weight` of `model.layers.2.mlp.up_proj` differs"
        )
        assert compare("tiny-llama", "--candidate", broken, "--tolerance", "1").code == 0
        assert compare(*SDPA, "--tolerance", "1e-12").code == 1

    @pytest.mark.slow
    def test_quantised_differs_as_expected_unless_a_limit_is_given(self, compare):
        short = ("tiny-llama", "--candidate", "quantized", "--sequence-length", 8)
        ran = compare(*short, "--calibrate", 2)
        assert ran.code == 0
        assert "calibrated on the inputs themselves and 2 sequences of " in ran.out
        assert "that the model wrote (seed 0)" in ran.words
        assert "where the error is introduced (leaves)" in ran.out
        assert "the error grows" not in ran.out
        assert re.search(r"without `\w+` \(uint8 (weight|activation)\): relative L2", ran.out)
        assert "as expected of a quantised candidate" in ran.words
        quick = (*short, "--calibrate", 0, "--isolate", "none", "--tolerance")
        assert compare(*quick, "0.9").code == 0
        ran = compare(*quick, "1e-4")
        assert ran.code == 1
        assert "as expected" not in ran.out.split("\n\n")[-1]


@pytest.mark.covers
class TestOptions:
    @pytest.mark.covers
    def test_noise_floor(self, compare, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        ran = compare(*SDPA, "--sequence-length", 8, "--noise-floor")
        assert ran.code == 0
        rows = ran.report["rows"]
        multiples = [row["multiple"] for row in rows if row["multiple"] is not None]
        assert len(multiples) > len(rows) / 2
        assert max(multiples) < 20
        assert "x noise" in ran.out
        assert "times the noise floor" in ran.out

    @pytest.mark.covers
    def test_rows_and_head_follow_the_inputs_asked_for(self, compare):
        options = ("--batch", 2, "--sequence-length", 12, "--padding", "left", "--seed", 3)
        report = compare("random-llama", *options, "--dtype", "float64").report
        assert embedded(report)["shape"] == [2, 12, 64]
        assert embedded(report)["dtype"] == "float64"
        assert report["run"]["notes"] == [
            f"prefill: {VARIANTS['prefill']}",
            "inputs: 12 random tokens (seed 3), a batch of 2 with lengths 12, 9, padded on the "
            "left",
        ]

    def test_inputs_from_a_file(self, compare, tmp_path: Path):
        path = tmp_path / "inputs.safetensors"
        save_file({"input_ids": torch.tensor([[1, 2, 3]])}, path)
        assert embedded(compare(*SDPA, "--inputs", path).report)["shape"] == [1, 3, 64]

    def test_json_is_the_report_and_holds_how_to_run_it_again(self, compare):
        ran = compare(*SDPA, "--map", r"^(\w+)=\1", "--json")
        assert ((ran.code, ran.err), json.loads(ran.out)) == ((0, ""), ran.report)
        command = shlex.split(ran.report["run"]["command"])
        assert command[:3] == ["trace_model", "compare", "tiny-llama"]
        assert r"^(\w+)=\1" in command

    @pytest.mark.covers
    def test_names_are_mapped(self, compare):
        other = ("tiny-llama", "--candidate", "tiny-qwen3-vl", "--sequence-length", 8)
        plain = compare(*other).report
        mapped = compare(*other, "--map", r"^model\.language_model\.=model.").report
        assert "model.layers.0.self_attn" in mapped["coverage"]["paired_modules"]
        # Which is what is found without it; a rule that says otherwise goes before that.
        assert plain["coverage"]["paired_modules"] == mapped["coverage"]["paired_modules"]
        assert len(plain["rows"]) == len(mapped["rows"])
        rule = r"^model\.language_model\.layers\.1\b=model.layers.2"
        later = compare(*other, "--map", rule).report
        assert "model.layers.2.self_attn" not in plain["coverage"]["paired_modules"]
        assert "model.layers.2.self_attn" in later["coverage"]["paired_modules"]
        assert "model.layers.1.self_attn" not in later["coverage"]["paired_modules"]

    def test_a_report_of_every_kind(self, compare, tmp_path: Path):
        paths = [tmp_path / f"report{suffix}" for suffix in WRITERS]
        ran = compare(*SDPA, *(word for path in paths for word in ("--report", path)))
        assert (ran.code, sorted(tmp_path.iterdir())) == (0, sorted(paths))
        written = json.loads((tmp_path / "report.json").read_text())
        written["environment"]["date"] = ran.report["environment"]["date"]
        assert written == ran.report
        page = (tmp_path / "report.html").read_text()
        data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
        outputs = [row for row in range(len(data["rows"]["call"])) if data["rows"]["output"][row]]
        assert list(data["samples"]) == [str(row) for row in outputs]
        assert "trace_model compare tiny-llama --candidate sdpa" in page
        assert (tmp_path / "report.md").read_text().startswith("## ✅ agrees")
        assert 'failures="0"' in (tmp_path / "report.xml").read_text()

    @pytest.mark.covers
    def test_what_is_printed_in_full(self, compare):
        ran = compare(*SDPA, "--focus", "model.layers.0.mlp", "--focus", "*.1.mlp.act_fn")
        assert ran.code == 0
        assert "values of model.layers.0.mlp, call 0" in ran.out
        assert "values of model.layers.1.mlp.act_fn, call 0" in ran.out
        assert "first values" in ran.out
        assert "values of model.layers.0.self_attn" not in ran.out
        ran = compare(*SDPA, "--all")
        table = ran.out.split("\n\n")[1]
        assert len(table.splitlines()) == 3 + len(ran.report["rows"])  # head, line, legend
        assert " agree, " not in table

    @pytest.mark.covers
    def test_calibration_text(self, compare, shared_data: Path, tmp_path: Path):
        text = tmp_path / "text.txt"
        text.write_text("Once upon a time, there was a little girl named Lily. " * 20)
        folder = shared_data / "stories260K" / "hf"
        quantized = ("--candidate", "quantized", "--activation", "int16", "--calibrate", 2)
        report = compare(folder, *quantized, "--calibration-text", text).report
        assert report["run"]["candidate"] == (
            "quantized (variant prefill, activation int16, weight uint8)"
        )
        assert f"the first 2 sequences of 59 tokens of {text}" in report["run"]["notes"][-1]
        assert report["isolation"]["modules"][0]["causes"]


@pytest.mark.covers
class TestTrouble:
    @pytest.fixture
    def raising(self, monkeypatch):
        """The candidate's third layer raises."""

        def forward(*args: object, **kwargs: object) -> None:
            raise ValueError("no such luck")

        @functools.wraps(models.candidate)
        def candidate(loaded: models.Loaded, kind: str, **options: object) -> torch.nn.Module:
            made = copy.deepcopy(loaded.model)
            made.model.layers[2].mlp.forward = forward
            return made

        monkeypatch.setattr(models, "candidate", candidate)

    @pytest.mark.covers
    @pytest.mark.usefixtures("raising")
    def test_a_model_that_raises_leaves_the_rows_before(self, capsys):
        assert main(["compare", "tiny-llama"]) == 2
        printed = capsys.readouterr()
        assert "model.layers.2.post_attention_layernorm" in printed.out
        assert "agrees" not in printed.out.splitlines()
        assert printed.err == (
            "trace_model: the candidate raised ValueError in module 'model.layers.2.mlp' "
            "(LlamaMLP, call 0): no such luck\n"
        )
        assert main(["compare", "tiny-llama", "--json"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "no such luck" in printed.err

    def test_an_interruption_and_a_bug_of_ours(self, capsys, monkeypatch):
        def load(error: type[BaseException], *args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(models, "load", functools.partial(load, KeyboardInterrupt))
        assert (main(["compare", "tiny-llama"]), capsys.readouterr()) == (130, ("", ""))
        monkeypatch.setattr(models, "load", functools.partial(load, ZeroDivisionError))
        sentence = (
            "trace_model: an error of its own, ZeroDivisionError; please report it in "
            "the issues of trace_model, with what it prints under --verbose\n"
        )
        assert (main(["compare", "tiny-llama"]), capsys.readouterr()) == (3, ("", sentence))
        monkeypatch.setenv("TRACE_MODEL_DEBUG", "1")
        assert main(["compare", "tiny-llama"]) == 3
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("Traceback (most recent call last):\n")
        assert printed.err.endswith(f"\nZeroDivisionError\n{sentence}")


class TestNothingButAVerdictExitsWith1:
    MAIN = "import sys; from tracer.cli import main; sys.exit(main(sys.argv[1:]))"

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
    def test_standard_error_that_is_full(self):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-c", self.MAIN, "compare", "nowhere"]
            assert subprocess.run(command, stderr=full, check=False).returncode == 2

    def test_a_module_of_the_users_that_is_called_wrappers(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "wrappers", type(sys)("wrappers"))
        monkeypatch.delitem(sys.modules, "wrappers.errors", raising=False)

        def load(*args: object, **kwargs: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(models, "load", load)
        assert main(["compare", "tiny-llama", "--candidate", "sdpa"]) == 3
        assert "an error of its own, ZeroDivisionError" in capsys.readouterr().err

    def test_a_terminal_that_is_closed_while_rows_are_shown(self, monkeypatch, capsys):
        from tracer.errors import ModelRunError
        from tracer.reports import console

        def show_rows(*args: object, **kwargs: object) -> None:
            raise BrokenPipeError

        def load(*args: object, **kwargs: object) -> None:
            raise ModelRunError("the candidate raised", comparison=object())

        monkeypatch.setattr(models, "load", load)
        monkeypatch.setattr(console, "show_rows", show_rows)
        assert main(["compare", "tiny-llama", "--candidate", "sdpa"]) == 2
        assert "the candidate raised" in capsys.readouterr().err


class TestProcess:
    MAIN = "import sys; from tracer.cli import main; code = main(sys.argv[1:]); "

    @pytest.mark.parametrize("arguments", [
        "", "--help", "--version", "compare --help", "compare tiny-lama",
        "compare tiny-llama --focsu", "compare tiny-llama --candidate sdpa --weight uint4",
        "compare tiny-llama --report out.pdf", "compare nowhere.py:build", "ablate --help",
    ])  # fmt: skip
    def test_nothing_heavy_is_imported_for_help_and_wrong_use(self, arguments: str):
        end = f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
        command = [sys.executable, "-c", self.MAIN + end, *arguments.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.endswith("HEAVY []\n"), done.stdout

    @pytest.mark.covers
    def test_the_work_of_a_comparison_imports_no_more_than_pytorch(self):
        program = (
            "import sys; import tracer.cli.compare, tracer.models.candidates; "
            f"print([name for name in {(*NEEDLESS, *OF_TRANSFORMERS)} if name in sys.modules])"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout == "[]\n"

    @pytest.mark.slow
    @pytest.mark.parametrize("candidate", ["wrapped", "quantized"])
    def test_what_the_model_does_not_need_is_not_imported(self, candidate: str):
        end = f"print('NEEDLESS', [name for name in {NEEDLESS} if name in sys.modules])"
        given = ["compare", "tiny-llama", "--candidate", candidate, "--sequence-length", "4"]
        command = [sys.executable, "-c", self.MAIN + end, *given, "--isolate", "none"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.endswith("NEEDLESS []\n"), done.stdout

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
    def test_a_reader_that_has_gone(self, options: tuple[str, ...]):
        given = [*SDPA, "--sequence-length", "4", *options]
        command = [sys.executable, "-c", self.MAIN + "sys.exit(code)", "compare", *given]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        assert (process.wait(timeout=120), errors) == (2, "")
