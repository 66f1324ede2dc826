"""Mutation operators: each changes one expression of a line into another that still runs.

>>> [m.text for m in mutations(ast.parse("y = x + residual"))]
['x - residual', 'x', 'residual']

An operator is given a node and yields the nodes that may stand instead of it. What comes of a
change is decided by running it: one that raises or leaves the output alone is no mutant.
"""

import ast
import copy
from collections.abc import Callable, Iterator

Operator = Callable[[ast.AST], Iterator[ast.AST]]
OPERATORS: dict[str, Operator] = {}


def operator(function: Operator) -> Operator:
    """Registers an operator under its name."""
    name = function.__name__.replace("_", " ")
    assert name not in OPERATORS
    OPERATORS[name] = function
    return function


def _binary(node: ast.AST, kind: type[ast.operator]) -> ast.BinOp | None:
    return node if isinstance(node, ast.BinOp) and isinstance(node.op, kind) else None


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    made = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _method(node: ast.AST, *names: str) -> ast.Call | None:
    """A call of a method or a function of torch by one of these names."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node if node.func.attr in names else None
    return None


def _number(node: ast.AST) -> float | int | None:
    """A number that stands in the source, with its sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value: float | int = node.value
        return value
    return None


def _constant(value: object) -> ast.expr:
    return ast.parse(repr(value), mode="eval").body


@operator
def add_for_subtract(node: ast.AST) -> Iterator[ast.AST]:
    if _binary(node, ast.Sub):
        yield _changed(node, op=ast.Add())


@operator
def subtract_for_add(node: ast.AST) -> Iterator[ast.AST]:
    if _binary(node, ast.Add):
        yield _changed(node, op=ast.Sub())


@operator
def divide_for_multiply(node: ast.AST) -> Iterator[ast.AST]:
    if _binary(node, ast.Mult):
        yield _changed(node, op=ast.Div())


@operator
def multiply_for_divide(node: ast.AST) -> Iterator[ast.AST]:
    if _binary(node, ast.Div):
        yield _changed(node, op=ast.Mult())


@operator
def drop_the_right_of_a_sum(node: ast.AST) -> Iterator[ast.AST]:
    if made := _binary(node, ast.Add):
        yield made.left


@operator
def drop_the_left_of_a_sum(node: ast.AST) -> Iterator[ast.AST]:
    """A residual that is left out, as a rule."""
    if made := _binary(node, ast.Add):
        yield made.right


@operator
def drop_a_factor(node: ast.AST) -> Iterator[ast.AST]:
    if made := _binary(node, ast.Mult):
        yield made.left
        yield made.right


@operator
def drop_a_sign(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and _number(node) is None:
        yield node.operand


@operator
def negate_an_argument(node: ast.AST) -> Iterator[ast.AST]:
    call = _method(node, "cat", "matmul", "exp", "softmax", "sigmoid", "tanh")
    if call and call.args and isinstance(call.args[0], ast.Name):
        first = ast.UnaryOp(op=ast.USub(), operand=call.args[0])
        yield _changed(call, args=[first, *call.args[1:]])


@operator
def another_axis(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call):
        for place, keyword in enumerate(node.keywords):
            number = _number(keyword.value)
            if keyword.arg in ("dim", "axis") and isinstance(number, int):
                made = copy.deepcopy(node)
                made.keywords[place].value = _constant(number - 1 if number else 1)
                yield made


@operator
def another_order_of_dimensions(node: ast.AST) -> Iterator[ast.AST]:
    call = _method(node, "transpose", "permute", "swapaxes")
    if call and len(call.args) >= 2:
        numbers = [_number(argument) for argument in call.args]
        if all(isinstance(number, int) for number in numbers):
            if len(numbers) == 2:
                for first in (1, 2, -1):
                    if first not in numbers:
                        yield _changed(call, args=[_constant(first), call.args[1]])
            else:
                swapped = [*call.args[:-2], call.args[-1], call.args[-2]]
                yield _changed(call, args=swapped)


@operator
def drop_a_rearrangement(node: ast.AST) -> Iterator[ast.AST]:
    call = _method(node, "transpose", "permute", "flip", "roll", "contiguous")
    if call and isinstance(call.func, ast.Attribute):
        yield call.func.value


@operator
def drop_a_cast(node: ast.AST) -> Iterator[ast.AST]:
    call = _method(node, "to", "float", "double", "long", "bool", "type_as")
    if call and isinstance(call.func, ast.Attribute):
        yield call.func.value


@operator
def a_coarser_dtype(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Attribute) and node.attr == "float32":
        yield _changed(node, attr="bfloat16")


@operator
def sum_for_mean(node: ast.AST) -> Iterator[ast.AST]:
    if call := _method(node, "mean"):
        yield _changed(call, func=_changed(call.func, attr="sum"))


@operator
def the_other_function(node: ast.AST) -> Iterator[ast.AST]:
    pairs = {"rsqrt": "sqrt", "sin": "cos", "cos": "sin", "exp": "expm1", "max": "min"}
    pairs |= {"min": "max", "tanh": "sigmoid", "sigmoid": "tanh", "log": "log1p", "triu": "tril"}
    if call := _method(node, *pairs):
        assert isinstance(call.func, ast.Attribute)
        yield _changed(call, func=_changed(call.func, attr=pairs[call.func.attr]))


@operator
def drop_a_function(node: ast.AST) -> Iterator[ast.AST]:
    """A call of one argument is left out: an activation, a norm, a dropout."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return
    if len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Constant):
        yield node.args[0]


@operator
def another_power(node: ast.AST) -> Iterator[ast.AST]:
    call = _method(node, "pow")
    if call and call.args and (number := _number(call.args[-1])) is not None:
        yield _changed(call, args=[*call.args[:-1], _constant(number + 1)])
    if (made := _binary(node, ast.Pow)) and (number := _number(made.right)) is not None:
        yield _changed(made, right=_constant(number / 2))


@operator
def another_constant(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Constant) and type(node.value) is float and node.value:
        yield _constant(node.value * 2)


@operator
def another_epsilon(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Attribute) and "eps" in node.attr:
        yield ast.BinOp(left=copy.deepcopy(node), op=ast.Add(), right=_constant(0.05))


@operator
def the_other_half(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Slice) and (node.lower is None) != (node.upper is None):
        yield _changed(node, lower=node.upper, upper=node.lower)


@operator
def a_slice_off_by_one(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Slice) and node.step is None:
        for name in ("lower", "upper"):
            bound = getattr(node, name)
            if bound is not None:
                moved = ast.BinOp(left=copy.deepcopy(bound), op=ast.Sub(), right=_constant(1))
                yield _changed(node, **{name: moved})


@operator
def another_index(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Subscript) and isinstance(number := _number(node.slice), int):
        yield _changed(node, slice=_constant(number + 1 if number >= 0 else number - 1))


@operator
def swap_two_targets(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, ast.Tuple) and len(target.elts) >= 2:
            first, second, *rest = target.elts
            made = copy.deepcopy(target)
            made.elts = [second, first, *rest]
            yield _changed(node, targets=[made])


@operator
def swap_two_arguments(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        first, second, *rest = node.args
        if not any(isinstance(each, ast.Constant | ast.Starred) for each in (first, second)):
            yield _changed(node, args=[second, first, *rest])


@operator
def swap_two_parts(node: ast.AST) -> Iterator[ast.AST]:
    """Of what is put together by `cat` or `stack`."""
    call = _method(node, "cat", "stack")
    if call and call.args and isinstance(call.args[0], ast.Tuple | ast.List):
        parts = call.args[0]
        if len(parts.elts) == 2:
            yield _changed(call, args=[_changed(parts, elts=parts.elts[::-1]), *call.args[1:]])


@operator
def another_name(node: ast.AST) -> Iterator[ast.AST]:
    pairs = {"cos": "sin", "sin": "cos", "key_states": "value_states", "up_proj": "gate_proj"}
    pairs |= {"value_states": "key_states", "query_states": "key_states", "gate_proj": "up_proj"}
    pairs |= {"input_layernorm": "post_attention_layernorm", "hidden_states": "residual"}
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in pairs:
        yield _changed(node, id=pairs[node.id])
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in pairs:
        yield _changed(node, attr=pairs[node.attr])


@operator
def the_other_bound(node: ast.AST) -> Iterator[ast.AST]:
    pairs: dict[type[ast.cmpop], ast.cmpop] = {
        ast.Lt: ast.LtE(),
        ast.LtE: ast.Lt(),
        ast.Gt: ast.GtE(),
        ast.GtE: ast.Gt(),
        ast.Eq: ast.NotEq(),
        ast.NotEq: ast.Eq(),
    }
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in pairs:
        yield _changed(node, ops=[pairs[type(node.ops[0])]])


@operator
def a_condition_turned_round(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.IfExp):
        yield _changed(node, body=node.orelse, orelse=node.body)


@operator
def drop_a_keyword(node: ast.AST) -> Iterator[ast.AST]:
    """The default applies: a mask, a scale, a position is forgotten."""
    if isinstance(node, ast.Call):
        for place, keyword in enumerate(node.keywords):
            if keyword.arg and not isinstance(keyword.value, ast.Constant):
                yield _changed(node, keywords=[*node.keywords[:place], *node.keywords[place + 1 :]])


@operator
def repeat_for_repeat_interleave(node: ast.AST) -> Iterator[ast.AST]:
    call = _method(node, "expand")
    if call and isinstance(call.func, ast.Attribute):
        source = call.func.value
        flipped = ast.Call(
            func=ast.Attribute(value=source, attr="flip", ctx=ast.Load()),
            args=[_constant(1)],
            keywords=[],
        )
        yield _changed(call, func=_changed(call.func, value=flipped))


@operator
def fewer_layers(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.For) and isinstance(node.iter, ast.Subscript):
        yield _changed(node.iter, slice=ast.Slice(lower=None, upper=_constant(1), step=None))
