"""`trace_model`, as a user meets it: exit codes, what is printed where, and how soon."""

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

import tracer
from tracer import models
from tracer.cli import main
from tracer.reports import WRITERS

HEAVY = ("torch", "transformers", "pandas", "rich", "numpy", "wrappers", "plotext")


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def report_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """The JSON report that is printed, and nothing else is."""
    compare(*arguments, "--json")
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def embedded(report: dict) -> dict:
    """The row of the token embeddings."""
    return next(row for row in report["rows"] if row["module"] == "model.embed_tokens")


def test_differences_as_multiples_of_the_noise_floor(capsys, monkeypatch):
    arguments = ["compare", "tiny-llama", "--candidate", "sdpa", "--noise-floor"]
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    multiples = [row["multiple"] for row in rows if row["multiple"] is not None]
    assert len(multiples) > len(rows) / 2
    assert max(multiples) < 20
    monkeypatch.setenv("COLUMNS", "200")
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "x noise" in printed
    assert "times the noise floor" in printed


class TestHelp:
    def test_without_arguments(self, capsys):
        assert main([]) == 2
        assert capsys.readouterr().out.startswith("usage: trace_model")

    @pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"]])
    def test_exit_codes_are_told(self, capsys, arguments: list[str]):
        assert main(arguments) == 0
        assert "0 the models agree, 1 they diverge, 2 wrong use" in " ".join(
            capsys.readouterr().out.split()
        )

    def test_every_kind_of_candidate_is_listed(self, capsys):
        main(["compare", "--help"])
        text = capsys.readouterr().out
        for kind in ("wrapped", "quantized", "bfloat16", "float16", "sdpa", "eager", "compile"):
            assert f"{kind}:" in text

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"trace_model {tracer.__version__}\n"


class TestWrongUse:
    def refused(self, capsys, *arguments: object) -> str:
        assert main([*map(str, arguments)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("trace_model")
        assert printed.err.count("\n") == 1
        return printed.err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["comapre", "tiny-llama"], "invalid choice: 'comapre'"),
            (["compare"], "arguments are required: MODEL"),
            (["compare", "tiny-llama", "--focsu", "x"], "did you mean '--focus'"),
            (["compare", "tiny-llama", "--foc", "x"], "unknown option or argument '--foc'"),
            (["compare", "tiny-llama", "--tolerance", "-1"], "'-1': expected a ratio"),
            (["compare", "tiny-llama", "--tolerance", "nan"], "'nan': expected a ratio"),
            (["compare", "tiny-llama", "--tolerance", "small"], "'small': expected a ratio"),
            (["compare", "tiny-llama", "--batch", "0"], "expected a whole number from 1 up"),
            (["compare", "tiny-llama", "--calibrate", "-1"], "expected a whole number from 0 up"),
            (["compare", "tiny-llama", "--dtype", "int8"], "invalid choice: 'int8'"),
            (["compare", "tiny-llama", "--map", "model"], "expected REGEX=REPLACEMENT"),
            (["compare", "tiny-llama", "--map", "(=x"], "'(' is no regular expression"),
            (["compare", "tiny-llama", "--inputs", "none.safetensors"], "there is no file none"),
            (["compare", "tiny-llama", "--report", "out.pdf"], "suffix '.pdf': expected .html"),
            (
                ["compare", "tiny-llama", "--report", "none/out.json"],
                "directory none for the report",
            ),
            (
                ["compare", "tiny-llama", "--report", "none/out.html"],
                "directory none for the report",
            ),
            (["compare", "tiny-lama"], "did you mean 'tiny-llama'"),
            (["compare", "tiny-llama", "--candidate", "sdap"], "did you mean 'sdpa'"),
            (["compare", "tiny-llama", "--candidate", "sdpa", "--variant", "x"], "--variant goes"),
            (["compare", "tiny-llama", "--calibrate", "3"], "goes with --candidate quantized"),
            (["compare", "tiny-llama", "--steps", "0"], "expected a whole number from 1 up"),
            (["compare", "tiny-llama", "--what-if", "0"], "expected a whole number from 1 up"),
            (
                ["compare", "tiny-llama", "--what-if", "1", "--isolate", "none"],
                "--isolate none measures none",
            ),
            (["compare", "tiny-llama", "--focus", "x", "--json"], "choose one"),
            (["compare", "tiny-qwen3-vl", "--image", "none.png"], "there is no file none.png"),
            (["compare", "tiny-qwen3-vl", "--processor", "none"], "no processor 'none'"),
            (["compare", "tiny-qwen3-vl", "--processor", "tests"], "without preprocessor_config"),
            (["compare", "tiny-qwen3-vl", "--video", "0"], "expected a whole number from 1 up"),
            (["compare", "tiny-qwen3-vl", "--max-pixels", "0"], "expected a whole number from 1"),
        ],
    )
    def test_before_anything_is_loaded(self, capsys, arguments: list[str], message: str):
        assert message in self.refused(capsys, *arguments)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["tiny-llama", "--device", "quux"], "device 'quux' cannot be used here"),
            (["tiny-llama", "--focus", "model.layers.*.self_atn"], "layers.3.self_attn'"),
            (["tiny-llama", "--map", "foo=bar"], "matches none of the candidate's"),
            (["tiny-llama", "--isolate", "layer"], "did you mean 'layers'"),
            (["tiny-llama", "--sequence-length", "600"], "600 tokens: tiny-llama has 512"),
            (["random-llama", "--prompt", "Once"], "a prompt needs a tokenizer"),
            (["tiny-llama", "--variant", "prefil"], "no wrapper in the variant 'prefil'"),
            (["tiny-llama", "--candidate", "quantized", "--weight", "uint99"], "not 99"),
            (["tiny-llama", "--video", "2"], "is a LlamaForCausalLM: images, a processor"),
            (["tiny-qwen3-vl", "--prompt", "Hi."], "to a Qwen3-VL a --processor"),
            (["tiny-qwen3-vl", "--video", "2", "--prompt", "Hi."], "a prompt goes with --image"),
            (
                ["tiny-qwen3-vl", "--video", "99"],
                "has 512 positions; give a shorter text, or fewer",
            ),
            (["tiny-qwen3-vl", "--max-pixels", "2000"], "give --image FILE"),
            (["tiny-qwen3-vl", "--variant", "prefil"], "no wrapper in the variant 'prefil'"),
            (["tiny-qwen3-vl", "--variant", "decode"], "no wrapper in the variant 'decode'"),
            (
                ["tiny-llama", "--variant", "decode", "--sequence-length", "1"],
                "a row has 1 tokens, of which 1 would be decode steps",
            ),
            (
                ["tiny-llama", "--steps", "5", "--sequence-length", "6", "--batch", "3"],
                "a row has 4 tokens, of which 5 would be decode steps",
            ),
        ],
    )
    def test_before_anything_is_compared(self, capsys, arguments: list[str], message: str):
        assert message in self.refused(capsys, "compare", *arguments)

    def test_inputs_that_do_not_fit(self, capsys, tmp_path: Path):
        path = tmp_path / "inputs.safetensors"
        save_file({"input_ids": torch.tensor([[1, 600]])}, path)
        assert "input_ids holds 600" in self.refused(
            capsys, "compare", "tiny-llama", "--inputs", path
        )
        for option, value in (("--batch", 2), ("--image", path), ("--video", 2)):
            assert f"{option} makes inputs" in self.refused(
                capsys, "compare", "tiny-llama", "--inputs", path, option, value
            )

    def test_images_that_do_not_fit(self, capsys, shared_data: Path, tmp_path: Path):
        text = tmp_path / "text.png"
        text.write_text("a text")
        folder = shared_data / "images"
        photo, other = folder / "camera.png", folder / "rocket.jpg"
        llama = shared_data / "stories260K" / "hf"
        processor = ("--processor", shared_data / "qwen_processor" / "qwen3vl")
        for model, options, message in (
            ("tiny-qwen3-vl", ("--image", text, *processor), "text.png: not an image"),
            ("tiny-qwen3-vl", ("--image", photo), "has no processor for images: give --processor"),
            ("tiny-qwen3-vl", ("--image", photo, "--video", 2, *processor), "choose one"),
            ("tiny-llama", ("--image", photo), "is a LlamaForCausalLM: images"),
            (llama, ("--image", photo), "is a LlamaForCausalLM: images"),
            (
                "tiny-qwen3-vl",
                ("--image", photo, "--image", other, "--batch", 3, *processor),
                "2 images in a batch of 3",
            ),
            (
                "tiny-qwen3-vl",
                ("--image", photo, "--image", other, *processor),
                "a sequence of 532 tokens: tiny-qwen3-vl has 512 positions",
            ),
        ):
            assert message in self.refused(capsys, "compare", model, *options)

    def test_without_pillow(self, capsys, monkeypatch, shared_data: Path):
        monkeypatch.setitem(sys.modules, "PIL", None)
        photo = shared_data / "images" / "camera.png"
        message = self.refused(capsys, "compare", "tiny-qwen3-vl", "--image", photo)
        assert "pip install 'trace-model[vision]'" in message

    def test_a_broken_checkpoint(self, capsys, broken: Path):
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        assert "is the file complete?" in self.refused(capsys, "compare", broken)
        (broken / "config.json").unlink()
        assert "without config.json" in self.refused(capsys, "compare", broken)

    def test_the_hub_is_out_of_reach(self, capsys, monkeypatch):
        def fail(*args: object, **kwargs: object) -> None:
            raise OSError("Name or service not known")

        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
        message = self.refused(capsys, "compare", "organisation/none")
        assert "the hub cannot be reached (Name or service not known)" in message


class TestOutcome:
    def test_agrees(self, capsys):
        assert compare("tiny-llama") == 0
        text = capsys.readouterr().out
        assert text.startswith(
            "tiny-llama (LlamaForCausalLM, float32, cpu) against wrapped (variant prefill)"
        )
        assert re.search(r"^inputs: \d+ tokens of the default prompt$", text, re.MULTILINE)
        assert text.split("\n\n")[-1].startswith("agrees\n")
        assert "\x1b" not in text

    @pytest.mark.parametrize("kind", ["bfloat16", "float16", "sdpa", "eager"])
    def test_candidates_without_wrappers(self, capsys, kind: str):
        assert compare("tiny-qwen3-vl", "--candidate", kind) == 0
        assert "Qwen3VLForConditionalGeneration" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "options",
        [(), ("--variant", "prefill_reference", "--batch", 3), ("--video", 3)],
        ids=str,
    )
    def test_a_model_with_images_and_its_wrapped_form(self, capsys, options):
        report = report_of(capsys, "tiny-qwen3-vl", *options)
        assert report["verdict"]["agrees"] is True
        assert all(row["agrees"] for row in report["rows"])
        assert report["coverage"]["reference_only"] == []

    def test_a_photo(self, capsys, shared_data: Path):
        report = report_of(
            capsys,
            "tiny-qwen3-vl",
            *("--image", shared_data / "images" / "chelsea.png"),
            *("--processor", shared_data / "qwen_processor" / "qwen3vl"),
            *("--prompt", "Describe this image."),
        )
        assert report["verdict"]["agrees"] is True
        assert report["run"]["notes"][-1] == (
            "inputs: 140 tokens: the prompt with chelsea.png (18 x 28 patches, 126 tokens)"
        )
        shapes = [row["shape"] for row in report["rows"] if row["module"] == "lm_head"]
        assert shapes[-1] == [1, 140, 151669]

    def test_photos_in_a_batch_quantised(self, capsys, shared_data: Path):
        images = (shared_data / "images" / name for name in ("chelsea.png", "rocket.jpg"))
        report = report_of(
            capsys,
            "tiny-qwen3-vl",
            *(word for image in images for word in ("--image", image)),
            *("--processor", shared_data / "qwen_processor" / "qwen3vl"),
            *("--batch", 2, "--padding", "left", "--max-pixels", 20_000),
            *("--candidate", "quantized", "--calibrate", 1),
        )
        assert "with random parts of the images and other questions" in report["run"]["notes"][-1]
        assert report["isolation"]["modules"][0]["causes"]

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_decode_step(self, capsys, side: str):
        options = "--variant", "decode", "--batch", 3, "--padding", side
        report = report_of(capsys, "tiny-llama", *options)
        assert report["verdict"]["agrees"] is True
        assert all(row["agrees"] for row in report["rows"])
        assert report["coverage"]["reference_only"] == []
        assert report["run"]["notes"][-1] == (
            "a decode step: the last token of each sequence, over the float model's cache of those "
            "before it"
        )
        assert embedded(report)["shape"] == [3, 1, 64]

    @pytest.mark.parametrize(
        "options",
        [
            ("--variant", "decode"),
            ("--variant", "decode", "--padding", "left"),
            ("--candidate", "sdpa", "--padding", "left"),
        ],
        ids=str,
    )
    def test_several_steps(self, capsys, options):
        report = report_of(capsys, "random-llama", "--steps", 3, "--batch", 3, *options)
        assert report["verdict"]["agrees"] is True
        assert report["coverage"]["reference_only"] == []
        assert (
            "call #0 is the prefill's, and call #3 that of the last" in report["run"]["notes"][-1]
        )
        shapes = [
            row["shape"]
            for row in report["rows"]
            if (row["module"], row["value"]) == ("lm_head", "output")
        ]
        assert shapes == [[3, 29, 512], *[[3, 1, 512]] * 3]

    @pytest.mark.parametrize("steps", [(), ("--steps", 2)], ids=str)
    def test_decode_quantised(self, capsys, steps):
        options = "--candidate", "quantized", "--variant", "decode", "--calibrate", 2
        report = report_of(capsys, "tiny-llama", *options, *steps)
        assert report["isolation"]["modules"][0]["causes"]
        assert report["run"]["candidate"] == (
            "quantized (variant decode, activation uint8, weight uint8)"
        )

    def test_what_is_isolated(self, capsys):
        quantized = "tiny-llama", "--candidate", "quantized", "--calibrate", 1
        report = report_of(capsys, *quantized, "--isolate", "blocks", "--what-if", 1)
        isolation = report["isolation"]
        assert isolation["level"] == "blocks"
        assert len(isolation["calls"]) == 8
        assert [r["modules"] for r in isolation["recoveries"]] == [
            [isolation["modules"][0]["module"]]
        ]
        report = report_of(capsys, *quantized, "--isolate", "none")
        assert report["isolation"] is None
        assert report["ranking"]

    def test_what_if_isolates_a_float_candidate(self, capsys, broken: Path):
        report = report_of(capsys, "tiny-llama", "--candidate", broken, "--what-if", 1)
        (recovery,) = report["isolation"]["recoveries"]
        assert report["isolation"]["level"] == "leaves"
        assert recovery["modules"] == ["model.layers.2.mlp.up_proj"]
        assert recovery["after"] < 1e-6 < 1e-3 < recovery["before"]

    def test_diverges(self, capsys, broken: Path):
        assert compare("tiny-llama", "--candidate", broken) == 1
        text = capsys.readouterr().out
        assert "▶ model.layers.2.mlp.up_proj" in text
        assert text.split("\n\n")[-1].startswith("diverges at model.layers.2.mlp.up_proj")

    def test_a_tolerance_decides(self, capsys, broken: Path):
        assert compare("tiny-llama", "--candidate", broken, "--tolerance", "1") == 0
        assert compare("tiny-llama", "--candidate", "sdpa", "--tolerance", "1e-12") == 1

    def test_quantised_differs_as_expected_unless_a_limit_is_given(self, capsys):
        short = ("--sequence-length", 8, "--calibrate", 2)
        assert compare("tiny-llama", "--candidate", "quantized", *short) == 0
        text = capsys.readouterr().out
        assert "calibrated on the inputs themselves and 2 sequences of " in text
        assert "that the model wrote (seed 0)" in " ".join(text.split())
        assert "where the error is introduced (leaves)" in text
        assert "the error grows" not in text
        assert re.search(r"without `\w+` \(uint8 (weight|activation)\): relative L2", text)
        assert "as expected of a quantised candidate" in " ".join(text.split())
        quick = ("--candidate", "quantized", *short, "--isolate", "none", "--tolerance")
        assert compare("tiny-llama", *quick, "0.9") == 0
        assert compare("tiny-llama", *quick, "1e-4") == 1
        assert "as expected" not in capsys.readouterr().out.split("\n\n")[-1]

    def test_real_checkpoints(self, capsys, shared_data: Path):
        folder = shared_data / "stories260K" / "hf"
        for variant in ("prefill", "prefill_reference"):
            assert compare(folder, "--variant", variant, "--batch", 3, "--prompt", "Lily ran.") == 0
        assert "agrees" in capsys.readouterr().out


class TestOptions:
    def test_rows_and_head_follow_the_inputs_asked_for(self, capsys):
        options = ("--batch", 2, "--sequence-length", 12, "--padding", "left", "--seed", 3)
        report = report_of(capsys, "random-llama", *options, "--dtype", "float64")
        assert embedded(report)["shape"] == [2, 12, 64]
        assert embedded(report)["dtype"] == "float64"
        assert report["run"]["notes"] == [
            "inputs: 12 random tokens (seed 3), a batch of 2 with lengths 12, 9, padded on the left"
        ]

    def test_inputs_from_a_file(self, capsys, tmp_path: Path):
        path = tmp_path / "inputs.safetensors"
        save_file({"input_ids": torch.tensor([[1, 2, 3]])}, path)
        report = report_of(capsys, "tiny-llama", "--inputs", path, "--candidate", "sdpa")
        assert embedded(report)["shape"] == [1, 3, 64]

    def test_json_holds_how_to_run_it_again(self, capsys):
        report = report_of(capsys, "tiny-llama", "--candidate", "sdpa", "--map", r"^(\w+)=\1")
        command = shlex.split(report["run"]["command"])
        assert command[:3] == ["trace_model", "compare", "tiny-llama"]
        assert r"^(\w+)=\1" in command
        assert report["verdict"]["agrees"] is True

    def test_names_are_mapped(self, capsys):
        rule = r"^model\.language_model\.=model."
        plain = report_of(capsys, "tiny-llama", "--candidate", "tiny-qwen3-vl")
        mapped = report_of(capsys, "tiny-llama", "--candidate", "tiny-qwen3-vl", "--map", rule)
        assert "model.layers.0.self_attn" in mapped["coverage"]["paired_modules"]
        assert len(plain["rows"]) < len(mapped["rows"])

    def test_reports(self, capsys, tmp_path: Path):
        paths = tmp_path / "one.json", tmp_path / "two.json"
        reports = [word for path in paths for word in ("--report", path)]
        assert compare("tiny-llama", "--candidate", "sdpa", *reports) == 0
        first, second = (json.loads(path.read_text()) for path in paths)
        assert first == second
        assert first["schema"] == 2
        assert "agrees" in capsys.readouterr().out

    def test_a_report_of_every_kind(self, capsys, tmp_path: Path):
        paths = [tmp_path / f"report{suffix}" for suffix in WRITERS]
        reports = [word for path in paths for word in ("--report", path)]
        assert compare("tiny-llama", "--candidate", "sdpa", *reports) == 0
        assert sorted(tmp_path.iterdir()) == sorted(paths)
        page = (tmp_path / "report.html").read_text()
        data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
        outputs = [row for row in range(len(data["rows"]["call"])) if data["rows"]["output"][row]]
        assert list(data["samples"]) == [str(row) for row in outputs]
        assert "trace_model compare tiny-llama --candidate sdpa" in page
        assert (tmp_path / "report.md").read_text().startswith("## ✅ agrees")
        assert 'failures="0"' in (tmp_path / "report.xml").read_text()

    def test_focus_prints_values(self, capsys):
        globs = ("--focus", "model.layers.0.mlp", "--focus", "*.1.mlp.act_fn")
        assert compare("tiny-llama", "--candidate", "sdpa", *globs) == 0
        text = capsys.readouterr().out
        assert "values of model.layers.0.mlp, call 0" in text
        assert "values of model.layers.1.mlp.act_fn, call 0" in text
        assert "first values" in text
        assert "values of model.layers.0.self_attn" not in text

    def test_all_prints_every_row(self, capsys):
        compare("tiny-llama", "--candidate", "sdpa", "--all")
        table = capsys.readouterr().out.split("\n\n")[1]
        report = report_of(capsys, "tiny-llama", "--candidate", "sdpa")
        assert len(table.splitlines()) == 2 + len(report["rows"])
        assert " agree, " not in table

    def test_calibration_text(self, capsys, shared_data: Path, tmp_path: Path):
        text = tmp_path / "text.txt"
        text.write_text("Once upon a time, there was a little girl named Lily. " * 20)
        folder = shared_data / "stories260K" / "hf"
        quantized = ("--candidate", "quantized", "--activation", "int16")
        report = report_of(capsys, folder, *quantized, "--calibration-text", text, "--calibrate", 2)
        assert report["run"]["candidate"] == (
            "quantized (variant prefill, activation int16, weight uint8)"
        )
        assert f"the first 2 sequences of 59 tokens of {text}" in report["run"]["notes"][-1]
        assert report["isolation"]["modules"][0]["causes"]

    def test_without_progress_bars_nothing_goes_to_standard_error(self, capsys, broken: Path):
        compare("tiny-llama", "--candidate", broken)
        assert capsys.readouterr().err == ""


class TestTrouble:
    @pytest.fixture
    def raising(self, monkeypatch):
        """Makes the candidate's third layer raise."""

        def use(error: BaseException) -> None:
            def forward(*args: object, **kwargs: object) -> None:
                raise error

            @functools.wraps(models.candidate)
            def candidate(loaded: models.Loaded, kind: str, **options: object) -> torch.nn.Module:
                made = copy.deepcopy(loaded.model)
                made.model.layers[2].mlp.forward = forward
                return made

            monkeypatch.setattr(models, "candidate", candidate)

        return use

    def test_a_model_that_raises_leaves_the_rows_before(self, capsys, raising):
        raising(ValueError("no such luck"))
        assert compare("tiny-llama") == 2
        printed = capsys.readouterr()
        assert "model.layers.2.post_attention_layernorm" in printed.out
        assert "agrees" not in printed.out.splitlines()
        assert printed.err == (
            "trace_model: the candidate raised ValueError in module 'model.layers.2.mlp' "
            "(LlamaMLP, call 0): no such luck\n"
        )

    def test_then_json_prints_nothing(self, capsys, raising):
        raising(ValueError("no such luck"))
        assert compare("tiny-llama", "--json") == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "no such luck" in printed.err

    def test_an_interruption(self, capsys, monkeypatch):
        def interrupt(*args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(models, "load", interrupt)
        assert compare("tiny-llama") == 130
        assert capsys.readouterr() == ("", "")

    def test_a_bug_of_ours_keeps_its_traceback(self, monkeypatch):
        def fail(*args: object, **kwargs: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(models, "load", fail)
        with pytest.raises(ZeroDivisionError):
            compare("tiny-llama")


class TestProcess:
    MAIN = "import sys; from tracer.cli import main; code = main(sys.argv[1:]); "

    def command(self, *arguments: str, end: str = "sys.exit(code)") -> list[str]:
        return [sys.executable, "-c", self.MAIN + end, *arguments]

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--help"],
            ["--version"],
            ["compare", "--help"],
            ["compare", "tiny-lama"],
            ["compare", "tiny-llama", "--focsu"],
            ["compare", "tiny-llama", "--candidate", "sdap"],
            ["compare", "tiny-llama", "--report", "out.pdf"],
            ["compare", "tiny-llama", "--candidate", "sdpa", "--weight", "uint4"],
        ],
        ids=" ".join,
    )
    def test_nothing_heavy_is_imported_for_help_and_wrong_use(self, arguments: list[str]):
        end = f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
        command = self.command(*arguments, end=end)
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.endswith("HEAVY []\n"), done.stdout

    def test_the_whole_way(self):
        command = self.command("compare", "tiny-llama", "--candidate", "sdpa", "--json")
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert json.loads(done.stdout)["verdict"]["agrees"] is True

    @pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
    def test_a_reader_that_has_gone(self, options: list[str]):
        command = self.command("compare", "tiny-llama", "--candidate", "sdpa", *options)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        assert process.wait(timeout=120) == 2
        assert errors == ""
