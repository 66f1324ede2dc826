"""What a public function is given is checked against its annotations, and said in words."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracer
import wrappers
from trace_model.annotations import checked, found, in_words, matches
from tracer.errors import TracerError
from wrappers import evaluate
from wrappers.errors import WrappersError

NET = nn.Linear(2, 2)


@pytest.mark.parametrize(("hint", "words", "good", "bad"), [
    (nn.Module, "an nn.Module", [NET], ["sdpa", None, nn.Linear]),
    (nn.Module | None, "an nn.Module or None", [NET, None], ["x", 1]),
    (int, "a whole number", [1, np.int64(1)], [1.0, True, "1", None]),
    (float, "a number", [1, 1.5, np.float32(1)], ["1", True, None]),
    (bool, "True or False", [True, np.bool_(1)], [1, "no", None]),
    (str | Path, "a string or a Path", ["a", Path("a")], [1, None]),
    (Literal["a", "b"], "'a' or 'b'", ["a"], ["c", None]),
    (Callable[[int], None], "a function", [print], [1, None]),
    (str | Sequence[str], "a string or a list of strings", ["a", ["a"], ()], [1, [1], {"a": 1}]),
    (Sequence[Sequence[int]], "a list of lists of whole numbers", [[[1, 2]], [], [(1,)]],
     [[1], torch.ones(2, 2), "ab", [torch.ones(2)], {1: [2]}]),
    (Iterable[Tensor | Mapping[str, Tensor]], "a list of Tensors or mappings of strings to Tensors",
     [[torch.ones(1)], [{"a": torch.ones(1)}], iter([1])], [torch.ones(1), [1], "a"]),
    (Mapping[str, str], "a mapping of strings to strings", [{"a": "b"}, {}],
     [{"a": 1}, {1: "a"}, [("a", "b")]]),
    (Mapping[str, Any], "a mapping", [{"a": object()}], [{1: 2}, [1]]),
    (tuple[str, int], "a tuple of strings and whole numbers", [("a", 1)], [("a",), (1, "a")]),
    (tuple[int, ...], "a tuple of whole numbers", [(), (1, 2)], [("a",), [1]]),
    (torch.dtype, "a dtype", [torch.int8], ["int8"]),
    (object, "an object", [None, 1, "a"], []),
    (Any, "anything", [None, 1, "a"], []),
])  # fmt: skip
def test_types(hint: Any, words: str, good: list[object], bad: list[object]) -> None:
    assert all(matches(value, hint) for value in good)
    assert not any(matches(value, hint) for value in bad)
    assert in_words(hint) == words


def test_values_in_a_few_words() -> None:
    values = [None, "a", 3, torch.ones(2, 3), nn.Linear, NET, [1], "x" * 99]
    assert [found(value) for value in values] == [
        *("None", "'a' (a str)", "3 (an int)", "a Tensor of shape [2, 3]", "the class Linear"),
        *("a Linear", "a list", f"'{'x' * 36}... (a str)"),
    ]


def test_functions_and_classes() -> None:
    @checked(ValueError, but=["free"], advice={"count": "how many there are"})
    def add(count: int, names: "Sequence[str]" = (), free: int = 0, *rest: int) -> int:
        return count

    @checked(KeyError)
    @dataclass(frozen=True)
    class Point:
        x: float = 0.0

    assert add(1, ["a"], "anything", "more") == 1
    assert Point(2).x == 2
    with pytest.raises(ValueError, match=r"^add: count is 'a' \(a str\); expected a whole number; "
                       "how many there are$"):  # fmt: skip
        add("a")
    with pytest.raises(ValueError, match=r"^add: names holds 3 \(an int\); expected a list of str"):
        add(1, ["a", 3])
    with pytest.raises(KeyError, match="Point: x is None; expected a number"):
        Point(None)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        add()


WRONG = (None, 3, 2.5, "sdpa", [1], {"a": 1}, torch.ones(2, 3), object(), nn.Linear, NET,
         [torch.ones(1, 2)], [[1, 2]], ["x"])  # fmt: skip


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[Callable[..., Any], dict[str, Any]]:
    """Public functions, and arguments with which each of them does something."""
    loaded = tracer.models.load("random-llama", sequence_length=8)
    model, inputs = loaded.model, loaded.inputs
    prefill, decode = (
        wrappers.prepare(model, wrappers.PTQConfig(variant=variant))
        for variant in ("prefill", "decode")
    )
    models, compared = {"reference": NET, "candidate": NET}, {"inputs": torch.ones(1, 2)}
    both = {"prefill": prefill, "decode": decode}
    steps = {"batches": [inputs["input_ids"]], "steps": 1, "source": "float"}
    texts = {"texts": [[1, 2, 3]], "bos": None}
    path = tmp_path_factory.mktemp("checked")
    return {
        tracer.compare: models | compared,
        tracer.capture: models | compared | {"include": "*"},
        tracer.assert_equivalent: models | compared,
        tracer.flow: {"model": NET, **compared},
        tracer.gate: {"comparison": tracer.compare(NET, NET, torch.ones(1, 2))},
        tracer.open_trace: {"path": path / "a.trace"},
        tracer.record: {"model": NET, "path": path / "b.trace", **compared},
        tracer.Stepping: {"prefill": model, "steps": 1},
        tracer.Stepped: {"model": model, "steps": 1},
        tracer.Tolerance: {}, tracer.Roles: {}, tracer.Isolate: {}, tracer.Debugging: {},
        tracer.Breakpoint: {"glob": "*"},
        tracer.models.load: {"name_or_path": "random-llama"},
        tracer.models.candidate: {"loaded": loaded, "kind": "sdpa"},
        tracer.models.calibration: {"loaded": loaded, "count": 0},
        tracer.models.cast: {"model": NET, "dtype": torch.float32},
        tracer.models.decode_step: {"model": model, "inputs": inputs},
        tracer.models.ending_in_steps: {"inputs": inputs, "steps": 1},
        tracer.models.moved: {"loaded": loaded, "device": "cpu"},
        tracer.models.share_parameters: {"model": NET},
        tracer.models.usable_device: {"device": "cpu"},
        wrappers.prepare: {"model": NET, "config": wrappers.PTQConfig()},
        wrappers.calibrate: {"wrapped": prefill, "inputs": [inputs]},
        wrappers.convert: {"wrapped": prefill},
        wrappers.decode_inputs: both | steps,
        wrappers.calibrate_decode: both | steps,
        wrappers.calibrate_both: both | steps,
        wrappers.export: {"model": NET, "example_inputs": torch.ones(1, 2), "path": path / "a.pt2"},
        wrappers.Runtime: {"prefill": model, "capacity": 16},
        wrappers.Runtime(model, capacity=16).generate: {
            "input_ids": inputs["input_ids"], "max_new_tokens": 1
        },
        wrappers.Sampling: {}, wrappers.Step: {"module": prefill},
        wrappers.affine: {"dtype": "uint8"}, wrappers.microscaling: {},
        wrappers.PTQConfig: {}, wrappers.QuantSpec: {"dtype": "uint8"},
        evaluate.generation_check: {
            "reference": model, "candidate": model, "prompts": [[1, 2]], "max_new_tokens": 1
        },
        evaluate.perplexity: {"model": model, "window": 4, **texts},
        evaluate.decoded_perplexity: {
            "prefill": model, "decode": model, "window": 4, "prompt": 1, **texts
        },
        evaluate.windows: {"window": 4, **texts},
        evaluate.positions_of: {"model": model},
        evaluate.repetition: {"tokens": [1, 2]},
    }  # fmt: skip


# What a class or a module computes when it is called as a function, nobody can tell.
CALLED = ("progress",)


def test_wrong_types_are_said(
    calls: dict[Callable[..., Any], dict[str, Any]], tmp_path, monkeypatch
) -> None:
    """Of each parameter, values that no function takes, or that some take: no raw Python error."""
    monkeypatch.chdir(tmp_path)  # where traces and files of any name may be written
    raw: list[str] = []
    for function, good in calls.items():
        for name in [*good, *_optional(function, good)]:
            for value in WRONG:
                if value is NET and isinstance(good.get(name), nn.Module):
                    continue  # that it is another model, only its code could say
                if function is wrappers.calibrate and name == "inputs" and _are_inputs(value):
                    continue  # of another model
                try:
                    function(**{**good, name: value})
                except (TracerError, WrappersError):
                    continue
                except Exception as error:
                    raw.append(f"{function.__qualname__}({name}={found(value)}): {error!r}"[:200])
    assert not raw, "\n".join(raw)


def _are_inputs(value: object) -> bool:
    return isinstance(value, list) and isinstance(value[0], list | Tensor)


def _optional(function: Callable[..., Any], good: dict[str, Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [p.name for p in parameters if p.name not in {*good, *CALLED} and p.kind not in kinds]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: tracer.compare(NET, "sdpa", torch.ones(1, 2)),
     r"^compare: candidate is 'sdpa' \(a str\); expected an nn.Module or an "
     r"ExportedProgram: a model of that name is "
     r"made by tracer.models.load\(NAME\), and a candidate of a kind by tracer.models.candidate"),
    (lambda: tracer.compare(None, NET, torch.ones(1, 2)),
     "^compare: reference is None; expected an nn.Module or an ExportedProgram$"),
    (lambda: evaluate.generation_check(NET, NET, [torch.ones(1, 2)], max_new_tokens=1),
     r"prompts holds a Tensor of shape \[1, 2\]; expected a list of lists of whole numbers or "
     r"mappings of strings to Tensors; token ids of each prompt, without padding, such as "
     r"\[\[1, 5, 7\], \[1, 9\]\]"),
    (lambda: wrappers.calibrate_both(NET, NET, [[1, 2]], steps=1, source="float"),
     "calibrate_both: batches holds a list; expected a list of Tensors or mappings of strings to "
     r"Tensors; each is token ids \[batch, prompt\]"),
    (lambda: list(wrappers.decode_inputs(NET, NET, iter([[1, 2]]), steps=1, source="float")),
     r"a batch of prompts is a list; expected token ids \[batch, prompt\]"),
])  # fmt: skip
def test_what_is_said(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TracerError, WrappersError), match=message):
        call()
