"""Looking up wrappers by class and variant."""

import sys

import pytest
from torch import nn

from wrappers.core import registry
from wrappers.core.module import QuantModule
from wrappers.core.registry import has_wrapper, lookup, register
from wrappers.errors import DuplicateWrapperError, MissingWrapperError, StaleWrapperError
from wrappers.layers.linear import QuantLinear


@pytest.fixture(autouse=True)
def scratch_registry(monkeypatch):
    """What a test registers is gone after it."""
    registry.wrapped_classes()  # imports the families, whose wrappers stay
    monkeypatch.setattr(registry, "_WRAPPERS", dict(registry._WRAPPERS))


class Float(nn.Module):
    pass


class FloatChild(Float):
    pass


class Exact(QuantModule, Float):
    pass


class Common(QuantModule, Float):
    pass


def test_the_exact_variant_then_the_common_one():
    register(Float)(Common)
    assert lookup(Float, "decode") is Common
    register(Float, variant="decode")(Exact)
    assert lookup(Float, "decode") is Exact
    assert lookup(Float, "prefill") is Common


def test_a_missing_variant_lists_those_of_the_class():
    register(Float, variant="prefill")(Exact)
    register(Float, variant="decode")(Common)
    with pytest.raises(
        MissingWrapperError,
        match=r"Float has no wrapper in the variant 'other'; it has decode, pre",
    ):
        lookup(Float, "other")


def test_looking_up():
    with pytest.raises(MissingWrapperError, match=r"Float has no wrapper; .*torch\.nn.*Linear"):
        lookup(Float, "prefill")
    register(Float)(Common)
    assert has_wrapper(Float)
    assert not has_wrapper(FloatChild)
    assert not has_wrapper(Common)
    assert lookup(nn.Linear, "prefill") is QuantLinear
    register("torch.nn.Bilinear")(Common)
    assert lookup(nn.Bilinear, "prefill") is Common


def test_duplicates_and_the_decorator():
    register(Float)(Common)
    register(Float)(Common)
    with pytest.raises(DuplicateWrapperError, match=r"already has the wrapper .*Common"):
        register(Float)(Exact)
    assert lookup(Float, "x") is Common
    assert register(Float)(Common) is Common


@pytest.mark.parametrize("path", [
    "torch.nn.LinearOfThePast", "torch.nn.modules.of_the_past.Linear", "torch.nn.functional.linear",
])  # fmt: skip
def test_a_class_that_is_gone_raises(path):
    with pytest.raises(StaleWrapperError, match=path):
        register(path)


def test_a_package_that_is_not_installed_is_skipped():
    before = dict(registry._WRAPPERS)
    assert register("package_nobody_has.models.Attention")(Common) is Common
    assert before == registry._WRAPPERS


def test_a_family_is_imported_when_a_class_of_its_package_is_looked_up(tmp_path, monkeypatch):
    """By the name of the package, whole: `float_package2` is another one."""
    monkeypatch.setattr(registry, "_FAMILIES", {})
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "family_of_tests.py").touch()
    registry.register_family("float_package", "family_of_tests")
    registry.register_family("float_package", "family_of_tests")
    with pytest.raises(DuplicateWrapperError, match="family_of_tests is for the classes of float_"):
        registry.register_family("float_package", "another")
    for package in ("float_package2", "another.float_package"):
        monkeypatch.setattr(Float, "__module__", package)
        assert not has_wrapper(Float)
        assert "family_of_tests" not in sys.modules
    for look_up in (has_wrapper, lambda _: registry.wrapped_classes(), register):
        monkeypatch.delitem(sys.modules, "family_of_tests", raising=False)
        monkeypatch.setattr(Float, "__module__", "float_package.models.one")
        look_up(Float)
        assert "family_of_tests" in sys.modules


def test_the_families_that_there_are_are_found_by_the_classes_of_theirs():
    for package, module in registry._FAMILIES.items():
        registered = [
            float_class
            for (float_class, _), wrapper in registry._WRAPPERS.items()
            if f"{wrapper.__module__}.".startswith(f"{module}.")
        ]
        assert registered
        assert all(f"{cls.__module__}.".startswith(f"{package}.") for cls in registered)
