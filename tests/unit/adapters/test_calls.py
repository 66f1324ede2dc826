"""The calls of modules in a graph's operations: what enters, what leaves, what is let go."""

from tracer.adapters.calls import CallPart, Inside, Module, Operation, parts_of

A, A_AGAIN, B = Module("a", "a", "A"), Module("a@1", "a", "A"), Module("b", "b", "B")
INNER = Module("a.c", "a.c", "C")


def operation(name: str, takes: str, makes: str, *stack: Module) -> Operation:
    return Operation(name, tuple(takes), tuple(makes), stack)


def calls(part: CallPart) -> list[CallPart]:
    return [step for step in part.steps if isinstance(step, CallPart)]


def names(part: CallPart) -> list[object]:
    """The names of calls, and of the operations between them."""
    return [
        step.name if isinstance(step, CallPart) else [o.name for o in step.operations]
        for step in part.steps
    ]


def test_what_enters_and_leaves() -> None:
    root = parts_of(
        [
            operation("one", "x", "p", A),
            operation("two", "pw", "q", A, INNER),
            operation("three", "pq", "r", A),
            operation("four", "rp", "y"),
        ],
        ["y"],
        {"w": None},
    )
    assert names(root) == ["a", ["four"]]
    (a,) = calls(root)
    assert names(a) == [["one"], "a.c", ["three"]]
    assert (a.takes, a.gives, a.class_name) == (("x",), ("p", "r"), "A")
    (inner,) = calls(a)
    assert (inner.takes, inner.gives) == (("p",), ("q",))
    assert (root.takes, root.gives) == (("x",), ("y",))


def test_values_are_let_go_after_their_last_use() -> None:
    root = parts_of(
        [
            operation("one", "x", "p"),
            operation("two", "p", "q", A),
            operation("three", "q", "y"),
            operation("four", "y", "z"),
        ],
        ["y"],
        {},
    )
    first, (a,), last = root.steps[0], calls(root), root.steps[2]
    assert isinstance(first, Inside)
    assert isinstance(last, Inside)
    assert list(first.freed.values()) == [("x",)]
    assert a.freed == ("p",)
    assert list(last.freed.values()) == [("q",), ("z",)]  # y is given back, and z used by nobody


def test_calls_of_one_module_are_told_apart_by_their_keys() -> None:
    root = parts_of([operation("one", "x", "p", A), operation("two", "p", "y", A_AGAIN)], ["y"], {})
    assert names(root) == ["a", "a"]


def test_a_call_whose_operations_were_moved_apart_is_one_where_that_is_possible() -> None:
    apart = [
        operation("one", "x", "p", A),
        operation("between", "x", "k", B),
        operation("two", "p", "y", A),
        operation("last", "yk", "z"),
    ]
    assert names(parts_of(apart, ["z"], {})) == ["a", "b", ["last"]]
    waits = [*apart[:2], operation("two", "pk", "y", A), apart[3]]
    assert names(parts_of(waits, ["z"], {})) == ["b", "a", ["last"]]
    both = [apart[0], operation("between", "p", "k", B), operation("two", "k", "y", A), apart[3]]
    assert names(parts_of(both, ["z"], {})) == ["a", "b", "a", ["last"]]


def test_what_another_module_holds_enters() -> None:
    operations = [operation("one", "xc", "y", A)]
    assert calls(parts_of(operations, ["y"], {"c": ["b"]}))[0].takes == ("x", "c")
    assert calls(parts_of(operations, ["y"], {"c": ["a.c"]}))[0].takes == ("x",)
    assert parts_of(operations, ["y"], {"c": ["b"]}).takes == ("x",)
