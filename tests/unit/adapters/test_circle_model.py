"""Circle files as sides: rows by the map's modules, mistakes named, and what is said before."""

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tico")
pytest.importorskip("onert")

import tracer
import wrappers
from tests.builders.llama import tiny, wrap
from tracer.diagnosis.structure import WrongStructure
from tracer.errors import InputError, ModelLoadError, ModelRunError, UsageError
from wrappers import affine

# tico is loaded, and a file converted: some seconds, once.
pytestmark = pytest.mark.covers


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6, bias=False)

    def forward(self, x):
        weights = self.up(x).tanh().softmax(-1)
        return x + self.down(weights)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Block()
        self.second = Block()

    def forward(self, x):
        return self.second(self.first(x)) * 2.0


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A float net, an input and its file."""
    generator = torch.Generator().manual_seed(0)
    module, path = Net().eval(), tmp_path_factory.mktemp("plain") / "net.circle"
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.randn(1, 5, 6, generator=generator)
    wrappers.export(module, x, path)
    return module, x, path


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A quantised MLP of a Llama, an input and its file."""
    mlp = (
        wrap(tiny(), "prefill", activation=affine("int16"), weight=affine("uint8"))
        .model.layers[0]
        .mlp
    )
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    wrappers.calibrate(mlp, [x])
    wrappers.convert(mlp)
    path = tmp_path_factory.mktemp("quantised") / "mlp.circle"
    wrappers.export(mlp, x, path)
    return mlp, x, path


def edited(path, folder, change, *, keeps_map=True):
    """A copy of a file after a change to its document, with a map that goes with it."""
    from tico.circle.document import CircleDocument

    document = CircleDocument.from_bytes(path.read_bytes())
    change(document.model, document.model.subgraphs[0])
    data = document.to_bytes()
    target = folder / path.name
    target.write_bytes(data)
    found = json.loads((path.parent / f"{path.name}.map.json").read_text())
    if keeps_map:
        found["checksum"] = hashlib.sha256(data).hexdigest()
    (folder / f"{path.name}.map.json").write_text(json.dumps(found))
    return tracer.open_graph(target)


def tensor_of(graph, end):
    return next(t for t in graph.tensors if t.name.decode().endswith(end))


def operator_of(graph, end):
    tensor = graph.tensors.index(tensor_of(graph, end))
    return next(each for each in graph.operators if tensor in [*each.outputs])


def change_data(model, tensor, change, dtype=np.float32):
    buffer = model.buffers[tensor.buffer]
    array = change(np.frombuffer(bytes(buffer.data), dtype).copy())
    buffer.data = np.frombuffer(array.tobytes(), np.uint8)


class TestAgreement:
    def test_every_module_is_compared(self, plain):
        module, x, path = plain
        graph = tracer.open_graph(path)
        comparison = tracer.compare(module, graph, x)
        assert comparison.verdict.outcome == "agrees"
        assert len(comparison.coverage.paired_modules) == 7
        assert dict(graph.named_parameters()).keys() == dict(module.named_parameters()).keys()

    def test_inputs_of_its_own(self, plain):
        given = tracer.open_graph(plain[2]).example_inputs()
        assert given["x"].shape == (1, 5, 6)

    def test_quantised(self, quantised):
        module, x, path = quantised
        graph = tracer.open_graph(path)
        assert "onert takes no quantised types, and mlp.circle has int16, uint8" in graph.notes[0]
        comparison = tracer.compare(module, graph, x, tolerance=4 / 2**15)
        assert comparison.verdict.agrees
        assert not any(isinstance(e, WrongStructure) for e in comparison.verdict.beside)
        assert len(comparison.coverage.paired_modules) == 5

    def test_without_a_map_modules_are_those_that_hold_the_weights(self, plain, tmp_path):
        module, x, path = plain
        (tmp_path / "net.circle").write_bytes(path.read_bytes())
        graph = tracer.open_graph(tmp_path / "net.circle")
        assert graph.notes == (
            "there is no net.circle.map.json beside net.circle: modules are found by their "
            "weights (wrappers.export writes it)",
        )
        comparison = tracer.compare(module, graph, x)
        assert comparison.verdict.agrees
        assert {"first.up", "second.down"} <= {row.module for row in comparison.rows}

    def test_a_map_of_another_file(self, plain, tmp_path):
        module, x, path = plain

        def change(model, graph):
            model.description = b"another"

        graph = edited(path, tmp_path, change, keeps_map=False)
        assert "is of another file than net.circle is now (its checksum differs)" in graph.notes[0]
        assert tracer.compare(module, graph, x).verdict.agrees


class TestMistakes:
    def origin(self, case, graph, **options):
        module, x, _ = case
        verdict = tracer.compare(module, graph, x, **options).verdict
        assert verdict.outcome == "diverges"
        assert verdict.confirmed
        return verdict

    def test_a_wrong_constant(self, plain, tmp_path):
        def change(model, graph):
            change_data(model, tensor_of(graph, "second_down_weight"), lambda array: array[::-1])

        verdict = self.origin(plain, edited(plain[2], tmp_path, change))
        assert (verdict.origin.module, verdict.origin.kind) == ("second.down", "parameter")

    def test_a_removed_operator(self, plain, tmp_path):
        def change(model, graph):
            gone = operator_of(graph, "::tanh")
            graph.operators.remove(gone)
            for each in graph.operators:
                taken = [gone.inputs[0] if i == gone.outputs[0] else i for i in each.inputs]
                each.inputs = np.array(taken, np.int32)

        verdict = self.origin(plain, edited(plain[2], tmp_path, change))
        assert verdict.origin.module == "first"
        assert "test_circle_model.py" in verdict.origin.candidate_line

    def test_an_attribute(self, plain, tmp_path):
        def change(model, graph):
            operator_of(graph, "::_softmax_1").builtinOptions.beta = 0.25

        verdict = self.origin(plain, edited(plain[2], tmp_path, change))
        assert verdict.origin.module == "second"

    def test_a_wrong_scale(self, quantised, tmp_path):
        def change(model, graph):
            quantization = tensor_of(graph, "::linear_1").quantization
            quantization.scale = np.float32(40) * quantization.scale

        graph = edited(quantised[2], tmp_path, change)
        verdict = self.origin(quantised, graph, tolerance=4 / 2**15)
        assert verdict.origin.module == "up_proj"
        structure = next(each for each in verdict.beside if isinstance(each, WrongStructure))
        (wrong,) = structure.tensors
        assert (wrong.name, wrong.module) == ("linear_1", "up_proj")
        assert "of up_proj: int16, scale" in wrong.nearest
        text = tracer.explain(verdict)
        assert "tensors of the candidate's file is quantised as no point there is:" in text
        assert "`linear_1` of `up_proj`: int16, scale" in text

    def test_a_wrong_quantised_constant(self, quantised, tmp_path):
        def change(model, graph):
            operator = operator_of(graph, "::linear_2")
            tensor = graph.tensors[operator.inputs[1]]
            change_data(model, tensor, lambda array: array[::-1], np.uint8)

        graph = edited(quantised[2], tmp_path, change)
        verdict = self.origin(quantised, graph, tolerance=4 / 2**15)
        assert (verdict.origin.module, verdict.origin.kind) == ("down_proj", "parameter")


class TestErrors:
    def test_what_cannot_be_run_is_compared_in_its_structure(
        self, quantised, tmp_path, monkeypatch
    ):
        from tracer.adapters import circle_engine

        def change(model, graph):
            quantization = tensor_of(graph, "::linear_1").quantization
            quantization.scale = np.float32(40) * quantization.scale

        def refuse(data):
            raise ValueError("no kernel for it")

        graph = edited(quantised[2], tmp_path, change)
        monkeypatch.setattr(circle_engine, "reference_session", refuse)
        with pytest.raises(
            ModelRunError, match=r"can compute FULLY_CONNECTED .*no kernel"
        ) as found:
            tracer.compare(quantised[0], graph, quantised[1])
        beside = found.value.comparison.verdict.beside
        (structure,) = (each for each in beside if isinstance(each, WrongStructure))
        assert structure.tensors[0].module == "up_proj"

    def test_files_that_are_none(self, plain, tmp_path):
        path = tmp_path / "a.circle"
        path.write_bytes(b"nothing of it")
        with pytest.raises(ModelLoadError, match="is no Circle file: expected one that begins"):
            tracer.open_graph(path)
        path.write_bytes(plain[2].read_bytes()[:700])
        with pytest.raises(ModelLoadError, match="is damaged, or has what tico cannot read"):
            tracer.open_graph(path)

    def test_maps_that_are_none(self, plain, tmp_path):
        (tmp_path / "a.circle").write_bytes(plain[2].read_bytes())
        for text in ("[", "{}", "[1]"):
            (tmp_path / "a.circle.map.json").write_text(text)
            with pytest.raises(ModelLoadError, match="is no map of a Circle file"):
                tracer.open_graph(tmp_path / "a.circle")

    def test_inputs_that_do_not_fit(self, plain):
        with pytest.raises(InputError, match=r"takes 'x' as float32 \[1, 5, 6\]"):
            tracer.open_graph(plain[2])(torch.randn(1, 4, 6))

    def test_another_device(self, plain):
        with pytest.raises(UsageError, match="is computed on the CPU: leave out the device 'meta'"):
            tracer.open_graph(plain[2], device="meta")

    def test_a_missing_extra(self, plain, monkeypatch):
        from tracer.adapters import circle_file

        monkeypatch.setattr(circle_file.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ModelLoadError, match=r"pip install 'tico>=0\.3'"):
            tracer.open_graph(plain[2])
