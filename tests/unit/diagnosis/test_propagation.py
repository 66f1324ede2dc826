"""How an error is followed back: through the inputs of a call, and up through its callers."""

from types import SimpleNamespace

import pytest

from tracer.diagnosis.propagation import Suspect, Trail
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.measurement.rows import CallRecord
from tracer.tensors.roles import DEFAULT_ROLES


def record(module, parent=None, start=0, end=-1, **fields):
    """A call of a module, in the call of another."""
    defaults = {
        "candidate_module": module, "reference_caller": None, "candidate_caller": None,
        "reference_definition": None, "candidate_definition": None, "main_argument": "x",
        "arguments": {}, "outputs": [], "described": {}, "edited": (), "form_differences": [],
        "children": [],
    }  # fmt: skip
    parent = None if parent is None else (parent, 0)
    fields = defaults | fields
    return CallRecord(module=module, call=0, parent=parent, start=start, end=end, **fields)


@pytest.fixture
def make_trail(make_row):
    """A root that calls `a` and then `b`, whose errors are given by "module value"."""

    def make(errors, mask=None):
        rows, records = {}, {"": record("", start=0, children=[("a", 0), ("b", 0)])}
        for order, (module, value) in enumerate(
            [("a", "kwargs.x"), ("a", "output"), ("b", "kwargs.x"), ("b", "output")], start=1
        ):
            error = errors.get(f"{module} {value}", 0.0)
            row = make_row(module, error, value=value, order=10 * order)
            rows[module, value] = row
            own = records.setdefault(
                module, record(module, "", start=10 * order - 1, end=10 * order + 11)
            )
            (own.outputs.append(row) if row.is_output else own.arguments.update({row.value: row}))
        if mask is not None:
            records["b"].arguments[mask.value] = mask
        comparer = SimpleNamespace(
            rows=list(rows.values()),
            records={(name, 0): own for name, own in records.items()},
            roles=DEFAULT_ROLES,
        )
        return Trail(comparer), rows

    return make


@pytest.mark.parametrize(
    ("errors", "found"),
    [
        ({"b output": 0.5}, ("b", "output")),
        ({"a output": 0.3, "b kwargs.x": 0.4, "b output": 0.5}, ("a", "output")),
        ({"a output": 0.01, "b kwargs.x": 0.01, "b output": 0.5}, ("b", "output")),
        ({"a output": 0.9e-5, "b kwargs.x": 0.9e-5, "b output": 2e-5}, ("a", "output")),
        ({"b kwargs.x": float("inf"), "b output": float("inf")}, ("b", "output")),
    ],
    ids=["its own", "inherited", "mostly its own", "below the tolerance", "not finite"],
)
def test_where_an_error_was_introduced(make_trail, errors, found):
    trail, rows = make_trail(errors)
    assert trail.introduced_at(rows["b", "output"]) is rows[found]


@pytest.mark.parametrize(("inherited", "is_jump"), [(0.0, True), (0.1, True), (0.2, False)])
def test_a_jump_is_an_error_that_did_not_go_in(make_trail, inherited, is_jump):
    trail, rows = make_trail({"b kwargs.x": inherited, "b output": 0.5})
    assert trail.is_jump(rows["b", "output"]) is is_jump


def test_the_last_call_that_agreed(make_trail):
    trail, _ = make_trail({})
    assert trail.last_agreeing_before(trail.records["b", 0]) is trail.records["a", 0]
    assert trail.last_agreeing_before(trail.records["a", 0]) is None
    wrong, _ = make_trail({"a output": 0.5})
    assert wrong.last_agreeing_before(wrong.records["b", 0]) is None


@pytest.mark.parametrize(("peir", "remarks", "suspects"), [
    (0.5, (), ["attention_mask"]),
    (0.0, (Remark(RemarkKind.BY_MEANING),), ["attention_mask"]),
    (0.0, (), []),
], ids=["other positions", "same meaning", "equal"])  # fmt: skip
def test_masks_are_suspects(make_trail, make_row, peir, remarks, suspects):
    mask = make_row("b", peir, value="kwargs.attention_mask", order=5, remarks=remarks)
    trail, _ = make_trail({"b output": 0.5}, mask)
    found = trail.suspects(trail.records["b", 0], 100)
    assert found == [Suspect(name, ("", 0), found[0].calls) for name in suspects]


def test_calls_that_edited_something_before(make_trail):
    trail, rows = make_trail({"b output": 0.5})
    trail.records["a", 0].edited = ("x",)
    assert trail.editing_before(rows["b", "output"]) == [trail.records["a", 0]]
    assert trail.editing_before(rows["a", "kwargs.x"]) == []
