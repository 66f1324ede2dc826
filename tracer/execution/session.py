"""Two models, their pairs of modules and their inputs: what all runs of a comparison share."""

import fnmatch
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tracer.errors import InputError, ModelRunError, TracerError, UsageError, near_names
from tracer.execution.hooks import Listener, Recorder, hooked, visible_modules
from tracer.execution.lockstep import Outcome, lockstep
from tracer.execution.matching import Called
from tracer.execution.module_state import may_edit_parameters, module_states_kept
from tracer.execution.offload import copy_model, unshare_offloaded
from tracer.execution.pairing import Pairing, pair
from tracer.execution.scheduler import RunObserver, Visitor
from tracer.execution.side import EventKey
from tracer.execution.standin import Arguments, StandIn
from tracer.execution.state import ThreadState, random_state_kept
from tracer.execution.stepping import stages_of
from tracer.execution.torch_internals import as_written, is_compiled
from tracer.tensors.fingerprints import checksum
from tracer.tensors.leaves import deep_copy, tensor_leaves
from tracer.text import brief

Inputs = Mapping[str, object] | tuple[object, ...] | torch.Tensor


class Session:
    """Two models, their pairs of modules and their inputs: what every run has in common."""

    def __init__(
        self,
        reference: nn.Module,
        candidate: nn.Module,
        inputs: Inputs | None,
        rename: Mapping[str, str] | None,
        include: str | Sequence[str],
    ) -> None:
        for side, model in (("reference", reference), ("candidate", candidate)):
            _check_initialised(side, model)
        candidate = unshare_offloaded(reference, candidate)
        reference, candidate = _apart(reference, candidate)
        self.reference = reference
        self.candidate = candidate
        self._rename, self._include = rename, [include] if isinstance(include, str) else include
        self.pairing = pair(reference, candidate, rename)
        _check_counterparts(self.pairing, reference, candidate)
        self.inputs = _inputs(inputs, reference, candidate)
        self.pairs = self._available_pairs()
        self._beyond_torch = False
        self.call_order: dict[tuple[str, int], int] = {}
        self.adapt_inputs = _fitting(reference, candidate)

    def pair_again(self, outcome: Outcome) -> bool:
        """Pairs once more, first among what a run has called, if that pairs more of it.

        Returns:
            Whether there are other pairs now.
        """
        called = Called(outcome.reference_calls, outcome.candidate_calls)
        if all((o in called.candidate) == (r in called.reference) for o, r in self.pairs.items()):
            return False
        pairing = pair(self.reference, self.candidate, self._rename, called)
        if len(pairing.met(called)) <= len(self.pairing.met(called)):
            return False
        self.pairing = pairing
        self.pairs = self._available_pairs()
        return True

    def _available_pairs(self) -> dict[str, str]:
        """The pairs that are to be compared, and that both sides report."""
        missing = _unavailable(self.reference), _unavailable(self.candidate)
        return {
            own: name
            for own, name in _included(self.pairing, self._include).items()
            if name not in missing[0] and own not in missing[1]
        }

    @property
    def given(self) -> Inputs:
        """The inputs as they are given to `compare`."""
        args, kwargs = self.inputs
        return kwargs or args

    def run(
        self, visitor: Visitor, clone: frozenset[EventKey], watch: RunObserver | None = None
    ) -> Outcome:
        """Runs both models once, each on its own copy of the inputs.

        Once Python's or NumPy's random numbers were seen to be drawn in evaluation, each side has
        its own in the runs that follow.
        """
        with torch.no_grad(), module_states_kept((self.reference, self.candidate)):
            outcome = lockstep(
                self.reference,
                self.candidate,
                lambda: self._call(self.reference, _as_it_is),
                lambda: self._call(self.candidate, self.adapt_inputs),
                self.pairs,
                visitor,
                reference_names={id(m): name for name, m in self.pairing.reference.items()},
                candidate_names={id(m): name for name, m in self.pairing.candidate.items()},
                streams=self.pairing.pairs,
                parts=(
                    self.pairing.parts(is_candidate=False),
                    self.pairing.parts(is_candidate=True),
                ),
                order=self.call_order,
                clone=clone,
                watch=watch,
                beyond_torch=self._beyond_torch,
            )
        self._beyond_torch |= outcome.shared_draws
        return outcome

    def _call(self, model: nn.Module, fits: "_Fitting") -> object:
        if isinstance(model, StandIn) and not model.computes:
            return None
        args, kwargs = _copied(self.inputs, fits)
        return model(*args, **kwargs)


def run_alone(model: nn.Module, inputs: Inputs, listener: Listener) -> None:
    """Runs one model once on a copy of its inputs, and reports its calls to a listener.

    Nothing is changed, as by `Session.run`.

    Raises:
        InputError: the model does not accept the inputs.
        UsageError: a lazy module has not been run yet.
        ModelRunError: the model raised.
        TracerError: what the listener raises.
    """
    _check_initialised("model", model)
    arguments = _arguments(inputs, model)
    names = {id(module): name for name, module in named_modules(model).items()}
    recorder, thread = Recorder(names, listener), threading.get_ident()
    with (
        ThreadState.capture().kept(),
        torch.no_grad(),
        module_states_kept((model,)),
        random_state_kept(),
        hooked((model,), lambda: recorder if threading.get_ident() == thread else None),
    ):
        args, kwargs = _copied(arguments, _as_it_is)
        try:
            model(*args, **kwargs)
        except (TracerError, KeyboardInterrupt):
            raise
        except BaseException as error:
            where, call = "", recorder.left_by(error)
            if call is not None:
                where = f" in module {call.name!r}" if call.name else " in its own forward"
            raise ModelRunError(
                f"the model raised {type(error).__name__}{where}: {brief(error)}"
            ) from error


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model whose calls can be seen; those of two stages by stage and name."""
    return {
        f"{stage}.{name}".strip("."): module
        for stage, part in stages_of(model).items()
        for name, module in visible_modules(part).items()
    }


def _apart(reference: nn.Module, candidate: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Two models that share no module: what one edits while it runs, the other must not see.

    The copy's parameters lie where the model's do. The models stay as they are where one reports
    its calls afterwards, where nothing that they share has a state, and where they cannot be
    copied.
    """
    modules = {id(module) for module in reference.modules()}
    shared = [module for module in candidate.modules() if id(module) in modules]
    if isinstance(reference, StandIn) or not any(
        any(True for _ in module.parameters(recurse=False)) for module in shared
    ):
        return reference, candidate
    try:
        if not _is_compiled(candidate):
            return reference, _copy_apart(candidate)
        if not _is_compiled(reference):
            return _copy_apart(reference), candidate
    except Exception:  # whatever a model's own parts raise when they are copied
        return reference, candidate
    return reference, candidate


def _is_compiled(model: nn.Module) -> bool:
    return any(
        isinstance(module, torch.jit.ScriptModule) or is_compiled(module)
        for module in model.modules()
    )


def _copy_apart(model: nn.Module) -> nn.Module:
    copies = may_edit_parameters(model)
    made: nn.Module = copy_model(
        model,
        aliases={
            id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad)
            for parameter in ([] if copies else model.parameters())
            if type(parameter) is nn.Parameter
        },
    )
    return made


def _check_initialised(side: str, model: nn.Module) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise UsageError(
                f"the {side} holds {name!r}, which has no shape yet: run a lazy module once before "
                "it is compared"
            )


def working_dtype(model: nn.Module) -> torch.dtype | None:
    """The floating dtype of most of a model's parameters; None if it has none."""
    if isinstance(model, StandIn) and model.dtype is not None:
        return model.dtype
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] += parameter.numel()
    return max(sizes, key=sizes.__getitem__, default=None)


def _unavailable(model: nn.Module) -> frozenset[str]:
    return model.unavailable if isinstance(model, StandIn) else frozenset()


def _check_counterparts(pairing: Pairing, reference: nn.Module, candidate: nn.Module) -> None:
    sizes = len(pairing.reference), len(pairing.candidate)
    paired = len(pairing.pairs) - 1  # the roots always are
    for model, other, modules in (
        (reference, candidate, sizes),
        (candidate, reference, sizes[::-1]),
    ):
        if isinstance(model, StandIn):
            model.check_counterpart(other, paired, modules)


def _inputs(inputs: Inputs | None, reference: nn.Module, candidate: nn.Module) -> Arguments:
    """Positional and keyword arguments: what was given, and what was recorded if nothing was.

    Raises:
        InputError: nothing was given nor recorded, something other than was recorded, or nothing
            that the model can take.
    """
    models = reference, candidate
    recordings = [m for m in models if isinstance(m, StandIn) and not m.computes]
    live = [model for model in models if model not in recordings]
    if not recordings:
        return _arguments(inputs, reference)
    given = None if inputs is None or not live else _arguments(inputs, live[0])
    for recording in recordings:
        recorded = recording.inputs()
        if given is None and live and not recording.inputs_are_whole:
            raise InputError(
                f"the inputs of {recording.label} hold an object that is not in the trace, such as "
                "a cache: give the inputs that it was recorded with"
            )
        if given is None:
            given = recorded
        elif recorded is not None and not _same_inputs(given, recorded):
            raise InputError(
                f"the inputs are not those that {recording.label} was recorded with: leave them "
                "out, and the recorded ones are used"
            )
    if given is None:
        names = " and ".join(recording.label for recording in recordings)
        raise InputError(f"{names} holds no inputs: give what it was recorded with")
    return given


def _same_inputs(given: object, recorded: object) -> bool:
    left, right = dict(tensor_leaves(given, "")), dict(tensor_leaves(recorded, ""))
    return left.keys() == right.keys() and all(
        left[path].shape == right[path].shape
        and checksum(left[path].to(right[path].dtype)) == checksum(right[path])
        for path in left
    )


def _arguments(inputs: Inputs | None, model: nn.Module) -> Arguments:
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, tuple):
        return inputs, {}
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"inputs are a {type(inputs).__name__}; expected a dict of keyword arguments, a tuple "
            "of positional ones, or a single tensor"
        )
    kwargs = {str(name): value for name, value in inputs.items()}
    parameters = inspect.signature(as_written(model).forward).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for name in kwargs:
            if name not in parameters:
                raise InputError(
                    f"inputs name {name!r}, which forward of {type(model).__name__} does not take; "
                    f"it takes {', '.join(parameters) or 'nothing'}{near_names(name, parameters)}"
                )
    return (), kwargs


def matching(
    glob: str, names: Sequence[str], whose: str = "the models have in common"
) -> list[str]:
    """The modules whose names match a glob.

    Args:
        names: the reference's names of all modules that can be named.
        whose: which these are, for the message.

    Raises:
        UsageError: it matches none.
    """
    matched = fnmatch.filter(names, glob)
    if not matched:
        end = glob.lstrip("*.")
        parts = end.count(".") + 1
        ends = {f"*{'.'.join(name.split('.')[-parts:])}" for name in names if glob != end}
        raise UsageError(
            f"{glob!r} matches none of the {len(names)} modules that {whose}, such as "
            f"{', '.join([n for n in names if n][:3]) or 'the root'}"
            f"{near_names(glob, [*names, *sorted(ends)])}"
        )
    return matched


def _included(pairing: Pairing, globs: Sequence[str]) -> dict[str, str]:
    """The pairs whose reference name matches a glob."""
    names = list(pairing.pairs.values())
    wanted: set[str] = set()
    for glob in globs:
        wanted.update(matching(glob, names))
    return {name: target for name, target in pairing.pairs.items() if target in wanted}


_Fitting = Callable[[torch.Tensor], torch.Tensor]


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _fitting(reference: nn.Module, candidate: nn.Module) -> _Fitting:
    """What makes inputs of the reference's those of the candidate's.

    Floats of the reference's dtype take the candidate's, and tensors on its device go to the
    candidate's, where each side has only one.
    """
    (r_dtypes, r_devices), (c_dtypes, c_devices) = map(_worked_in, (reference, candidate))
    cast, move = _change(r_dtypes, c_dtypes), _change(r_devices, c_devices)

    def fitted(tensor: torch.Tensor) -> torch.Tensor:
        if cast and tensor.dtype == cast[0]:
            tensor = tensor.to(cast[1])
        return tensor.to(move[1]) if move and tensor.device == move[0] else tensor

    return fitted


_Kind = TypeVar("_Kind", torch.dtype, torch.device)


def _change(reference: set[_Kind], candidate: set[_Kind]) -> tuple[_Kind, _Kind] | None:
    """From what to what, if each side has one and they differ."""
    if len(reference) != 1 or len(candidate) != 1 or reference == candidate:
        return None
    return next(iter(reference)), next(iter(candidate))


def _worked_in(model: nn.Module) -> tuple[set[torch.dtype], set[torch.device]]:
    """The floating dtypes of a model's parameters, and where they lie.

    Weights that are elsewhere until they are needed, and those of a recording, lie nowhere.
    """
    if isinstance(model, StandIn) and not model.computes:
        return (set() if model.dtype is None else {model.dtype}), set()
    dtypes, devices = set(), set()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            dtypes.add(parameter.dtype)
        if not parameter.is_meta:
            devices.add(parameter.device)
    return dtypes, devices


def _copied(inputs: Arguments, fits: _Fitting) -> Arguments:
    """A copy of everything, caches and other objects included, tensors free of their graph.

    The models may edit what they are given, so each gets its own.
    """
    args, kwargs = deep_copy(inputs, lambda tensor: fits(tensor.detach().clone()))
    return args, kwargs
