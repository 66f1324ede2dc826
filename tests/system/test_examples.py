"""The examples run as they stand and print what they are there to show."""

import importlib.util
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tracer import models
from tracer.cli import main
from tracer.models.locate import locate
from wrappers.core import registry

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.covers
def test_find_a_wrong_mask(monkeypatch, capsys) -> None:
    printed = run("find_a_wrong_mask.py", monkeypatch, capsys)
    assert "`model` passes a wrong `attention_mask` to `model.layers.0` and 3 more" in printed
    assert "Confirmed: with the reference's `attention_mask`" in printed


@pytest.mark.covers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_open_what_is_compiled(monkeypatch, capsys) -> None:
    printed = run("open_what_is_compiled.py", monkeypatch, capsys)
    assert "the first that differs is AOT (aot_eager):" in printed
    assert "With `1` left uncompiled, the whole agrees" in printed


@pytest.mark.covers
def test_find_the_mask_bug(monkeypatch, capsys) -> None:
    printed = run("find_the_mask_bug.py", monkeypatch, capsys)
    right, wrong = printed.split("# The wrapped model as it was")
    assert "The models agree" in right
    check_mask_bug(wrong, length=84)
    agreeing = figures(right)
    assert len(agreeing) == len(figures(wrong)) == 5
    assert all(peir < 1e-6 for peir in agreeing.values())
    damaged = {"o_proj", "lm_head"}
    for name, peir in figures(wrong).items():
        assert 0.3 < peir < 1.0 if name in damaged else peir < 1e-6, name


@pytest.mark.slow
def test_find_the_mask_bug_on_a_photo(monkeypatch, capsys, shared_data) -> None:
    processor = str(shared_data / "qwen_processor" / "qwen3vl")
    photo = str(shared_data / "images" / "chelsea.png")
    arguments = ["--processor", processor, "--image", photo]
    printed = run("find_the_mask_bug.py", monkeypatch, capsys, *arguments)
    right, wrong = printed.split("# The wrapped model as it was")
    assert "The models agree" in right
    check_mask_bug(wrong, length=140)


def check_mask_bug(printed: str, length: int) -> None:
    """The verdict says who hands down what, and what it was to be."""
    printed = " ".join(printed.split())
    text_model = "model.language_model"
    assert f"`{text_model}` passes a wrong `attention_mask` to `{text_model}.layers.0`" in printed
    assert f"reference: float32 [1, 1, {length}, {length}]" in printed
    assert "additive mask, causal, at transformers/models/qwen3_vl/modeling_qwen3_vl.py:" in printed
    assert f"candidate: int64 [1, {length}], all 1: mask, hides nothing, at wrappers/" in printed
    assert (
        f"First visible at argument `input` of `{text_model}.layers.0.self_attn.o_proj`" in printed
    )
    assert "Confirmed: with the reference's `attention_mask`, PEIR at" in printed


def figures(printed: str) -> dict[str, float]:
    """PEIR by the last part of the module's name, of the rows printed last."""
    lines = printed.split("peir\n")[1].split("\n\n")[0].splitlines()
    rows = [line.split() for line in lines if len(line.split()) == 6]
    return {row[0].rpartition(".")[2]: float(row[-1]) for row in rows}


def test_compare_under_other_names(monkeypatch, capsys) -> None:
    printed = run("compare_under_other_names.py", monkeypatch, capsys)
    assert "agrees" in printed
    assert "coverage: 7 of 7 modules, 7 calls" in printed
    assert "fused: holds `query`, `key`, `value`: attn.qkv" in printed
    assert "unpaired" not in printed


@pytest.mark.covers
def test_quantize_llama(monkeypatch, capsys) -> None:
    printed = run("quantize_llama.py", monkeypatch, capsys)
    assert "quantisation off: The models agree" in printed
    assert "logits: PEIR 0." in printed


@pytest.mark.covers
def test_add_a_variant(monkeypatch, capsys) -> None:
    # What it registers is gone after it.
    registry.wrapped_classes()  # imports the families, whose wrappers stay
    monkeypatch.setattr(registry, "_WRAPPERS", dict(registry._WRAPPERS))
    printed = run("add_a_variant.py", monkeypatch, capsys)
    prefill, reference = printed.split("prefill_reference: ")
    assert prefill.startswith("prefill: SiLUByTanh with act_in, tanh, sigmoid, act_out\n")
    assert reference.startswith("QuantSiLUActivation with act_in, sigmoid, mul, act_out\n")
    for half in (prefill, reference):
        assert "\nquantisation off: The models agree" in half
        rows = [line.split() for line in half.splitlines() if line.startswith("model.layers.")]
        assert [row[0] for row in rows] == [f"model.layers.{i}.mlp.act_fn" for i in range(4)]
        assert all(0.01 < float(row[1]) < 0.5 for row in rows)


# Those that write a .circle as well in the tests: each takes many seconds.
_TO_CIRCLE = ("quantize_llama_mlp.py", "quantize_llama_decoder_layer_decode.py")


@pytest.mark.parametrize("name", [
    "quantize_llama_attention_decode.py", "quantize_llama_attention_prefill.py",
    "quantize_llama_decoder_layer_decode.py", "quantize_llama_decoder_layer_prefill.py",
    "quantize_llama_mlp.py", "quantize_qwen3_vl_text_model.py",
])  # fmt: skip
@pytest.mark.no_cover  # measuring coverage takes a capture several times as long
@pytest.mark.slow
def test_quantising_and_exporting(name, monkeypatch, capsys, tmp_path) -> None:
    has_tico = importlib.util.find_spec("tico") and name in _TO_CIRCLE
    if not has_tico:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    printed = run(name, monkeypatch, capsys, str(tmp_path))
    assert "Quantization Error Summary" in printed
    assert ("new key" in printed) == name.endswith("decode.py")
    peirs = [float(peir) for peir in re.findall(r"([\d.]+) % *│", printed)]
    assert len(peirs) == (1 if "mlp" in name or "qwen" in name else 3)
    assert all(0.3 < peir < 20 for peir in peirs)
    assert printed.count("•") > 30
    [file] = tmp_path.glob("*.pt2")
    assert f"{file}: {file.stat().st_size} bytes" in printed
    if has_tico:
        [file] = tmp_path.glob("*.circle")
        assert f"{file}: {file.stat().st_size} bytes" in printed
    else:
        assert "pip install 'tico>=0.3'" in printed


@pytest.fixture
def flushed() -> Iterator[None]:
    """The example has denormal numbers taken for 0; other tests do not."""
    yield
    torch.set_flush_denormal(False)


@pytest.mark.slow
def test_train_tiny_llama(flushed, monkeypatch, capsys, tmp_path) -> None:
    colours, places = ("red", "blue", "green", "grey"), ("lake", "wood", "hill", "shed", "barn")
    stories = [f"A {colour} hen ran to the {place}." for colour in colours for place in places]
    one_a_line, separated = tmp_path / "a.txt", tmp_path / "b.txt"
    one_a_line.write_text("\n".join([*stories[:10], stories[0], ""]))
    separated.write_text("\n<|endoftext|>\n".join(stories[10:]))
    more, out = tmp_path / "more.txt", tmp_path / "out"
    options = ["--steps", "12", "--out", str(out)]
    teacher = ["--more", str(more), "--teacher", str(locate("tiny-llama")), "--written", "2"]
    printed = run(
        *("train_tiny_llama.py", monkeypatch, capsys),
        *(str(one_a_line), str(separated), *options, *teacher),
    )
    assert more.read_text().count("<|endoftext|>") == 2
    assert "18 stories and 2 more, 2 held out\n" in printed
    untrained, trained = re.findall(r"held-out stories: .*?([\d.]+)\n", printed)
    assert float(trained) < 0.8 * float(untrained)
    loaded = models.load(out)
    assert loaded.notes[0].endswith(" tokens of the default prompt")
    assert loaded.tokenizer.decode(loaded.tokenizer(stories[0])["input_ids"][1:]) == stories[0]

    with pytest.raises(SystemExit):
        run("train_tiny_llama.py", monkeypatch, capsys, str(one_a_line), *options, *teacher[2:])
    assert "--teacher writes to the file of --more" in capsys.readouterr().err
    one_a_line.write_text("\n".join(stories[:9]))
    with pytest.raises(SystemExit):
        run("train_tiny_llama.py", monkeypatch, capsys, str(one_a_line), *options)
    assert "found 9 stories; expected at least 10" in capsys.readouterr().err


def test_quantising_without_tico(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    printed = run("quantize_llama_mlp.py", monkeypatch, capsys, str(tmp_path))
    assert "written by tico, which is not installed: pip install 'tico>=0.3'" in printed
    assert [file.suffix for file in tmp_path.iterdir()] == [".pt2"]


def test_every_example_is_tested() -> None:
    source = Path(__file__).read_text()
    assert all(f'"{path.name}"' in source for path in EXAMPLES.glob("*.py"))


@pytest.mark.covers
def test_train_alike(capsys) -> None:
    arguments = ["compare", str(EXAMPLES / "train_alike.py") + ":build", "--candidate", "sdpa"]
    assert main([*arguments, "--train"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "`transformer.drop` drops out (p 0.1) and 13 more" in printed
    assert "agrees The models agree: the largest PEIR is " in printed


@pytest.mark.slow
def test_smoothed(capsys) -> None:
    arguments = ["compare", "random-llama", "--candidate", str(EXAMPLES / "smoothed.py") + ":build"]
    assert main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "equivalent The models are equivalent: their outputs agree" in printed
    assert "scaled or shifted per channel (4 places)" in printed
    assert main([*arguments, "--strict"]) == 1
    assert "The inputs of `model.layers.0.input_layernorm` agree" in capsys.readouterr().out


@pytest.mark.covers
def test_compare_a_port(monkeypatch, capsys) -> None:
    printed = run("compare_a_port.py", monkeypatch, capsys)
    assert printed.count("coverage: 53 of 59 modules") == 2
    right, wrong = printed.split("\nagrees\n")
    assert "differ" not in right
    assert "The error is introduced in the forward of `blocks.2.attention`" in wrong
    assert "mixed = functional.scaled_dot_product_attention(" in wrong


@pytest.mark.covers
def test_debug_an_export(monkeypatch, capsys) -> None:
    printed = run("debug_an_export.py", monkeypatch, capsys)
    right, wrong = printed.split("# After the pass")
    assert "The models agree: every compared value is equal." in right
    assert "`1.attention`" in wrong
    assert "Confirmed" in wrong
    assert "scores = scores / 2.0" in wrong
