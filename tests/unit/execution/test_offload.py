"""Models whose weights accelerate loads when they are needed: the same verdicts, in less memory."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import tracer
import wrappers
from tracer import models
from tracer.cli import main
from tracer.diagnosis.parameters import changed_parameters
from tracer.errors import ModelLoadError, UsageError
from tracer.execution.hooks import Call, Phase, definition
from tracer.execution.offload import (
    copy_model,
    execution_device,
    is_offloaded,
    lacks_values,
    value_of,
)
from tracer.execution.pairing import pair
from tracer.execution.session import run_alone
from tracer.interventions.exchange import exchange

IDS = torch.arange(12).reshape(1, 12)
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def make_llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        attention_bias=True, tie_word_embeddings=tied, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def enlarge(model: LlamaForCausalLM) -> None:
    model.model.layers[1].mlp.up_proj.weight[3] *= 1.5


def take_another(model: LlamaForCausalLM) -> None:
    layers = model.model.layers
    layers[0].self_attn.q_proj.weight.copy_(layers[1].self_attn.q_proj.weight)


def forget_a_bias(model: LlamaForCausalLM) -> None:
    model.model.layers[0].self_attn.v_proj.bias.zero_()


def break_two(model: LlamaForCausalLM) -> None:
    model.model.layers[0].input_layernorm.weight.mul_(1.1)
    model.lm_head.weight[2].neg_()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves the model, with a mistake or without, and returns the folder."""
    around = tmp_path_factory.mktemp("checkpoints")

    def save(mistake: Callable[[Any], None] | None = None, *, tied: bool = False) -> Path:
        folder = around / f"{getattr(mistake, '__name__', 'right')}{'-tied' if tied else ''}"
        if not folder.exists():
            model = make_llama(tied=tied)
            if mistake is not None:
                with torch.no_grad():
                    mistake(model)
            model.save_pretrained(folder)
        return folder

    return save


def compared(folder: Path, kind: str | Path, *, offload: bool, **options: Any) -> tracer.Comparison:
    loaded = models.load(folder, inputs=INPUTS, offload=offload)
    candidate = models.candidate(loaded, str(kind))
    assert is_offloaded(loaded.model) == is_offloaded(candidate) == offload
    comparison = tracer.compare(loaded.model, candidate, loaded.inputs, **options)
    if offload:
        assert all(p.is_meta for m in (loaded.model, candidate) for p in m.parameters())
    return comparison


def assert_same(one: tracer.Comparison, other: tracer.Comparison) -> None:
    """One after the other row for row and word for word."""
    assert one.verdict == other.verdict
    assert [row.peir for row in one.rows] == [row.peir for row in other.rows]
    assert one.coverage == other.coverage
    assert one.zoomed == other.zoomed
    assert one.isolation == other.isolation


class TestVerdicts:
    """What is said of offloaded models is what is said of them in memory."""

    @pytest.mark.parametrize("kind", ["bfloat16", "sdpa", "wrapped"])
    def test_candidates_that_agree(self, saved, kind: str) -> None:
        kept = compared(saved(), kind, offload=False)
        assert kept.verdict.agrees
        assert_same(compared(saved(), kind, offload=True), kept)

    @pytest.mark.covers
    @pytest.mark.parametrize("mistake", [enlarge, take_another, forget_a_bias, break_two])
    def test_a_checkpoint_with_a_mistake(self, saved, mistake) -> None:
        kept = compared(saved(), saved(mistake), offload=False)
        assert not kept.verdict.agrees
        assert kept.verdict.confirmed
        assert kept.verdict.origin.kind == "parameter"
        assert_same(compared(saved(), saved(mistake), offload=True), kept)
        if mistake is take_another:
            said = "Its `weight` equals the reference's `model.layers.1.self_attn.q_proj.weight`."
            assert said in kept.verdict.explanation

    @pytest.mark.covers
    def test_isolation_and_the_operations_inside(self, saved) -> None:
        options = {"isolate": "leaves", "what_if": 1}
        kept = compared(saved(), saved(enlarge), offload=False, **options)
        assert_same(compared(saved(), saved(enlarge), offload=True, **options), kept)
        # Those that load weights are none of them.
        mlp = "model.layers.1.mlp"
        kept = compared(saved(), saved(enlarge), offload=False, zoom=mlp)
        found = compared(saved(), saved(enlarge), offload=True, zoom=mlp)
        assert found.zoomed == kept.zoomed
        assert found.zoomed.explanation in found.verdict.explanation

    @pytest.mark.covers
    def test_the_noise_floor_and_a_quantised_candidate(self, saved) -> None:
        kept = compared(saved(), "bfloat16", offload=False, noise_floor=True)
        found = compared(saved(), "bfloat16", offload=True, noise_floor=True)
        assert [row.floor for row in found.rows] == [row.floor for row in kept.rows]
        assert max(row.floor or 0.0 for row in found.rows) > 0.0
        kept = compared(saved(), "quantized", offload=False, isolate="leaves", confirm=False)
        found = compared(saved(), "quantized", offload=True, isolate="leaves", confirm=False)
        assert max(row.peir for row in kept.rows) > 1e-3
        assert_same(found, kept)


class TestLoad:
    def test_weights_stay_in_the_checkpoint(self, saved, tmp_path: Path) -> None:
        loaded = models.load(saved(), inputs=INPUTS, offload=tmp_path)
        (scratch,) = tmp_path.iterdir()
        assert list(scratch.iterdir()) == []
        assert "the weights lie on disk" in " ".join(loaded.notes)
        expected = make_llama()
        own = expected.model.layers[1].mlp
        mlp = loaded.model.model.layers[1].mlp
        name = "up_proj.weight"
        assert torch.equal(value_of(mlp, name, mlp.get_parameter(name)), own.get_parameter(name))
        with torch.no_grad():
            assert torch.equal(loaded.model(**INPUTS).logits, expected(**INPUTS).logits)

    @pytest.mark.covers
    def test_the_folder_goes_with_the_last_model_that_reads_from_it(self, tmp_path: Path) -> None:
        loaded = models.load("random-llama", offload=str(tmp_path))
        (scratch,) = tmp_path.iterdir()
        assert any(scratch.iterdir())  # a built-in model has no checkpoint
        candidate = models.candidate(loaded, "sdpa")
        inputs = loaded.inputs
        del loaded
        gc.collect()
        with torch.no_grad():
            assert candidate(**inputs).logits.isfinite().all()
        del candidate
        gc.collect()
        assert list(tmp_path.iterdir()) == []

    def test_weights_that_are_no_safetensors(self, saved, tmp_path: Path) -> None:
        """They are written to the folder, tied ones once."""
        folder = tmp_path / "checkpoint"
        shutil.copytree(saved(tied=True), folder)
        weights = load_file(folder / "model.safetensors")
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        loaded = models.load(folder, inputs=INPUTS, offload=tmp_path)
        (scratch,) = tmp_path.glob("trace_model_*")
        assert len(list(scratch.iterdir())) == len(weights)
        with torch.no_grad():
            logits = loaded.model(**INPUTS).logits
            assert torch.equal(logits, make_llama(tied=True)(**INPUTS).logits)

    def test_nothing_is_left_of_what_failed(self, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        (empty / "config.json").write_text('{"model_type": "llama"}')
        place = tmp_path / "place"
        place.mkdir()
        with pytest.raises(ModelLoadError):
            models.load(empty, offload=place)
        assert list(place.iterdir()) == []

    def test_where_it_computes(self, saved) -> None:
        loaded = models.load(saved(), inputs=INPUTS, offload=True)
        assert execution_device(loaded.model) == torch.device("cpu")
        assert execution_device(make_llama()) == torch.device("cpu")
        assert execution_device(nn.Identity()) == torch.device("cpu")
        loaded = models.load(saved(), inputs=INPUTS, offload=True)
        with pytest.raises(UsageError, match="cannot be compiled"):
            models.candidate(loaded, "compile")


class Weighted(nn.Module):
    """Uses a parameter of its own after it has called another module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) @ self.weight


def in_memory(model: nn.Module, folder: Path) -> nn.Module:
    return cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model: nn.Module, folder: Path) -> nn.Module:
    return disk_offload(model, folder, execution_device=torch.device("cpu"))


class TestDispatchedByTheUser:
    @pytest.mark.covers
    @pytest.mark.parametrize("dispatch", [in_memory, on_disk])
    def test_against_a_model_in_memory(self, dispatch, tmp_path: Path) -> None:
        broken = make_llama()
        with torch.no_grad():
            enlarge(broken)
        expected = tracer.compare(make_llama(), broken, INPUTS)
        found = tracer.compare(make_llama(), dispatch(broken, tmp_path / "weights"), INPUTS)
        assert_same(found, expected)

    @pytest.mark.covers
    def test_a_device_map(self, saved, tmp_path: Path) -> None:
        """Some layers in memory, others on disk."""
        dispatched = LlamaForCausalLM.from_pretrained(
            saved(enlarge),
            device_map="auto",
            max_memory={"cpu": 16_000},
            offload_folder=tmp_path / "weights",
            attn_implementation="eager",
        ).eval()
        assert set(dispatched.hf_device_map.values()) == {"cpu", "disk"}
        expected = compared(saved(), saved(enlarge), offload=False)
        assert_same(tracer.compare(make_llama(), dispatched, INPUTS), expected)

    def test_a_module_under_another_name(self) -> None:
        """Paired by the values that its hook loads."""
        left = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
        right = nn.Module()
        right.last, right.first = left[2], left[0]
        left, right = copy_model(left), copy_model(right)
        names = pair(left, right).pairs
        assert (names["first"], names["last"]) == ("0", "2")
        device = torch.device("cpu")
        offloaded = [cpu_offload(model, execution_device=device) for model in (left, right)]
        assert pair(*offloaded).pairs == names

    def test_modules_that_both_sides_share(self) -> None:
        """One side is through with a parameter of the outer module before the other is."""
        model = in_memory(Weighted().eval(), Path())
        verdict = tracer.compare(model, model, torch.randn(2, 4)).verdict
        assert verdict.explanation == "The models agree: every compared value is equal."
        assert model.weight.is_meta

    def test_lines_are_the_models_own(self, saved) -> None:
        calls = []

        def note(call: Call, phase: Phase) -> None:
            calls.append((call.name, call.caller, tuple(call.arguments), definition(call.module)))

        run_alone(make_llama(), INPUTS, note)
        kept, calls = calls, []
        run_alone(in_memory(make_llama(), Path()), INPUTS, note)
        assert calls == kept


class TestParameters:
    def test_changed_and_exchanged(self) -> None:
        reference, candidate = (in_memory(nn.Linear(3, 2), Path()) for _ in range(2))
        held = reference._hf_hook.hooks[1].weights_map
        changed = changed_parameters(reference, candidate, tracer.Tolerance())
        assert set(changed) == {"weight", "bias"}
        x = torch.randn(4, 3)
        before = candidate(x)
        undo = exchange(candidate, reference, "weight")
        assert set(changed_parameters(reference, candidate, tracer.Tolerance())) == {"bias"}
        bias = value_of(candidate, "bias", candidate.bias)
        expected = nn.functional.linear(x, held["weight"], bias)
        assert torch.equal(candidate(x), expected)
        undo()
        assert torch.equal(candidate(x), before)
        assert candidate.weight.is_meta

    def test_values_and_calls_of_twins(self) -> None:
        empty = nn.Linear(2, 2, device="meta")
        assert lacks_values(empty)
        assert value_of(empty, "weight", empty.weight) is empty.weight
        assert not lacks_values(in_memory(nn.Linear(2, 2), Path()))
        model = in_memory(make_llama(), Path())
        other = models.cast(copy_model(model), torch.float64)
        with torch.no_grad():
            assert other(**INPUTS).logits.dtype == torch.float64
            assert torch.equal(model(**INPUTS).logits, make_llama()(**INPUTS).logits)
        weights = [m.lm_head._hf_hook.weights_map.dataset for m in (model, other)]
        assert weights[0] is weights[1]


class TestWrapped:
    def test_nothing_is_kept(self) -> None:
        model = in_memory(make_llama(), Path())
        expected = wrappers.prepare(make_llama(), wrappers.PTQConfig())
        found = wrappers.prepare(model, wrappers.PTQConfig())
        for wrapped in (expected, found):
            wrappers.calibrate(wrapped, [INPUTS])
            wrappers.convert(wrapped)
        with torch.no_grad():
            assert torch.equal(found(**INPUTS).logits, expected(**INPUTS).logits)
            assert torch.equal(model(**INPUTS).logits, make_llama()(**INPUTS).logits)
        assert all(parameter.is_meta for parameter in found.parameters())
        points = [point for _, _, point in wrappers.quantize.iter_points(found)]
        assert all(point._cache is None for point in points)


class TestCommandLine:
    @pytest.mark.covers
    def test_compare(self, saved, tmp_path: Path, capsys) -> None:
        paths = [str(saved()), "--candidate", str(saved(enlarge))]
        said = []
        for offload in ([], ["--offload", str(tmp_path)]):
            assert main(["compare", *paths, *offload]) == 1
            said.append(capsys.readouterr().out)
        note = "the weights lie on disk, and are loaded module by module\n"
        assert note in said[1]
        assert said[1].replace(note, "") == said[0]
        gc.collect()
        assert list(tmp_path.iterdir()) == []


class TestRecord:
    @pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
    def test_a_trace_is_the_same(self, saved, tmp_path: Path, tied: bool) -> None:
        headers = []
        for offload in (False, True):
            loaded = models.load(saved(tied=tied), inputs=INPUTS, offload=offload)
            tracer.record(loaded.model, loaded.inputs, tmp_path / f"{offload}.trace")
            headers.append(tracer.open_trace(tmp_path / f"{offload}.trace").header)
        assert headers[0]["modules"] == headers[1]["modules"]
        assert headers[0]["checksum"] == headers[1]["checksum"]
        assert headers[0]["device"] == headers[1]["device"] == "cpu"

    @pytest.mark.covers
    def test_a_recording_against_an_offloaded_model(self, saved, tmp_path: Path) -> None:
        tracer.record(make_llama(), INPUTS, tmp_path / "run.trace")
        recorded = tracer.open_trace(tmp_path / "run.trace")
        loaded = models.load(saved(enlarge), inputs=INPUTS, offload=True)
        expected = models.load(saved(enlarge), inputs=INPUTS)
        found = tracer.compare(recorded, loaded.model, INPUTS)
        assert_same(found, tracer.compare(recorded, expected.model, INPUTS))
        assert "1 of 29 parameters are not those recorded" in found.verdict.explanation
