"""`QuantModule`: the life cycle that every wrapper has, and what its forward calls.

A wrapper mixes it in front of the float class, declares its quantization points, and names them
in its forward:

    @register(nn.ReLU)
    class QuantReLU(QuantModule, nn.ReLU):
        def _setup(self, config):
            self._add_points("act_in", "act_out")

        def forward(self, input):
            x = self.quantize(input, "act_in")
            return self.quantize(F.relu(x), "act_out", may_overwrite=True)

The float class's `__init__` never runs: `from_float` takes the state of an existing module along,
by reference. So a wrapper is an instance of the float class with its names and its parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from trace_model.annotations import checked
from wrappers.core.config import PTQConfig
from wrappers.core.meanings import meaning
from wrappers.core.offloading import is_offloaded, parameter_of
from wrappers.core.point import Mode, QuantPoint
from wrappers.core.quantizers import IdentityQuantizer, Quantizer
from wrappers.core.spec import QuantSpec, Role
from wrappers.core.transformers_compat import (
    is_hooked,
    take_hook,
    without_hook,
    without_recording_hooks,
)
from wrappers.errors import (
    ArgumentError,
    ConfigError,
    ModeError,
    ObserverError,
    PointError,
    WrapError,
)

ModuleType = TypeVar("ModuleType", bound=nn.Module)

Wrap = Callable[[nn.Module, PTQConfig], nn.Module]

"""Wraps a child module, given its config."""


class QuantModule(nn.Module):
    """The base of all wrappers; the float class comes after it among the bases.

    Attributes:
        ptq_config: the config of this module, with what lies below it.
        points: its quantization points by name, in the order of declaration.
    """

    ptq_config: PTQConfig
    points: dict[str, QuantPoint]
    _mode: Mode

    @classmethod
    def from_float(cls, source: nn.Module, config: PTQConfig, wrap: Wrap) -> Self:
        """A wrapper with the state of `source`, which stays as it is.

        Args:
            source: the float module. Parameters and buffers are shared with it.
            config: the config of this module.
            wrap: wraps each child with the child's config.
        """
        module = shallow_copy(source, cls, config, wrap)
        module.ptq_config = config
        module.points = {}
        module._mode = Mode.NO_QUANT
        module._setup(config)
        return module

    def _setup(self, config: PTQConfig) -> None:
        """Declare the points. Children are wrapped already. A concrete wrapper overrides this."""

    def _add_point(
        self,
        name: str,
        *,
        role: Role = "activation",
        parameter: str | None = None,
        channel_axis: int | None = None,
        default: QuantSpec | None = None,
    ) -> None:
        """Declare a quantization point.

        Args:
            name: what `quantize` is called with.
            role: `"weight"` or `"activation"`: which spec of the config it takes.
            parameter: the attribute that holds the tensor, where that is a parameter: it is then
                observed at once when calibration begins, and fake-quantised only when it changes.
            channel_axis: its dimension of channels, without which no per-channel scheme is.
            default: the wrapper's own spec for it, which an override replaces.

        Raises:
            PointError: the name is taken.
            ConfigError: the spec cannot be had at this point.
        """
        if name in self.points:
            raise PointError(f"{type(self).__name__} declares the point {name!r} twice")
        try:
            spec = self.ptq_config.spec_for(name, role=role, default=default)
            self.points[name] = QuantPoint(
                name,
                spec,
                role=role,
                parameter=parameter,
                channel_axis=channel_axis,
                exactly=self.ptq_config.states_qscheme(name),
            )
        except ConfigError as error:
            raise ConfigError(f"{self._scope()}: {error}") from error

    def _add_points(self, *names: str) -> None:
        """Declare points of activations, see `_add_point`."""
        for name in names:
            self._add_point(name)

    def quantize(self, x: Tensor, name: str, *, may_overwrite: bool = False) -> Tensor:
        """Pass `x` through the point `name`, whatever the mode.

        Args:
            x: the tensor at that point.
            name: the point.
            may_overwrite: `x` was just computed here and nobody else holds it or a view of it: it
                is no argument, no parameter and no output of a child.
        """
        point = self._point(name)
        if self._mode is Mode.QUANT:
            if point.off:
                return x
            keep = point.parameter is not None and not is_offloaded(self)
            return point.fake_quantize(x, may_overwrite=may_overwrite, keep=keep)
        if self._mode is Mode.CALIBRATE and point.parameter is None:
            point.observer.observe(x)
        return x

    def _point(self, name: str) -> QuantPoint:
        try:
            return self.points[name]
        except KeyError:
            raise PointError(
                f"{type(self).__name__} has no point {name!r}; it has {', '.join(self.points)}"
            ) from None

    def ablatable_points(self) -> dict[str, str]:
        """The points of this wrapper that quantise now, each in words: "uint4 weight".

        A tool that looks for causes of an error needs to know no more of them: it disables one
        after the other.
        """
        if self._mode is not Mode.QUANT:
            return {}
        return {
            name: f"{point.kind} {point.role}"
            for name, point in self.points.items()
            if not isinstance(point.quantizer, IdentityQuantizer)
        }

    def point_meanings(self) -> dict[str, str]:
        """What is at each point of this wrapper, in a few words, where that is known.

        A wrapper with points of its own names extends it.
        """
        return {name: words for name in self.points if (words := meaning(name))}

    def quantization_points(self) -> dict[str, dict[str, object]]:
        """What is known of each point of this wrapper by name; see `QuantPoint.summary`.

        A tool that shows them needs to know no more of wrappers.
        """
        return {name: point.summary() for name, point in self.points.items()}

    @contextmanager
    def disabled(self, name: str) -> Iterator[None]:
        """Computes without one of its points for a while, as if that were exact.

        Raises:
            PointError: there is no such point.
        """
        point = self._point(name)
        before, point.off = point.off, True
        try:
            yield
        finally:
            point.off = before

    @contextmanager
    def count_rounding(self) -> Iterator[dict[str, dict[str, float]]]:
        """Counts what rounding does at each of its points for a while, which costs some time.

        Yields:
            By the end the shares of each point that quantised something, see `RoundingCounts`;
            `QuantPoint.summary` has them too, until they are counted again.
        """
        found: dict[str, dict[str, float]] = {}
        for point in self.points.values():
            point.counting, point.counts, point.changes = True, None, False
        try:
            yield found
        finally:
            for name, point in self.points.items():
                point.counting = False
                if point.counts is not None:
                    found[name] = point.counts.shares()

    def changing_points(self) -> frozenset[str]:
        """The points at which rounding made any difference when it was counted last.

        A point whose values are on its grid already, or that is not reached, is none of them.
        """
        return frozenset(name for name, point in self.points.items() if point.changes)

    @contextmanager
    def not_observing(self) -> Iterator[None]:
        """Observes nothing for a while if it is calibrating; what was observed stays."""
        before = self._mode
        if before is Mode.CALIBRATE:
            self._mode = Mode.NO_QUANT
        try:
            yield
        finally:
            self._mode = before

    switches, switched_off = ablatable_points, disabled  # their former names

    @property
    def mode(self) -> Mode:
        """What this wrapper does at its points. Its children have modes of their own.

        Setting it to CALIBRATE forgets earlier observations and observes the parameters; setting
        it to QUANT freezes what was observed.

        Raises:
            UnseenObserverError: on setting QUANT, when a point saw no data; the mode stays.
        """
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if not isinstance(mode, Mode):
            raise ModeError(f"expected a Mode, one of {', '.join(map(str, Mode))}, not {mode!r}")
        if mode is Mode.CALIBRATE:
            for point in self.points.values():
                point.reset()
            self._observe_parameters()
        elif mode is Mode.QUANT and self._mode is not Mode.QUANT:
            unfrozen = {
                name: point for name, point in self.points.items() if point.quantizer is None
            }
            self._observe_parameters()
            quantizers = {name: self._frozen(point) for name, point in unfrozen.items()}
            for name, quantizer in quantizers.items():
                unfrozen[name].quantizer = quantizer
        self._mode = mode

    def unfreezable_points(self) -> list[str]:
        """Names of the points that saw no data and so cannot be frozen."""
        return [
            name
            for name, point in self.points.items()
            if point.quantizer is None
            and point.parameter is None
            and point.observer.needs_data
            and point.observer.seen == 0
        ]

    def get_extra_state(self) -> Tensor:
        """The quantisers of all frozen points, for `state_dict`.

        Returns:
            JSON text as bytes, uint8, [length]: safetensors holds nothing but tensors.
        """
        return torch.tensor(list(json.dumps(self.point_states()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the quantisers of `get_extra_state`. The mode stays; `convert` makes use of them.

        Raises:
            PointError, QParamsError: as `load_point_states`.
        """
        self.load_point_states(json.loads(bytes(state.tolist())))

    def point_states(self) -> dict[str, dict[str, Any]]:
        """The quantisers of all frozen points by name, in plain JSON values."""
        return {
            name: {"locked": point.locked, **point.quantizer.state()}
            for name, point in self.points.items()
            if point.quantizer is not None
        }

    def load_point_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the quantisers of `point_states`.

        Raises:
            PointError: the state is of points that this wrapper does not have.
            QParamsError: a quantiser is of another kind than the point's spec asks for.
        """
        unknown = sorted(states.keys() - self.points.keys())
        if unknown:
            raise PointError(
                f"the state has points {', '.join(unknown)}, which {self._scope()} does not have; "
                f"it has {', '.join(self.points)}: was it saved from another variant?"
            )
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        for name, point_state in states.items():
            self.points[name].load_state(point_state)
            self.points[name].move(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for point in self.points.values():
            device = point.device
            if device is not None:
                point.move(fn(torch.empty(0, device=device)).device)
            point.forget_result()
        return self

    def _observe_parameters(self) -> None:
        for name, point in self.points.items():
            if point.parameter is None or point.quantizer is not None or point.observer.seen:
                continue
            point.observer.observe(parameter_of(self, point.parameter))
            if point.observer.dropped:
                raise ObserverError(
                    f"the parameter {point.parameter!r} of {self._scope()} holds "
                    f"{point.observer.dropped} NaN or infinite values and cannot be quantised at "
                    f"the point {name!r}: is the checkpoint damaged?"
                )

    def _frozen(self, point: QuantPoint) -> Quantizer:
        try:
            return point.observer.quantizer()
        except ObserverError as error:
            raise type(error)(
                f"the observer of the point {point.name!r} of {self._scope()} cannot be frozen: "
                f"{error}; calibrate with inputs that reach it"
            ) from error

    def _scope(self) -> str:
        return self.ptq_config.scope or f"the root ({type(self).__name__})"


@checked(ArgumentError)
def iter_wrappers(model: nn.Module) -> Iterator[tuple[str, QuantModule]]:
    """All wrappers of a model with their module names, each once, in the order of definition."""
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            yield name, module


@checked(ArgumentError)
def iter_points(model: nn.Module) -> Iterator[tuple[str, str, QuantPoint]]:
    """All quantization points of a model as (module name, point name, point)."""
    for module_name, module in iter_wrappers(model):
        for point_name, point in module.points.items():
            yield module_name, point_name, point


def shallow_copy(
    source: nn.Module, cls: type[ModuleType], config: PTQConfig, wrap: Wrap
) -> ModuleType:
    """A module of class `cls` with the attributes of `source` and its children wrapped.

    Parameters and buffers are shared, the dicts that hold them are not. Hooks are not taken along,
    but for those by which accelerate loads the parameters of a module when it is called.

    Args:
        source: stays as it is.
        cls: the class of the copy.
        config: the config of `source`.
        wrap: wraps each child with the child's config.

    Raises:
        WrapError: `forward` was replaced on the instance, so that the copy would call into
            `source`.
    """
    hooked = is_hooked(source)
    if "forward" in vars(source) and not hooked:
        raise WrapError(
            f"{config.scope or 'the model'} ({type(source).__name__}) has its forward replaced on "
            "the instance: the wrapper would call into the float model. Put it back before wrapping"
        )
    copy = cls.__new__(cls)
    state = without_recording_hooks(without_hook(vars(source)) if hooked else vars(source))
    state.update(vars(nn.Module()) | {"training": source.training})
    state.update({name: vars(source)[name].copy() for name in ("_parameters", "_buffers")})
    state["_non_persistent_buffers_set"] = source._non_persistent_buffers_set.copy()
    vars(copy).update(state)
    for name, child in source._modules.items():
        copy._modules[name] = None if child is None else wrap(child, config.child(name))
    if hooked:
        take_hook(copy, source)
    return copy
