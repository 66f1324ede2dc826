"""One model's data flow, for people and for programs.

    model.layers.0.mlp.down_proj (Linear), called at modeling_llama.py:177
      in  input             float32 1x24x172      0.0123     -3.21      4.05     0.812
      out output            float32 1x24x64      -0.0045     -2.17      2.66     0.603
      q   weight            uint8 per_tensor_asymmetric  observed -0.31 to 0.29  scale 0.00235 ...

"in" is an argument passed by position, "kw" one by keyword, "out" a result, "wr" what was written
into an argument. The numbers are mean, min, max and standard deviation of the finite elements.
"""

import json
import sys
from collections.abc import Iterator, Mapping

from tracer.execution.hooks import Location
from tracer.reports.json import plain_values
from tracer.reports.parts.table import shortened
from tracer.tensors.leaves import dtype_name
from tracer.traces.dataflow import Flow, FlowCall, FlowValue, Moments, span

SCHEMA = 1

_KINDS = {"argument": "in", "keyword": "kw", "output": "out", "written": "wr"}
_COLUMNS = ("mean", "min", "max", "stddev")
_NUMBER_WIDTH = 9
_ROOMY = 100
_INDENT = "  "
# On a narrow page a dtype is in few letters.
_SHORT = {"float": "f", "bfloat": "bf", "uint": "u", "int": "i", "complex": "c"}


def lines(flow: Flow, *, width: int, tree: bool = False) -> Iterator[str]:
    """The report for people.

    Args:
        width: in characters.
        tree: one line per call, indented under its caller, with its first output.
    """
    yield from _tree(flow, width) if tree else _table(flow, width)
    if not flow.is_complete:
        yield "the recording was ended early: what follows is not in it"


def show(flow: Flow, *, width: int, tree: bool = False) -> None:
    """Prints the report for people to standard output."""
    for line in lines(flow, width=width, tree=tree):
        print(line, file=sys.stdout)


def render(flow: Flow) -> str:
    """The report for programs: strict JSON, see `tracer.reports.json` for its numbers.

    Its keys are those of `tracer.Flow`, `FlowCall`, `FlowValue` and `Moments`; "values" are nested
    lists, and are there for what was to be kept only.
    """
    document = {
        "schema": SCHEMA, "model": flow.model, "is_complete": flow.is_complete,
        "calls": [_call(call) for call in flow.calls], "points": flow.points,
    }  # fmt: skip
    return json.dumps(plain_values(document), indent=1, allow_nan=False) + "\n"


def _call(call: FlowCall) -> dict[str, object]:
    return {
        **{name: getattr(call, name) for name in ("module", "call", "module_class", "depth")},
        "caller": None if call.caller is None else str(call.caller),
        "arguments": [_value(value) for value in call.arguments],
        "outputs": [_value(value) for value in call.outputs],
        "ended": call.ended,
    }


def _value(value: FlowValue) -> dict[str, object]:
    return {
        "path": value.path,
        "kind": value.kind,
        "shape": value.shape,
        "dtype": dtype_name(value.dtype) or None,
        **({} if value.moments is None else vars(value.moments)),
        **({"text": value.text} if value.dtype is None else {}),
        **({} if value.values is None else {"values": value.values.tolist()}),
    }


def _table(flow: Flow, width: int) -> Iterator[str]:
    name, form = _widths(flow, width)
    numbers = "".join(f"{column:>{_NUMBER_WIDTH + 1}}" for column in _COLUMNS)
    yield f"{_INDENT}{'':3} {'value':{name}} {'dtype and shape':{form}}{numbers}".rstrip()
    for call in flow.calls:
        yield _heading(call, width)
        for value in (*call.arguments, *call.outputs):
            yield from _value_lines(value, name, form, width)
        if not call.ended:
            yield f"{_INDENT}it did not come to its end"
        for point, facts in flow.points.get(call.module, {}).items():
            yield from _point_lines(point, facts, width)


def _widths(flow: Flow, width: int) -> tuple[int, int]:
    """Of the columns of names and of forms: what they need, as far as there is room."""
    values = [value for call in flow.calls for value in (*call.arguments, *call.outputs)]
    room = width - len(_INDENT) - 5 - len(_COLUMNS) * (_NUMBER_WIDTH + 1)
    form = max((len(_form(value, width)) for value in values), default=0)
    form = min(max(form, len("dtype and shape")), room // 2)
    name = max((len(value.path) for value in values), default=0)
    return min(max(name, len("value")), room - form), form


def _heading(call: FlowCall, width: int) -> str:
    index = f", call {call.call}" if call.call else ""
    ending = f" ({call.module_class}{index})"
    place = "" if call.caller is None else f", called at {_short_place(call.caller)}"
    name = call.module or "the root"
    if len(name) + len(ending) + len(place) > width:
        place = ""
    return shortened(name, max(width - len(ending) - len(place), 8)) + ending + place


def _short_place(location: Location) -> str:
    """The file's name and the line."""
    return f"{location.file.replace(chr(92), '/').rsplit('/', 1)[-1]}:{location.line}"


def _value_lines(value: FlowValue, name: int, form: int, width: int) -> Iterator[str]:
    head = f"{_INDENT}{_KINDS[value.kind]:3} {shortened(value.path, name):{name}}"
    if value.dtype is None:
        yield f"{head} {value.text}"[:width]
        return
    numbers = "" if value.moments is None else _numbers(value.moments)
    yield f"{head} {_form(value, width)[:form]:{form}}{numbers}"
    if value.values is not None:
        yield from (f"{_INDENT * 3}{line}" for line in str(value.values).splitlines())


def _numbers(moments: Moments) -> str:
    statistics = (getattr(moments, name) for name in _COLUMNS)
    text = "".join(f"{_number(statistic):>{_NUMBER_WIDTH + 1}}" for statistic in statistics)
    return f"{text}  {moments.nonfinite} not finite" if moments.nonfinite else text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _form(value: FlowValue, width: int) -> str:
    if value.dtype is None:
        return ""
    dtype, shape = dtype_name(value.dtype), "x".join(map(str, value.shape)) or "scalar"
    if width < _ROOMY:
        letters = dtype.rstrip("0123456789")
        dtype = _SHORT.get(letters, letters) + dtype[len(letters) :]
    return f"{dtype} {shape}"


def _point_lines(name: str, facts: Mapping[str, object], width: int) -> Iterator[str]:
    """A quantization point on as many lines as it needs."""
    parts = [name, f"{facts.get('dtype')} {facts.get('qscheme') or ''}".strip()]
    if facts.get("observed_min") is not None:
        low, high = (_extreme(facts[f"observed_{end}"], end) for end in ("min", "max"))
        parts.append(f"observed {low:.4g} to {high:.4g}")
    for key in ("scale", "zero_point"):
        if facts.get(key) is not None:
            parts.append(f"{key} {_range(facts[key])}")
    line = f"{_INDENT}q  "
    for part in parts:
        if len(line) + len(part) + 2 > width:
            yield line.rstrip()
            line = _INDENT * 3
        line += f" {part} "
    yield line.rstrip()


def _range(value: object) -> str:
    """A number, or the range of those of all channels."""
    if isinstance(value, Mapping):
        return f"{value['min']:.5g} to {value['max']:.5g} in {value['channels']} channels"
    if not isinstance(value, list):
        return f"{value:.5g}"
    return _range(span(value))


def _extreme(value: object, end: str) -> float:
    if isinstance(value, list):
        value = span(value)
    if isinstance(value, Mapping):
        return float(value[end])
    assert isinstance(value, float | int)
    return float(value)


def _tree(flow: Flow, width: int) -> Iterator[str]:
    numbers = len(_COLUMNS) * (_NUMBER_WIDTH + 1)
    outputs = [_first_output(call) for call in flow.calls]
    form = max(
        (len(_form(output[0], width)) for output in outputs if output is not None), default=0
    )
    form = min(max(form, len("output")), (width - numbers) // 3)
    name = width - numbers - form - 1
    columns = "".join(f"{column:>{_NUMBER_WIDTH + 1}}" for column in _COLUMNS)
    yield f"{'call':{name}} {'output':{form}}{columns}"
    for call, output in zip(flow.calls, outputs, strict=True):
        label = _INDENT * call.depth + _own_name(call)
        label = label if len(label) <= name else f"{label[: name - 1]}…"
        if output is None:
            yield label
        else:
            value, moments = output
            yield f"{label:{name}} {_form(value, width)[:form]:{form}}{_numbers(moments)}"


def _first_output(call: FlowCall) -> tuple[FlowValue, Moments] | None:
    """The first tensor that a call returned."""
    for value in call.outputs:
        if value.kind == "output" and value.moments is not None:
            return value, value.moments
    return None


def _own_name(call: FlowCall) -> str:
    """What tells a call from those beside it."""
    parts = call.module.split(".")
    last = ".".join(parts[-2:]) if parts[-1].isdecimal() else parts[-1]
    index = f"#{call.call}" if call.call else ""
    return f"{last or 'the root'}{index} ({call.module_class})"
