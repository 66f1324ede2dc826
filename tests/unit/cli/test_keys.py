"""Keys of a configuration: the options of compare, as its own parser declares them."""

from datetime import date

import pytest

from tracer.cli.keys import Keys
from tracer.cli.parser import make_parser, parse
from tracer.cli.requests import CompareRequest
from tracer.errors import UsageError


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys(make_parser()[1]["compare"])


def test_a_check_is_what_the_command_line_would_be(keys) -> None:
    options = {
        "model": "m", "candidate": "sdpa", "batch": 2, "tolerance": 1e-5, "train": True,
        "strict": False, "offload": True, "prompt": "-x", "max-peir": {"lm_head": 0.2, "*.mlp": 1},
        "map": [r"^a\.=b.", "x=y"], "focus": "lm_head",
    }  # fmt: skip
    arguments = keys.arguments(options)
    assert arguments[:3] == ["m", "--candidate", "sdpa"]
    given = parse(["compare", *arguments])
    assert given == CompareRequest(
        model="m", candidate="sdpa", batch=2, tolerance=1e-5, train=True, offload=True,
        prompt="-x", max_peir=(("lm_head", 0.2), ("*.mlp", 1.0)),
        map=((r"^a\.", "b."), ("x", "y")), focus=("lm_head",),
    )  # fmt: skip


def test_every_option_is_a_key_but_those_that_print_or_ask(keys) -> None:
    actions = make_parser()[1]["compare"]._actions
    options = {action.option_strings[-1][2:] for action in actions if action.option_strings}
    others = {name for name in options if name not in keys}
    asking = {"break", "break-at", "break-when", "post-mortem", "debugger"}
    printing = {"help", "json", "quiet", "verbose", "log-level", "color"}
    assert others - {"exit-skip"} == asking | printing
    for name in others:
        with pytest.raises(UsageError, match="an option of the command line alone"):
            keys.known(name)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch", "2", "found the text '2', expected a number without quotes"),
        ("batch", 2.5, "'2.5': expected a whole number from 1 up"),
        ("batch", True, "found true, expected a number"),
        ("batch", [1], "found an array, expected a number"),
        ("candidate", 3, "found the number 3, expected a text in quotes"),
        ("baseline", 3, "found the number 3, expected a text in quotes"),
        ("baseline", {}, "found a table, expected FILE.json|TRACE"),
        ("report", date(2020, 1, 1), "found a date, expected FILE, or an array of them"),
        ("dtype", "flaot32", "found 'flaot32', expected one of auto, float32"),
        ("train", "yes", "found the text 'yes', expected true or false"),
        ("max-peir", {"a": [1]}, "found an array for 'a', expected GLOB=PEIR"),
        ("max-peir", {"a": "x"}, "'x': expected a ratio of at least 0"),
        ("max-peir", 3, "'3': expected GLOB=PEIR"),
    ],
)
def test_types_and_values(keys, key, value, message) -> None:
    with pytest.raises(UsageError) as refused:
        keys.check(key, value)
    assert message in str(refused.value)


def test_names(keys) -> None:
    assert keys.known("sequence_length") == "sequence-length"
    with pytest.raises(UsageError, match="unknown key; did you mean 'tolerance'"):
        keys.known("tolernace")
    with pytest.raises(UsageError, match="did you mean 'checks'"):
        keys.known("check", ["checks"])


def test_what_depends_on_files_is_left_for_later(keys) -> None:
    assert keys.check("baseline", "none.json") == ["--baseline", "none.json"]
