"""ONNX files as sides: rows by module, mistakes named, and what cannot be opened."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from jsonschema import validate
from onnx import TensorProto, helper

import tracer
from tests.builders import onnx_files as files
from tracer.errors import InputError, ModelLoadError, ModelRunError, UsageError
from tracer.reports.json import render
from tracer.reports.narrator import explain

SCHEMA = Path(tracer.__file__).parent / "reports" / "report.schema.json"


def opened(tmp_path, change=lambda model: None, *, module=None, **options):
    """The net's file after a change, opened."""
    model = files.model_of(module or files.net())
    return tracer.open_graph(files.write(change(model) or model, tmp_path / "net.onnx", **options))


class TestAgreement:
    def test_it_is_the_module_that_was_exported(self, tmp_path):
        module, graph = files.net(), opened(tmp_path)
        with torch.no_grad():
            expected, found = module(**files.inputs(7)), graph(**files.inputs(7))
        for one, two in zip(expected, found, strict=True):
            torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-5)
        names = {name for name, _ in module.named_modules()}
        assert names == {name for name, _ in graph.named_modules()}
        assert type(graph.get_submodule("first.up")).__name__ == "Linear"
        parameters = dict(graph.named_parameters())
        for name, parameter in module.named_parameters():
            assert torch.equal(parameters[name], parameter)

    @pytest.mark.parametrize("is_reference", [False, True])
    def test_every_module_is_compared(self, is_reference, tmp_path):
        sides = [files.net(), opened(tmp_path)]
        comparison = tracer.compare(*sides[:: -1 if is_reference else 1], files.inputs())
        assert comparison.verdict.outcome == "agrees"
        assert len(comparison.coverage.paired_modules) == 7
        rows = {(row.module, str(row.value)) for row in comparison.rows}
        assert {("first.down", "output"), ("second", "kwargs.x"), ("", "output.1")} <= rows
        assert tracer.explain(comparison.verdict).startswith("The models agree")

    def test_sizes_that_are_not_fixed(self, tmp_path):
        graph = opened(tmp_path)
        for length in (2, 9):
            comparison = tracer.compare(files.net(), graph, files.inputs(length))
            assert comparison.verdict.agrees

    def test_positional_inputs(self, tmp_path):
        given = tuple(files.inputs().values())
        assert tracer.compare(files.net(), opened(tmp_path), given).verdict.agrees

    def test_data_beside_the_file_is_mapped(self, tmp_path):
        graph = opened(
            tmp_path, save_as_external_data=True, size_threshold=100, location="net.data"
        )
        assert (tmp_path / "net.data").stat().st_size > 400
        assert tracer.compare(files.net(), graph, files.inputs()).verdict.agrees

    @pytest.mark.parametrize(("dtype", "number"), [
        (torch.float16, TensorProto.FLOAT16),
        (torch.float64, TensorProto.DOUBLE),
    ])  # fmt: skip
    def test_other_floats(self, dtype, number, tmp_path):
        module = files.net()
        path = files.write(files.model_of(module, number), tmp_path / "net.onnx")
        given = files.inputs()
        given["x"] = given["x"].to(dtype)
        comparison = tracer.compare(module.to(dtype), tracer.open_graph(path), given)
        assert comparison.verdict.agrees

    def test_parts_of_the_same_make_share_a_session(self, tmp_path):
        graph = opened(tmp_path)
        graph(**files.inputs())
        # up, half and softmax, down, the residual sum; the mask, the mean.
        assert len(graph._engine._sessions) == 6


class TestWithoutNames:
    def test_modules_are_those_that_hold_the_weights(self, tmp_path):
        graph = opened(tmp_path, files.nameless)
        assert not graph.has_modules
        comparison = tracer.compare(files.net(), graph, files.inputs())
        assert comparison.verdict.agrees
        modules = {row.module for row in comparison.rows}
        assert modules == {"first.up", "first.down", "second.up", "second.down", ""}

    def test_names_of_the_other_exporter(self, tmp_path):
        def renamed(model):
            for node in model.graph.node:
                scopes = next(
                    (p.value for p in node.metadata_props if p.key.endswith("name_scopes")), "[]"
                )
                path = eval(scopes)[-2].replace(".", "/")
                node.name = f"/{path}/{node.op_type}".replace("//", "/")
                del node.metadata_props[:]

        graph = opened(tmp_path, renamed)
        comparison = tracer.compare(files.net(), graph, files.inputs())
        assert comparison.verdict.agrees
        assert len(comparison.coverage.paired_modules) == 7

    def test_quantised_weights_are_the_numbers_that_they_stand_for(self, tmp_path):
        def quantised(model):
            files.nameless(model)
            proto = next(each for each in model.graph.initializer if list(each.dims) == [6, 8])
            name, array = proto.name, onnx.numpy_helper.to_array(proto)
            scale = float(abs(array).max()) / 127
            model.graph.initializer.remove(proto)
            model.graph.initializer.extend([
                onnx.numpy_helper.from_array((array / scale).round().astype("int8"), "q"),
                onnx.numpy_helper.from_array(array.dtype.type(scale), "s"),
            ])  # fmt: skip
            node = helper.make_node("DequantizeLinear", ["q", "s"], [name])
            model.graph.node.insert(0, node)

        comparison = tracer.compare(files.net(), opened(tmp_path, quantised), files.inputs())
        origin = comparison.verdict.origin
        assert (origin.module, origin.kind) == ("first.up", "parameter")
        assert comparison.verdict.confirmed


class TestMistakes:
    """Each is named at its module, and its line where one node computes it."""

    def check(self, graph, module, line=None):
        comparison = tracer.compare(files.net(), graph, files.inputs())
        verdict = comparison.verdict
        assert verdict.outcome == "diverges"
        assert (verdict.origin.module, verdict.confirmed) == (module, True)
        if line is not None:
            assert comparison.zoomed.culprit.name == line
        return comparison

    def test_an_axis(self, tmp_path):
        def change(model):
            files.node_of(model, "second_c").attribute[0].i = 1

        self.check(opened(tmp_path, change), "second", "Softmax")

    def test_a_constant(self, tmp_path):
        def change(model):
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(
                    next(i for i in model.graph.initializer if i.name == "half")) * 3, "other")
            )  # fmt: skip
            files.node_of(model, "first_b").input[1] = "other"

        self.check(opened(tmp_path, change), "first", "Mul")

    def test_a_wrong_initialiser(self, tmp_path):
        def change(model):
            files.replace_tensor(model, "second_v", lambda array: array[::-1])

        comparison = self.check(opened(tmp_path, change), "second.down")
        assert comparison.verdict.origin.kind == "parameter"
        assert "`weight` differs" in explain(comparison.verdict)

    def test_a_removed_node(self, tmp_path):
        def change(model):
            files.node_of(model, "second_c").input[0] = "second_a"
            model.graph.node.remove(files.node_of(model, "second_b"))

        self.check(opened(tmp_path, change), "second")

    def test_a_cast(self, tmp_path):
        def change(model):
            nodes = [
                helper.make_node("Cast", ["first_c"], ["half_c"], to=TensorProto.FLOAT16),
                helper.make_node("Cast", ["half_c"], ["float_c"], to=TensorProto.FLOAT),
            ]
            files.node_of(model, "first_d").input[0] = "float_c"
            place = [*model.graph.node].index(files.node_of(model, "first_d"))
            for node in reversed(nodes):
                model.graph.node.insert(place, node)

        self.check(opened(tmp_path, change), "first")

    def test_a_stale_mask(self, tmp_path):
        def change(model):
            import numpy as np

            kept = np.ones((2, 5, 1), bool)
            model.graph.initializer.append(onnx.numpy_helper.from_array(kept, "folded"))
            files.node_of(model, "masked").input[0] = "folded"
            model.graph.node.remove(files.node_of(model, "kept"))

        comparison = self.check(opened(tmp_path, change), "")
        assert comparison.zoomed.culprit.name == "Where"


class TestOptimiser:
    def test_what_it_changes_is_its_own(self, tmp_path, monkeypatch):
        from tracer.adapters import onnx_model

        real = onnx_model.run_session
        monkeypatch.setattr(onnx_model, "run_session", lambda *args: [t * 1.5 for t in real(*args)])
        comparison = tracer.compare(files.net(), opened(tmp_path), files.inputs())
        assert comparison.verdict.outcome == "diverges"
        text = explain(comparison.verdict)
        assert text.startswith("Run whole, with its optimisations, the runtime computes the")
        assert "`second_f`" in text or "`mean`" in text
        document = json.loads(render(comparison))
        validate(document, json.loads(SCHEMA.read_text()))
        assert document["verdict"]["outcome"] == "diverges"


class TestErrors:
    def refuse(self, tmp_path, said, change=lambda model: None, **options):
        with pytest.raises(ModelLoadError, match=said):
            opened(tmp_path, change, **options)

    def test_a_broken_file(self, tmp_path):
        path = tmp_path / "a.onnx"
        path.write_bytes(b"\x08\x09nothing of a graph")
        with pytest.raises(ModelLoadError, match=r"damaged|no graph"):
            tracer.open_graph(path)
        path.write_bytes(files.model_of(files.net()).SerializeToString()[:-300])
        with pytest.raises(ModelLoadError, match=r"damaged|incomplete"):
            tracer.open_graph(path)

    def test_operators_that_are_not_known(self, tmp_path):
        def newer(model):
            model.opset_import[0].version = 99

        def foreign(model):
            model.opset_import.append(helper.make_opsetid("others.own", 1))

        def unknown(model):
            model.graph.node[0].op_type = "Guess"

        self.refuse(tmp_path, r"has the operator set 99, .* opset_version", newer)
        self.refuse(tmp_path, "operators of others.own 1, which ONNX Runtime", foreign)
        self.refuse(tmp_path, "operators that ONNX does not have: Guess", unknown)

    def test_a_value_that_nobody_makes(self, tmp_path):
        def change(model):
            del model.graph.node[1]

        self.refuse(tmp_path, "is incomplete: Softmax 'node_first_c' takes 'first_b'", change)

    def test_missing_data(self, tmp_path):
        options = {"save_as_external_data": True, "size_threshold": 0, "location": "net.data"}
        opened(tmp_path, **options)
        data = tmp_path / "net.data"
        data.write_bytes(data.read_bytes()[:40])
        with pytest.raises(ModelLoadError, match=r"is incomplete: .*net\.data has 40 bytes"):
            tracer.open_graph(tmp_path / "net.onnx")
        data.unlink()
        with pytest.raises(ModelLoadError, match="is missing: there is no file"):
            tracer.open_graph(tmp_path / "net.onnx")

    def test_a_missing_extra(self, tmp_path, monkeypatch):
        from tracer.adapters import onnx_file

        monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None)
        self.refuse(tmp_path, "pip install 'onnx>=1.20' 'onnxruntime>=1.23'")

    def test_inputs_that_do_not_fit(self, tmp_path):
        graph, given = opened(tmp_path), files.inputs()
        with pytest.raises(InputError, match=r"takes 'x' as float32 \['batch', 'length', 6\]"):
            graph(**given | {"x": given["x"][..., :5]})
        with pytest.raises(InputError, match="takes 'keep'"):
            graph(**given | {"keep": given["keep"][:, :3]})
        with pytest.raises(InputError, match="takes keep, which is none of the inputs"):
            graph(x=given["x"])
        with pytest.raises(InputError, match="no input for position_ids"):
            graph(**given, position_ids=torch.arange(5))

    def test_a_device_without_an_execution_provider(self):
        from tracer.adapters.onnx_engine import provider_of

        with pytest.raises(UsageError, match="no execution provider for 'meta'"):
            provider_of(torch.device("meta"))

    def test_what_the_runtime_does_not_compute(self, tmp_path):
        module = files.net()
        path = files.write(files.model_of(module, TensorProto.BFLOAT16), tmp_path / "net.onnx")
        given = files.inputs()
        given["x"] = given["x"].bfloat16()
        with pytest.raises(ModelRunError, match=r"ONNX Runtime cannot compute .*\((MatMul|Mul)"):
            tracer.compare(module.bfloat16(), tracer.open_graph(path), given)
