"""Exports: what a file holds, read back, is the wrapped model."""

import logging
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import wrappers
from tests.builders.agreement import peir
from tests.builders.llama import tiny, tokens, wrap
from tests.builders.steps import PARTS, FloatStep, arguments
from tests.builders.text_models import FAMILIES
from tracer.models import builtin as tiny_models
from wrappers import Mode, affine, microscaling
from wrappers.deploy.export import export
from wrappers.errors import ExportError, MissingExtraError, ModeError, ModelInputError
from wrappers.numerics.microscaling import MXQuantizer

FILL = -37.5
PAST = 15
SUFFIXES = [".pt2", ".circle"]
EACH_VARIANT = pytest.mark.parametrize("variant", ["prefill", "prefill_reference", "decode"])
BITS = {"float": None, "uint8": ("uint8", "uint8"), "int16": ("int16", "uint8")}
FLOAT_OR_QUANTISED = pytest.mark.parametrize("bits", ["float", "int16"])
LIMIT = 1e-6

# The operators that a Llama may consist of in Circle.
ARITHMETIC = {"FULLY_CONNECTED", "BATCH_MATMUL", "MUL", "ADD", "SOFTMAX", "RMS_NORM", "LOGISTIC"}
LAYOUT = {"STRIDED_SLICE", "CONCATENATION", "RESHAPE", "TRANSPOSE", "GATHER"}
MASKING = {"MINIMUM", "MAXIMUM", "QUANTIZE"}


@cache
def llama(variant, bits):
    """A float Llama of two layers, its wrapped copy, and the prompts that it was calibrated on."""
    model = tiny()
    prompts = [tokens(1, 24, seed) for seed in (5, 6)]
    activation, weight = bits or ("uint8", "uint8")
    wrapped = wrap(
        model,
        variant,
        activation=affine(activation),
        weight=affine(weight),
        attention_mask_fill_value=FILL,
    )
    if bits and variant == "decode":
        wrappers.calibrate_decode(model, wrapped, prompts, steps=8, source="float")
    elif bits:
        wrappers.calibrate(wrapped, [{"input_ids": prompt} for prompt in prompts])
    return model, wrappers.convert(wrapped) if bits else wrapped, prompts


def case(part, variant, bits, prompt=0):
    """A part of a Llama as it is exported, its inputs, and what the float part makes of them."""
    model, wrapped, prompts = llama(variant, bits)
    past = PAST if variant == "decode" else 0
    input_ids = prompts[prompt][:, : past + 1 if past else 8]
    if part == "MLP":
        states = FloatStep(model, "layer", input_ids, past).inputs
        mlp = model.model.layers[1].mlp
        with torch.no_grad():
            return wrapped.model.layers[1].mlp, (states,), mlp(states)
    reference = FloatStep(model, part, input_ids, past)
    step, args = arguments(model, wrapped, part, reference, past)
    return step.eval(), args, reference.output


def qwen3_vl_text(bits, images):
    """A text model of Qwen3-VL as a step, and its inputs, with features of images or without."""
    model = FAMILIES["qwen3_vl"]()
    config = wrappers.PTQConfig(
        activation=affine((bits or BITS["uint8"])[0]),
        weight=affine((bits or BITS["uint8"])[1]),
        model_args={"deepstack_layers": 2 if images else 0},
    )
    wrapped = wrappers.prepare(model, config)
    generator = torch.Generator().manual_seed(1)
    visual = {}
    if images:
        visual = {
            "visual_pos_masks": torch.tensor([[False, True, True, True, False, True, False]]),
            "deepstack_visual_embeds": list(torch.randn(2, 1, 7, 64, generator=generator)),
        }
    input_ids = torch.randint(500, (1, 7), generator=generator)
    if bits:
        wrappers.calibrate(wrapped, [{"input_ids": input_ids, **visual}])
        wrappers.convert(wrapped)
    step = wrappers.Step(wrapped).eval()
    with torch.no_grad():
        embeddings = wrapped.embed_tokens(input_ids)
        tables = model.rotary_emb(embeddings, torch.arange(7).expand(3, 1, 7))
    cos, sin = step.tables(*tables)
    mask = torch.full((1, 7, 7), -1e4).triu(1)
    return step, {"inputs": embeddings, "cos": cos, "sin": sin, "mask": mask} | visual


def qwen3_vl_vision(bits, grids, variant="prefill"):
    """A vision model of Qwen3-VL for fixed grids, and pixels."""
    model = tiny_models.build("tiny-qwen3-vl", 0).model.visual.eval()
    activation, weight = bits or BITS["uint8"]
    config = wrappers.PTQConfig(
        activation=affine(activation),
        weight=affine(weight),
        variant=variant,
        model_args={"grid_thw": grids},
    )
    wrapped = wrappers.prepare(model, config)
    patches = sum(frames * height * width for frames, height, width in grids)
    pixels = torch.randn(patches, 1536, generator=torch.Generator().manual_seed(1))
    if bits:
        wrappers.calibrate(wrapped, [pixels])
        wrappers.convert(wrapped)
    return wrapped, pixels


def outputs(module, inputs):
    """The tensors that a module gives, in their order."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            output = module(**inputs)
        else:
            output = module(*inputs) if isinstance(inputs, tuple) else module(inputs)
    output = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]


def assert_same(expected, found, limit=LIMIT):
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    for reference, candidate in zip(expected, found, strict=True):
        assert candidate.dtype == reference.dtype
        assert peir(reference, candidate) <= limit


@pytest.mark.slow
@pytest.mark.no_cover  # measuring coverage takes a capture several times as long
class TestPt2:
    # Quantised, a causal LM holds a model and its layers.
    @pytest.mark.parametrize(
        ("part", "variant", "bits"),
        [
            *[(part, variant, "float") for part in PARTS for variant in ("prefill", "decode")],
            *[
                (part, variant, "int16")
                for part in ("attention", "causal LM")
                for variant in ("prefill", "decode")
            ],
            *[("MLP", "prefill", bits) for bits in ("float", "int16")],
        ],
    )
    def test_llama(self, part, variant, bits, tmp_path):
        module, inputs, _ = case(part, variant, BITS[bits])
        export(module, inputs, tmp_path / "a.pt2")
        read = torch.export.load(tmp_path / "a.pt2").module()
        _, other, _ = case(part, variant, BITS[bits], prompt=1)
        assert not torch.equal(inputs[0], other[0])
        for args in (inputs, other):
            assert_same(outputs(module, args), outputs(read, args))

    @FLOAT_OR_QUANTISED
    @pytest.mark.parametrize("images", [False, True])
    def test_qwen3_vl_text(self, bits, images, tmp_path):
        module, inputs = qwen3_vl_text(BITS[bits], images)
        export(module, inputs, tmp_path / "a.pt2")
        read = torch.export.load(tmp_path / "a.pt2").module()
        assert_same(outputs(module, inputs), outputs(read, inputs))
        if images:
            moved = inputs | {"visual_pos_masks": inputs["visual_pos_masks"].flip(1)}
            assert_same(outputs(module, moved), outputs(read, moved))

    @pytest.mark.parametrize(("bits", "variant", "grids"), [
        ("float", "prefill", [[1, 4, 6]]),
        ("int16", "prefill", [[1, 2, 2], [1, 2, 4]]),
        ("float", "prefill_reference", [[1, 2, 4], [2, 2, 2]]),
    ])  # fmt: skip
    def test_qwen3_vl_vision(self, bits, variant, grids, tmp_path):
        module, pixels = qwen3_vl_vision(BITS[bits], grids, variant)
        export(module, pixels, tmp_path / "a.pt2")
        read = torch.export.load(tmp_path / "a.pt2").module()
        other = pixels.flip(0)
        assert_same(outputs(module, other), outputs(read, other))

    def test_a_whole_model_by_its_own_forward_is_read_by_torch_alone(self, tmp_path):
        _, wrapped, prompts = llama("prefill_reference", BITS["int16"])
        mask = torch.ones_like(prompts[0])
        inputs = {"input_ids": prompts[0], "attention_mask": mask, "use_cache": False}
        export(wrapped, inputs, tmp_path / "a.pt2")
        mask[0, :5] = 0
        torch.save(inputs, tmp_path / "inputs.pt")
        code = (
            "import sys, torch; "
            "read = torch.export.load('a.pt2').module(); "
            "torch.save(read(**torch.load('inputs.pt')), 'outputs.pt'); "
            "assert 'transformers' not in sys.modules and 'wrappers' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
        found = torch.load(tmp_path / "outputs.pt")
        assert type(found) is tuple
        assert_same(outputs(wrapped, inputs), found)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_float_types(self, dtype, tmp_path):
        mlp = wrap(tiny(dtype=dtype), "prefill").model.layers[0].mlp
        states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
        export(mlp, states, tmp_path / "a.pt2")
        read = torch.export.load(tmp_path / "a.pt2").module()
        assert_same(outputs(mlp, states), outputs(read, states))


@pytest.mark.slow
class TestFillValue:
    @FLOAT_OR_QUANTISED
    @EACH_VARIANT
    def test_it_is_in_a_pt2(self, variant, bits, tmp_path):
        module, inputs, _ = case("attention", variant, BITS[bits])
        export(module, inputs, tmp_path / "a.pt2")
        program = torch.export.load(tmp_path / "a.pt2")
        clamps = [
            node for node in program.graph.nodes if node.target == torch.ops.aten.clamp.default
        ]
        assert [clamp.args[1:] for clamp in clamps] == [(FILL, 0.0)]
        # What is hidden by a larger number is hidden by this one.
        deep, shallow = inputs[3].clone(), inputs[3].clone()
        deep[..., 0], shallow[..., 0] = torch.finfo(torch.float32).min, FILL
        read = program.module()
        found = [outputs(read, (*inputs[:3], mask, *inputs[4:])) for mask in (deep, shallow)]
        assert_same(*found, limit=0)
        assert not torch.equal(found[0][0], outputs(read, inputs)[0])

    def test_queries_that_see_nothing_leave_the_others_alone(self, tmp_path):
        module, inputs, _ = case("layer", "prefill", BITS["int16"])
        export(module, inputs, tmp_path / "a.pt2")
        read = torch.export.load(tmp_path / "a.pt2").module()
        hidden_states, cos, sin, mask = inputs
        mask = mask.clone()
        mask[:, :, 0] = mask[:, 0] = torch.finfo(torch.float32).min
        padded = (hidden_states, cos, sin, mask)
        found = outputs(read, padded)[0]
        assert found.isfinite().all()
        assert torch.equal(found[:, 1:], outputs(module, padded)[0][:, 1:])


class Recorded(nn.Module):
    """A linear layer that counts its calls, and fails where it is told to."""

    def __init__(self, error=None):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0
        self.error = error

    def forward(self, x):
        self.calls += 1
        if self.error:
            raise self.error
        return self.linear(x)


class TestFiles:
    @pytest.mark.parametrize("name", ["a.onnx", "a", "a.PT2", ".pt2"])
    def test_other_suffixes(self, name, tmp_path):
        module = Recorded()
        with pytest.raises(ExportError, match=r"expected \.pt2 or \.circle"):
            export(module, torch.ones(2, 4), tmp_path / name)
        assert module.calls == 0

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_folders_are_checked_before_the_work(self, suffix, tmp_path):
        if suffix == ".circle":
            pytest.importorskip("tico")
        module = Recorded()
        (tmp_path / "file").touch()
        (tmp_path / f"folder{suffix}").mkdir()
        for path, said in (
            (tmp_path / "none" / f"a{suffix}", "create it first"),
            (tmp_path / "file" / f"a{suffix}", "create it first"),
            (tmp_path / f"folder{suffix}", "is a folder"),
        ):
            with pytest.raises(ExportError, match=said):
                export(module, torch.ones(2, 4), path)
        assert module.calls == 0

    def test_a_failure_leaves_what_was_there(self, tmp_path, monkeypatch):
        (tmp_path / "a.pt2").write_text("earlier")
        with pytest.raises(ExportError, match="cannot capture Recorded: RuntimeError: no"):
            export(Recorded(RuntimeError("no")), torch.ones(2, 4), tmp_path / "a.pt2")
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
        assert (tmp_path / "a.pt2").read_text() == "earlier"

        def refuse(path, **options):
            raise PermissionError(13, "Permission denied", str(path))

        module = Recorded()
        monkeypatch.setattr(Path, "touch", refuse)
        with pytest.raises(ExportError, match=r"cannot write to the folder .*: Permission denied"):
            export(module, torch.ones(2, 4), tmp_path / "a.pt2")
        assert module.calls == 0

    def test_a_file_is_replaced_through_a_link_and_by_a_name(self, tmp_path, monkeypatch):
        (tmp_path / "real.pt2").write_text("earlier")
        (tmp_path / "link.pt2").symlink_to(tmp_path / "real.pt2")
        monkeypatch.chdir(tmp_path)
        module = Recorded()
        export(module, torch.ones(2, 4), "link.pt2")
        assert (tmp_path / "link.pt2").is_symlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link.pt2", "real.pt2"]
        read = torch.export.load(tmp_path / "real.pt2").module()
        assert_same(outputs(module, torch.ones(2, 4)), outputs(read, torch.ones(2, 4)))


class TestModels:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_model_that_is_being_calibrated_is_refused(self, suffix, tmp_path):
        mlp = wrap(tiny(), "prefill").model.layers[0].mlp
        states = torch.randn(1, 3, 32)
        wrappers.calibrate(mlp, [states])
        with pytest.raises(ModeError, match=r"5 wrappers .* the root, gate_proj, up_proj"):
            export(mlp, states, tmp_path / f"a{suffix}")
        wrappers.convert(mlp).up_proj.mode = Mode.CALIBRATE
        with pytest.raises(ModeError, match=r"1 wrappers .*: up_proj; call convert"):
            export(mlp, states, tmp_path / f"a{suffix}")
        assert not list(tmp_path.iterdir())

    @FLOAT_OR_QUANTISED
    def test_a_model_stays_as_it_is(self, bits, tmp_path):
        module, inputs, _ = case("layer", "prefill", BITS[bits])
        before = outputs(module, inputs)
        modes = [wrapper.mode for _, wrapper in wrappers.iter_wrappers(module)]
        export(module, inputs, tmp_path / "a.pt2")
        assert [wrapper.mode for _, wrapper in wrappers.iter_wrappers(module)] == modes
        assert not module._forward_hooks
        assert_same(before, outputs(module, inputs), limit=0)

    def test_no_hook_stays_after_a_failure(self, tmp_path):
        module = Recorded(RuntimeError("no"))
        with pytest.raises(ExportError):
            export(module, torch.ones(2, 4), tmp_path / "a.pt2")
        assert not module._forward_hooks

    def test_inputs_and_outputs_that_do_not_fit(self, tmp_path):
        module, inputs, _ = case("attention", "decode", None)
        with pytest.raises(ModelInputError, match="1 tensors of the past"):
            export(module, inputs[:5], tmp_path / "a.pt2")
        with pytest.raises(ModelInputError, match="not int"):
            export(module, 3, tmp_path / "a.pt2")
        _, wrapped, prompts = llama("prefill", None)
        with pytest.raises(ExportError, match=r"found DynamicCache .* use_cache=False"):
            export(wrapped, {"input_ids": prompts[0]}, tmp_path / "a.pt2")

    def test_graphs_that_depend_on_data_and_dropout(self, tmp_path):
        class Positive(nn.Module):
            def forward(self, x):
                return x * 2 if x.sum() > 0 else x

        with pytest.raises(ExportError, match=r"cannot capture Positive: .*data-dependent"):
            export(Positive(), torch.ones(2, 4), tmp_path / "a.pt2")
        module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        with pytest.raises(ExportError, match=r"call eval\(\)"):
            export(module, torch.ones(2, 4), tmp_path / "a.pt2")
        export(module.eval(), torch.ones(2, 4), tmp_path / "a.pt2")
        read = torch.export.load(tmp_path / "a.pt2").module()
        assert_same(outputs(module, torch.ones(2, 4)), outputs(read, torch.ones(2, 4)))


@pytest.mark.covers
@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2", "nvfp4", "mxfp4"])
def test_floats_of_few_bits_in_a_pt2(dtype, tmp_path):
    mlp, states = quantised_mlp(affine(dtype), affine(dtype))
    export(mlp, (states,), tmp_path / "a.pt2")
    read = torch.export.load(tmp_path / "a.pt2").module()
    assert_same(outputs(mlp, states), outputs(read, states))


def quantised_mlp(activation, weight, **config):
    mlp = wrap(tiny(), "prefill", activation=activation, weight=weight, **config)
    mlp = mlp.model.layers[0].mlp
    states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    wrappers.calibrate(mlp, [states])
    return wrappers.convert(mlp), states


class TestRefusals:
    """What Circle has no type for is refused before anything is done, whether tico is there or
    not."""

    @pytest.mark.parametrize(("activation", "weight", "count", "named"), [
        ("int8", "uint8", 12, r"mlp\.act_in \(int8\), .*mlp\.gate_proj\.act_in \(int8\)"),
        ("uint8", "int8", 3, r"mlp\.gate_proj\.weight \(int8\), .*up_proj\.weight \(int8\)"),
        ("int16", "int4", 3, r"gate_proj\.weight \(int4\)"),
        ("uint16", "uint8", 12, r"act_in \(uint16\)"),
        ("uint8", "uint2", 3, r"gate_proj\.weight \(uint2\)"),
        ("uint8", "fp8_e4m3", 3, r"gate_proj\.weight \(fp8_e4m3\)"),
        ("nvfp4", "uint8", 12, r"act_in \(nvfp4\)"),
        ("uint8", "mxfp4", 3, r"gate_proj\.weight \(mxfp4 of a parameter\)"),
        ("mxfp8_e4m3", "uint8", 12, r"mlp\.act_in \(mxfp8_e4m3\)"),
        ("mxfp6_e2m3", "uint8", 12, r"mlp\.act_in \(mxfp6_e2m3\)"),
    ])  # fmt: skip
    def test_integer_types(self, activation, weight, count, named, tmp_path):
        mlp, states = quantised_mlp(affine(activation), affine(weight))
        with pytest.raises(ExportError, match=rf"{count} quantization points: .*{named}") as error:
            export(mlp, states, tmp_path / "a.circle")
        assert "It takes uint4, uint8, int16" in str(error.value)
        assert "mxint8 and mxfp4 of activations in blocks of 32" in str(error.value)
        assert not list(tmp_path.iterdir())

    def test_microscaling_and_one_point_are_enough(self, tmp_path):
        mlp, states = quantised_mlp(microscaling(block_size=8), affine("uint8"))
        with pytest.raises(ExportError, match=r"mlp\.act_in \(mxint8 in blocks of 8\)"):
            export(mlp, states, tmp_path / "a.circle")
        overrides = {"model.layers.0.mlp.mul": affine("int8")}
        mlp, states = quantised_mlp(affine("uint8"), affine("uint8"), overrides=overrides)
        with pytest.raises(ExportError, match=r"1 quantization points: model\.layers\.0\.mlp\.mul"):
            export(mlp, states, tmp_path / "a.circle")

    def test_scales_by_group(self, tmp_path):
        mlp, states = quantised_mlp(affine("uint8"), affine("uint8"))
        columns = torch.arange(32) // 16
        mlp.up_proj.points["weight"].load_qparams(torch.ones(40, 2), 3, columns=columns)
        with pytest.raises(ExportError, match=r"up_proj\.weight \(uint8 by groups of columns\)"):
            export(mlp, states, tmp_path / "a.circle")

    def test_types_of_points_that_are_off_do_not_matter(self, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        mlp = wrap(tiny(), "prefill", activation=affine("int8")).model.layers[0].mlp
        with pytest.raises(MissingExtraError):
            export(mlp, torch.ones(1, 5, 32), tmp_path / "a.circle")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_float_types(self, dtype, tmp_path):
        mlp = wrap(tiny(dtype=dtype), "prefill").model.layers[0].mlp
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(
            ExportError, match=rf"gate_proj\.weight \({name}\), .*input 0 \({name}\); convert"
        ):
            export(mlp, torch.ones(1, 5, 32, dtype=dtype), tmp_path / "a.circle")

    def test_without_tico(self, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"pip install 'tico>="):
            export(Recorded(), torch.ones(2, 4), tmp_path / "a.circle")
        assert not list(tmp_path.iterdir())


class Circle:
    """A `.circle` file as its schema reads it.

    Attributes:
        tensors: of the graph, with `name`, `type`, `shape` and `quantization`.
        operators: how many of each.
        data: the file.
    """

    def __init__(self, path):
        from circle_schema import circle

        self.data = path.read_bytes()
        model = circle.Model.ModelT.InitFromPackedBuf(self.data)
        (graph,) = model.subgraphs
        self._types = _names(circle.TensorType.TensorType)
        self._buffers = model.buffers
        codes = _names(circle.BuiltinOperator.BuiltinOperator)
        self.tensors, self._inputs, self._outputs = graph.tensors, graph.inputs, graph.outputs
        self.operators = Counter(
            codes[model.operatorCodes[operator.opcodeIndex].builtinCode]
            for operator in graph.operators
        )

    def type(self, tensor):
        return self._types[tensor.type]

    @property
    def inputs(self):
        """(name, type, shape) of each."""
        return [self._described(self.tensors[i]) for i in self._inputs]

    @property
    def outputs(self):
        return [self._described(self.tensors[i])[1:] for i in self._outputs]

    @property
    def types(self):
        """How many tensors there are of each type, indices of slices and the like left out."""
        counted = Counter(map(self.type, self.tensors))
        return {name: count for name, count in counted.items() if name not in ("INT32", "INT64")}

    @property
    def constants(self):
        """(tensor, bytes) of all that the file holds numbers for."""
        stored = ((tensor, self._buffers[tensor.buffer].data) for tensor in self.tensors)
        return [(t, bytes(data)) for t, data in stored if data is not None and len(data)]

    @property
    def floats(self):
        """All numbers in constant float tensors."""
        return [
            number
            for tensor, data in self.constants
            if self.type(tensor) == "FLOAT32"
            for number in torch.frombuffer(bytearray(data), dtype=torch.float32).tolist()
        ]

    def run(self, inputs):
        """What tico's reference runtime makes of it, with quantised tensors as floats."""
        from tico.circle.runtime import CircleReferenceRuntime, ExecutionMode

        given = torch.utils._pytree.tree_leaves(inputs)
        result = CircleReferenceRuntime(self.data).run(given, mode=ExecutionMode.FAKE_QUANTIZE)
        return [torch.tensor(array) for array in result.outputs]

    def _described(self, tensor):
        return tensor.name.decode().rpartition("::")[2], self.type(tensor), tensor.shape.tolist()


def _names(enumeration):
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


def exported(module, inputs, folder, **options):
    """Writes a `.circle`, checks its structure, and reads it."""
    from tico.circle.document import CircleDocument
    from tico.circle.verify import verify_document

    export(module, inputs, folder / "a.circle", **options)
    report = verify_document(CircleDocument.from_bytes((folder / "a.circle").read_bytes()))
    assert report.ok and not report.issues
    return Circle(folder / "a.circle")


@pytest.fixture(scope="session")
def tico():
    return pytest.importorskip("tico", reason="tico, of the extra 'export', is not installed")


@pytest.mark.slow
@pytest.mark.usefixtures("tico")
class TestCircle:
    @pytest.mark.parametrize(("part", "variant"), [
        ("MLP", "prefill"), ("attention", "prefill"), ("layer", "decode"),
        ("causal LM", "prefill_reference"),
    ])  # fmt: skip
    def test_float_llama(self, part, variant, tmp_path):
        module, inputs, expected = case(part, variant, None)
        circle = exported(module, inputs, tmp_path)
        types = ["INT64" if part == "causal LM" else "FLOAT32", *["FLOAT32"] * (len(inputs) - 1)]
        shapes = [list(tensor.shape) for tensor in inputs]
        assert [described[1:] for described in circle.inputs] == list(
            zip(types, shapes, strict=True)
        )
        assert set(circle.types) == {"FLOAT32"}
        assert set(circle.operators) <= ARITHMETIC | LAYOUT | {"MINIMUM", "MAXIMUM", "NEG"}
        assert_same(outputs(module, inputs), circle.run(inputs))
        # Against the float model itself, which does not know of the fill value.
        assert peir(expected, circle.run(inputs)[0]) < 1e-5

    @pytest.mark.parametrize(("part", "variant", "activation", "weight"), [
        ("MLP", "prefill", "uint8", "uint8"), ("MLP", "prefill", "int16", "uint4"),
        ("attention", "prefill", "uint8", "uint8"), ("layer", "decode", "uint8", "uint4"),
        ("layer", "decode", "int16", "uint8"),
    ])  # fmt: skip
    def test_quantised_llama(self, part, variant, activation, weight, tmp_path):
        module, inputs, expected = case(part, variant, (activation, weight))
        circle = exported(module, inputs, tmp_path)
        kind = activation.upper()
        layers = 2 if part == "causal LM" else 1
        names = ["inputs", "cos", "sin", "mask", *(f"past_{i}" for i in range(2 * layers))]
        types = ["INT64" if part == "causal LM" else kind, kind, kind, "FLOAT32", *[kind] * 4]
        if part == "MLP":
            names = ["x"]
        assert circle.inputs == [
            (name, type_, list(tensor.shape))
            for name, type_, tensor in zip(names, types, inputs, strict=False)
        ]
        assert len(circle.inputs) == len(inputs)
        assert {type_ for type_, _ in circle.outputs} == {kind}
        weights = 3 if part == "MLP" else 4 if part == "attention" else 9 * layers
        weights += 3 if part == "causal LM" else 0  # the table, the last norm, the head
        # The mask comes in as it is, and is given its form before it is quantised.
        floats = 0 if part == "MLP" else 2
        assert circle.types.get("FLOAT32", 0) == floats
        if weight != activation:
            assert circle.types[weight.upper()] == weights
        assert set(circle.types) <= {kind, weight.upper(), "FLOAT32"}
        assert set(circle.operators) <= ARITHMETIC | LAYOUT | MASKING
        found = outputs(module, inputs)
        ran = circle.run(inputs)
        assert peir(found[0], ran[0]) < peir(expected, found[0])

    @pytest.mark.parametrize("kind", ["mxint8", "mxfp4"])
    def test_microscaled_activations(self, kind, tmp_path):
        module, inputs, _ = case("MLP", "prefill", (kind, "uint8"))
        before = outputs(module, inputs)
        circle = exported(module, inputs, tmp_path)
        assert circle.inputs[0][1] == kind.upper()
        assert {type_ for type_, _ in circle.outputs} == {kind.upper()}
        assert set(circle.types) <= {kind.upper(), "UINT8", "FLOAT32"}
        scaled = [t for t in circle.tensors if circle.type(t) == kind.upper()]
        assert len(scaled) >= 7
        for tensor in scaled:  # blocks run along the last dimension, counted from the front
            assert tensor.quantization.quantizedDimension == len(tensor.shape) - 1
        # The model is as it was: microscaling of ours, and not tico's, whose ties go elsewhere.
        assert_same(before, outputs(module, inputs))
        assert type(module.points["act_in"].quantizer) is MXQuantizer

    @pytest.mark.parametrize(("bits", "images"), [("float", True), ("int16", False)])
    def test_qwen3_vl_text(self, bits, images, tmp_path):
        module, inputs = qwen3_vl_text(BITS[bits], images)
        circle = exported(module, inputs, tmp_path)
        kind = "FLOAT32" if bits == "float" else "INT16"
        names = ["inputs", "cos", "sin", "mask"]
        types = [kind, kind, kind, "FLOAT32"]
        if images:
            names += ["visual_pos_masks", *(f"deepstack_visual_embeds_{i}" for i in range(2))]
            types += ["BOOL", kind, kind]
        assert [described[:2] for described in circle.inputs] == list(
            zip(names, types, strict=True)
        )
        assert ("SELECT_V2" in circle.operators) == images
        limit = LIMIT if bits == "float" else 1e-3
        assert_same(outputs(module, inputs), circle.run(inputs), limit)

    def test_qwen3_vl_vision(self, tmp_path):
        module, pixels = qwen3_vl_vision(None, [[1, 4, 6]], "prefill_reference")
        circle = exported(module, pixels, tmp_path)
        assert circle.inputs == [("hidden_states", "FLOAT32", [24, 1536])]
        assert circle.outputs == [("FLOAT32", [24, 64]), *[("FLOAT32", [6, 64])] * 3]
        assert "CONV_2D" in circle.operators
        assert_same(outputs(module, pixels), circle.run(pixels), 2e-6)

    def test_a_whole_model_by_its_own_forward(self, tmp_path):
        _, wrapped, prompts = llama("prefill", None)
        inputs = {"input_ids": prompts[0], "use_cache": False}
        circle = exported(wrapped, inputs, tmp_path)
        assert circle.inputs == [("input_ids", "INT64", [1, 24])]
        assert_same(outputs(wrapped, inputs), circle.run(prompts[0]), limit=2e-6)

    @pytest.mark.parametrize(("variant", "activation"), [("prefill", None), ("decode", "int16")])
    def test_the_fill_value_is_in_the_file(self, variant, activation, tmp_path):
        module, inputs, _ = case("attention", variant, activation and (activation, "uint8"))
        circle = exported(module, inputs, tmp_path)
        if activation is None:
            assert (circle.floats.count(FILL), min(circle.floats)) == (1, FILL)
            return
        (mask,) = [
            tensor
            for tensor in circle.tensors
            if tensor.name.endswith(b"quantize_per_tensor_default")
        ]
        (scale,), (zero_point,) = mask.quantization.scale, mask.quantization.zeroPoint
        least = {"uint8": 0, "int16": -32767}[activation]
        assert scale * (least - zero_point) == pytest.approx(FILL, rel=1e-6)

    def test_the_sum_after_the_attention_is_quantised_with_its_point_off(self, tmp_path):
        step, inputs, _ = case("layer", "decode", ("uint8", "uint8"))
        with_point = exported(step, inputs, tmp_path)
        with step.module.disabled("attn_residual_out"):
            without = exported(step, inputs, tmp_path)
        assert without.types == with_point.types

    def test_weights_of_ones_and_per_channel(self, tmp_path):
        norm = wrap(tiny(), "prefill").model.norm
        assert (norm.weight == 1).all()
        states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
        wrappers.calibrate(norm, [states])
        wrappers.convert(norm)
        circle = exported(norm, states, tmp_path)
        assert circle.operators == {"RMS_NORM": 1}
        assert circle.types == {"UINT8": 3}
        mlp, states = quantised_mlp(affine("uint8"), affine("uint8"))
        circle = exported(mlp, states, tmp_path)
        weights = [tensor for tensor, _ in circle.constants if circle.type(tensor) == "UINT8"]
        layers = [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        found = {tuple(tensor.quantization.scale.tolist()) for tensor in weights}
        assert found == {tuple(layer.points["weight"].qparams.scale.tolist()) for layer in layers}
        assert {tensor.quantization.quantizedDimension for tensor in weights} == {0}

    def test_the_command_line_verifies_it_and_nothing_is_printed(self, tmp_path, capsys, caplog):
        from tico.circle.cli.main import main

        mlp, states = quantised_mlp(affine("uint8"), affine("uint8"))
        export(mlp, states, tmp_path / "a.circle")
        assert main(["verify", str(tmp_path / "a.circle")]) == 0
        assert "verification succeeded" in capsys.readouterr().out
        module, inputs, _ = case("attention", "decode", BITS["uint8"])
        caplog.set_level(logging.INFO, "wrappers.deploy.export")
        export(module, inputs, tmp_path / "a.circle")
        assert capsys.readouterr() == ("", "")
        assert "nodes without qparam" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("tico")
class TestConversionErrors:
    def test_what_circle_does_not_have(self, tmp_path):
        overrides = {"model.layers.0.mlp.mul": affine("int16")}
        mlp, states = quantised_mlp(affine("uint8"), affine("uint8"), overrides=overrides)
        with pytest.raises(ExportError, match=r"tico cannot convert .*: Unsupported dtype"):
            export(mlp, states, tmp_path / "a.circle")
        assert not list(tmp_path.iterdir())

        class Cumulative(nn.Module):
            def forward(self, x):
                return x.cumprod(-1)

        with pytest.raises(ExportError, match=r"NOT SUPPORTED OPERATOR, \(op\) cumprod"):
            export(Cumulative(), torch.ones(2, 4), tmp_path / "a.circle")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(("other", "said"), [
        (lambda x: x * 1.001, r"output 0 is off by 1\.00e-03; .* between 0\.00e\+00 and 1"),
        (lambda x: x[:1], r"the shapes \[\[1, 4\]\], and those of the model have \[\[2, 4\]\]"),
        (lambda x: (x, x), r"the shapes \[\[2, 4\], \[2, 4\]\]"),
    ])  # fmt: skip
    def test_a_file_that_computes_something_else_is_not_written(
        self, other, said, tmp_path, monkeypatch
    ):
        class Of(nn.Module):
            def __init__(self, function):
                super().__init__()
                self.function = function

            def forward(self, x):
                return self.function(x)

        import tico

        x = torch.linspace(0, 1, 8).view(2, 4)
        wrong = torch.export.export(Of(other), (x,), strict=False)
        convert = tico.convert_from_exported_program
        monkeypatch.setattr(tico, "convert_from_exported_program", lambda _, c: convert(wrong, c))
        with pytest.raises(ExportError, match=said):
            export(Of(lambda x: x * 1.0), x, tmp_path / "a.circle")
        assert not list(tmp_path.iterdir())
        export(Of(lambda x: x * 1.0), x, tmp_path / "a.circle", check=False)
        assert (tmp_path / "a.circle").stat().st_size > 0

    @pytest.mark.parametrize("supported", [True, False])
    def test_a_file_that_does_not_run(self, supported, tmp_path, monkeypatch, caplog):
        from tico.circle import runtime

        kind = runtime.CircleRuntimeError if supported else runtime.UnsupportedCircleOperatorError

        def fail(self, *args, **kwargs):
            raise kind("operator 7 (BATCH_MATMUL)\n  details")

        monkeypatch.setattr(runtime.CircleReferenceRuntime, "run", fail)
        caplog.set_level(logging.INFO, "wrappers.deploy.export")
        if supported:
            with pytest.raises(ExportError, match=r"does not run: .*operator 7 \(BATCH_MATMUL\)$"):
                export(Recorded(), torch.ones(2, 4), tmp_path / "a.circle")
            assert not list(tmp_path.iterdir())
        else:
            # The runtime has fewer operators than Circle: that says nothing about the file.
            export(Recorded(), torch.ones(2, 4), tmp_path / "a.circle")
            assert "not checked by running it" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("tico")
@pytest.mark.no_cover  # measuring coverage takes a capture several times as long
class TestOnert:
    """Float files in a runtime for devices.

    Its version 0.1.0 takes a linear layer's output for a matrix, so that slices of heads fail: only
    the batched variant runs. And it overwrites outputs that are used within the graph as well, as
    keys and values are.
    """

    @pytest.mark.parametrize("part", ["MLP", "attention", "causal LM"])
    def test_llama(self, part, tmp_path):
        onert = pytest.importorskip("onert", reason="onert is not installed")
        module, inputs, expected = case(part, "prefill_reference", None)
        export(module, inputs, tmp_path / "a.circle")
        session = onert.infer.session(str(tmp_path / "a.circle"))
        found = torch.tensor(session.infer([tensor.numpy() for tensor in inputs])[0])
        assert peir(outputs(module, inputs)[0], found) <= LIMIT
        assert peir(expected, found) < 1e-5
