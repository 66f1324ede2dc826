"""Mutants: one line of a family's own source, changed by an operator.

The line stays the same line, so that its number is the expected answer, and so is the module in
whose call it runs first. A mutant is kept where the output changes beyond rounding and is finite.
"""

import ast
import importlib.util
import random
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.blind.families import Family
from benchmarks.blind.operators import OPERATORS

# An output that changes by less than this, relative to its norm, is no mutant.
_BEYOND_ROUNDING = 1e-3


@dataclass(frozen=True)
class Mutant:
    """One change of one line.

    Attributes:
        family, operator: where, and by which rule.
        file, line: of the mutated source.
        before, after: the expression.
        modules: those in whose calls the line runs, the first one first.
    """

    family: Family
    operator: str
    file: Path
    line: int
    before: str
    after: str
    modules: tuple[str, ...]

    def build(self) -> nn.Module:
        """The candidate."""
        return self.family.build(_imported(self.family, self.file))

    def __str__(self) -> str:
        return f"{self.family.name}:{self.line} {self.operator}: {self.before} -> {self.after}"


def mutants_of(family: Family, folder: Path, seed: int, count: int) -> Iterator[Mutant]:
    """Up to `count` mutants of a family, drawn by a seed: operators first, then places.

    Args:
        folder: where the mutated sources are written.
    """
    draw = random.Random(f"{seed} {family.name}")
    reference, inputs = family.build(), dict(family.inputs())
    source = _source(family)
    places = _places(reference, inputs, Path(source.origin or ""))
    right = _outputs(reference, inputs)
    text = Path(source.origin or "").read_text()
    possible = [
        (name, node, made)
        for node in ast.walk(ast.parse(text))
        if getattr(node, "lineno", None) in places and node.lineno == node.end_lineno
        for name, operator in OPERATORS.items()
        for made in operator(node)
    ]
    by_operator: dict[str, list[Any]] = {}
    for each in possible:
        by_operator.setdefault(each[0], []).append(each)
    for several in by_operator.values():
        draw.shuffle(several)
    taken: set[tuple[int, str]] = set()
    found = 0
    while by_operator and found < count:
        name = draw.choice(sorted(by_operator))
        _, node, made = by_operator[name].pop()
        if not by_operator[name]:
            del by_operator[name]
        after = ast.unparse(made)
        before = ast.get_source_segment(text, node) or ""
        if (node.lineno, after) in taken or "\n" in after:
            continue
        taken.add((node.lineno, after))
        file = folder / f"modeling_{family.name}_{len(taken)}.py"
        file.write_text(_with(text, node, after))
        mutant = Mutant(family, name, file, node.lineno, before, after, places[node.lineno])
        if _changes(mutant, inputs, right):
            found += 1
            yield mutant
        else:
            file.unlink()


def _with(text: str, node: Any, after: str) -> str:
    lines = text.split("\n")
    line = lines[node.lineno - 1].encode()
    bracketed = f"({after})" if isinstance(node, ast.expr) else after
    if isinstance(node, ast.Slice):
        bracketed = after
    start, end = line[: node.col_offset], line[node.end_col_offset :]
    lines[node.lineno - 1] = (start + bracketed.encode() + end).decode()
    return "\n".join(lines)


def _changes(mutant: Mutant, inputs: Mapping[str, Any], right: Sequence[torch.Tensor]) -> bool:
    try:
        wrong = _outputs(mutant.build(), inputs)
    except Exception:  # whatever a mutant raises: it is not one that gives a wrong output
        return False
    if [tensor.shape for tensor in wrong] != [tensor.shape for tensor in right]:
        return False
    if not all(bool(torch.isfinite(tensor).all()) for tensor in wrong[:1]):
        return False
    error = torch.linalg.vector_norm(wrong[0].double() - right[0].double())
    return bool(error > _BEYOND_ROUNDING * torch.linalg.vector_norm(right[0].double()))


def _outputs(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(**inputs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def _source(family: Family) -> Any:
    name = f"transformers.models.{family.name}.modeling_{family.name}"
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    return spec


def _imported(family: Family, file: Path) -> types.ModuleType:
    """A mutated source as a module of its family's package."""
    name = f"transformers.models.{family.name}.{file.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _places(model: nn.Module, inputs: Mapping[str, Any], file: Path) -> dict[int, tuple[str, ...]]:
    """The lines of a file that run in a forward pass, each with the modules in whose calls."""
    found: dict[int, dict[str, None]] = {}
    inside: list[str] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != str(file):
            return None
        if event == "line" and inside:
            found.setdefault(frame.f_lineno, {})[inside[-1]] = None
        return trace

    with _noting(model, inside), torch.no_grad():
        sys.settrace(trace)
        try:
            model(**inputs)
        finally:
            sys.settrace(None)
    return {line: tuple(modules) for line, modules in found.items()}


@contextmanager
def _noting(model: nn.Module, inside: list[str]) -> Iterator[None]:
    """Keeps the names of the modules that are being called, the innermost last."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        handles.append(
            module.register_forward_hook(lambda *_: inside.pop() and None, always_call=True)
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
