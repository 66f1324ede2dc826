from wrappers.studies.judge.labels import differing, labels


def of_activations(*values):
    return labels([{"weight": "uint8", "activation": value} for value in values], ["activation"])


def test_plain_values():
    assert of_activations("uint8", "int16") == ["uint8", "int16"]
    assert of_activations(8, 0.5, True) == ["8", "0.5", "true"]
    assert of_activations(["a", "b"], []) == ["a + b", "none"]


def test_tables_show_what_differs():
    assert of_activations(
        "uint8",
        {"dtype": "uint8", "observer": "percentile", "options": {"percentile": 99.99}},
        {"dtype": "uint8", "observer": "percentile", "options": {"percentile": 99.9}},
        {"dtype": "uint8", "observer": "ema", "options": {"momentum": 0.9}},
    ) == [
        "uint8",
        "observer=percentile, percentile=99.99",
        "observer=percentile, percentile=99.9",
        "observer=ema, momentum=0.9",
    ]


def test_labels():
    assert of_activations("uint8", {"dtype": "int16", "observer": "ema"}) == [
        "uint8",
        "int16, observer=ema",
    ]
    tables = [{}, {"*.mlp": {"weight": {"dtype": "int16"}}}, {"lm_head": {"weight": "int16"}}]
    found = labels([{"overrides": table} for table in tables], ["overrides"])
    assert found == ["none", "*.mlp weight=int16", "lm_head weight=int16"]
    combinations = [{"a": "x", "b": "u", "c": 1}, {"a": "y", "b": "u", "c": 2}]
    assert differing(combinations, ["a", "b", "c"]) == ["a", "c"]
    assert labels(combinations, ["a", "b", "c"]) == ["x, 1", "y, 2"]
    assert differing([{"a": "x", "b": "u"}], ["a", "b"]) == ["a"]
    assert labels([{"a": "x", "b": "u"}], ["a", "b"]) == ["x"]
