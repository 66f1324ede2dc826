"""Small `.onnx` files as `torch.onnx.export(dynamo=True)` writes them, which takes seconds."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn


class Block(nn.Module):
    """Attention-like: a product of two projections, a softmax over the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8, bias=False)
        self.down = nn.Linear(8, 6)

    def forward(self, x):
        weights = (self.up(x) * 0.5).softmax(-1)
        return x + self.down(weights)


class Net(nn.Module):
    """Two blocks, with a mask between them, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Block()
        self.second = Block()

    def forward(self, x, keep):
        x = self.first(x)
        x = torch.where(keep.unsqueeze(-1), x, 0.0)
        x = self.second(x)
        return x, x.mean(1)


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net().eval()


def inputs(length=5):
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(2, length, 6, generator=generator),
        "keep": torch.arange(length).expand(2, length) != 1,
    }


_LINES = {"Net": 34, "Block": 20}


def _node(kind, takes, makes, scopes=(), fx="", line=None, **attributes):
    node = helper.make_node(kind, takes, [makes], name=f"node_{makes}", **attributes)
    names = ["", *(name for name, _ in scopes), makes]
    classes = ["Net", *(f"tests.builders.onnx_files.{c}" for _, c in scopes), kind]
    trace = [f'  File "{__file__}", line {_LINES["Net"]}, in forward']
    if scopes:
        trace.append(f'  File "{__file__}", line {line or _LINES["Block"]}, in forward')
    props = {
        "name_scopes": repr(names),
        "class_hierarchy": repr(classes),
        "stack_trace": "\n    code\n".join(trace),
        "fx_node": fx,
    }
    for key, value in props.items():
        node.metadata_props.add(key=f"pkg.torch.onnx.{key}", value=value)
    return node


def _block(name, takes):
    own = ((name, "Block"),)
    up, down = (*own, (f"{name}.up", "Linear")), (*own, (f"{name}.down", "Linear"))
    weights = [f"%p_{name}_{part}" for part in ("up_weight", "down_weight", "down_bias")]
    linear = "target=torch.ops.aten.linear.default](args = (%a, {}))"
    return [
        _node("MatMul", [takes, f"{name}_w"], f"{name}_a", up, linear.format(weights[0])),
        _node("Mul", [f"{name}_a", "half"], f"{name}_b", own, line=19),
        _node("Softmax", [f"{name}_b"], f"{name}_c", own, axis=-1, line=19),
        _node(
            "MatMul",
            [f"{name}_c", f"{name}_v"],
            f"{name}_d",
            down,
            linear.format(f"{weights[1]}, {weights[2]}"),
        ),
        _node(
            "Add",
            [f"{name}_d", f"{name}.down.bias"],
            f"{name}_e",
            down,
            linear.format(f"{weights[1]}, {weights[2]}"),
        ),
        _node("Add", [takes, f"{name}_e"], f"{name}_f", own),
    ]


def model_of(module, dtype=TensorProto.FLOAT):
    """The net as a model of ONNX, with sizes that are not fixed."""
    state = {name: tensor.float().numpy() for name, tensor in module.state_dict().items()}
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    tensors = {"half": np.array(0.5, kind), "zero": np.array(0.0, kind)}
    for name in ("first", "second"):
        tensors[f"{name}_w"] = state[f"{name}.up.weight"].T.astype(kind)
        tensors[f"{name}_v"] = state[f"{name}.down.weight"].T.astype(kind)
        tensors[f"{name}.down.bias"] = state[f"{name}.down.bias"].astype(kind)
    nodes = [
        *_block("first", "x"),
        _node("Unsqueeze", ["keep", "last"], "kept"),
        _node("Where", ["kept", "first_f", "zero"], "masked"),
        *_block("second", "masked"),
        _node("ReduceMean", ["second_f", "one"], "mean", keepdims=0),
    ]
    tensors |= {"last": np.array([-1], np.int64), "one": np.array([1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("x", dtype, ["batch", "length", 6]),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, ["batch", "length"]),
        ],
        [
            helper.make_tensor_value_info("second_f", dtype, ["batch", "length", 6]),
            helper.make_tensor_value_info("mean", dtype, ["batch", 6]),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write(model, path, **options):
    onnx.save(model, path, **options)
    return path


def node_of(model, name):
    return next(node for node in model.graph.node if node.name == f"node_{name}")


def replace_tensor(model, name, change):
    """Puts another array in the place of an initialiser."""
    proto = next(each for each in model.graph.initializer if each.name == name)
    array = change(numpy_helper.to_array(proto).copy())
    proto.CopyFrom(numpy_helper.from_array(array, name))


def nameless(model):
    """The same without what the exporter says of modules and weights."""
    anonymous = {each.name: f"t{i}" for i, each in enumerate(model.graph.initializer)}
    for each in model.graph.initializer:
        each.name = anonymous[each.name]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.name = ""
        node.input[:] = [anonymous.get(name, name) for name in node.input]
    return model
