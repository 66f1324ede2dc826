"""Two models, their pairs of modules and their inputs: what all runs of a comparison share."""

import fnmatch
import threading
from collections.abc import Container, Mapping, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tracer.errors import ModelRunError, TracerError, UsageError, near_names
from tracer.execution.edited_parameters import may_edit_parameters
from tracer.execution.fusions import whole_name
from tracer.execution.hooks import Listener, Recorder, hooked, visible_modules
from tracer.execution.inputs import (
    Inputs,
    arguments_of,
    as_it_is,
    both_arguments,
    copied,
    fitting,
)
from tracer.execution.lockstep import Outcome, lockstep
from tracer.execution.matching import Called
from tracer.execution.module_state import module_states_kept
from tracer.execution.offload import copy_model, unshare_offloaded
from tracer.execution.pairing import Pairing, pair
from tracer.execution.scheduler import RunObserver, Visitor
from tracer.execution.side import EventKey
from tracer.execution.standin import Arguments, StandIn
from tracer.execution.state import ThreadState, garbage_set_aside, random_state_kept
from tracer.execution.stepping import stages_of
from tracer.execution.torch_internals import is_compiled
from tracer.execution.walks import buffers_in, modules_of, parameters_in
from tracer.execution.weights import Weights
from tracer.tensors.leaves import tensor_leaves
from tracer.text import brief


class Session:
    """Two models, their pairs of modules and their inputs: what every run has in common."""

    def __init__(
        self,
        reference: nn.Module,
        candidate: nn.Module,
        inputs: Inputs | None,
        rename: Mapping[str, str] | None,
        include: str | Sequence[str],
        *,
        candidate_inputs: Inputs | None = None,
        map_inputs: Mapping[str, str] | None = None,
    ) -> None:
        modules = modules_of(reference), modules_of(candidate)
        _check_initialised("reference", reference, modules[0])
        _check_initialised("candidate", candidate, modules[1])
        if not {*map(id, modules[0])}.isdisjoint(map(id, modules[1])):
            candidate = unshare_offloaded(reference, candidate)
            reference, candidate = _apart(reference, candidate)
        self.reference = reference
        self.candidate = candidate
        self._rename, self._include = rename, [include] if isinstance(include, str) else include
        self._given = inputs, candidate_inputs, map_inputs
        self.weights = Weights.of(reference), Weights.of(candidate)
        self.pairing = pair(reference, candidate, rename, dtypes=self.dtypes)
        _check_counterparts(self.pairing, reference, candidate)
        self.inputs, self.candidate_inputs = both_arguments(
            inputs, candidate_inputs, map_inputs, reference, candidate
        )
        self.pairs = self._available_pairs()
        self._beyond_torch = False
        self.call_order: dict[tuple[str, int], int] = {}
        self.adapt_inputs = fitting(*self.weights)

    def with_candidate(self, candidate: nn.Module) -> "Session":
        """The same reference and inputs with another candidate."""
        inputs, candidate_inputs, map_inputs = self._given
        return Session(
            *(self.reference, candidate, inputs, self._rename, self._include),
            candidate_inputs=candidate_inputs,
            map_inputs=map_inputs,
        )

    def pair_again(self, outcome: Outcome) -> bool:
        """Pairs once more, first among what a run has called, if that pairs more of it.

        Returns:
            Whether there are other pairs now.
        """
        called = Called(outcome.reference_calls, outcome.candidate_calls)
        if all((o in called.candidate) == (r in called.reference) for o, r in self.pairs.items()):
            return False
        pairing = pair(self.reference, self.candidate, self._rename, called, dtypes=self.dtypes)
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
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """What the models work in, the reference first, where they have parameters."""
        return tuple(weights.dtype for weights in self.weights if weights.dtype is not None)

    @property
    def is_on_host(self) -> bool:
        """Whether all weights of both models, and what they are given, lie on the CPU."""
        if any(weights.numbers and not weights.devices for weights in self.weights):
            return False  # they are elsewhere until they are needed
        devices = {device for weights in self.weights for device in weights.devices}
        given = tensor_leaves((self.inputs, self.candidate_inputs), "")
        return all(each.type == "cpu" for each in (*devices, *(t.device for _, t in given)))

    @property
    def given(self) -> Inputs:
        """The reference's inputs as they are given to `compare`."""
        args, kwargs = self.inputs
        return kwargs or args

    def arguments(self, side: str) -> Arguments:
        """A copy of what a side is given, as it takes it."""
        if side == "reference":
            return copied(self.inputs, as_it_is)
        return copied(self.candidate_inputs or self.inputs, self.adapt_inputs)

    def run(
        self,
        visitor: Visitor,
        clone: frozenset[EventKey],
        watch: RunObserver | None = None,
        only: Container[str] | None = None,
    ) -> Outcome:
        """Runs both models once, each on its own copy of the inputs.

        Once Python's or NumPy's random numbers were seen to be drawn in evaluation, each side has
        its own in the runs that follow.

        Args:
            only: the reference's names of the modules whose calls are visited; None for all.
        """
        pairs = {o: r for o, r in self.pairs.items() if only is None or r in only}
        with (
            garbage_set_aside(),
            torch.no_grad(),
            module_states_kept((self.reference, self.candidate)),
        ):
            outcome = lockstep(
                self.reference,
                self.candidate,
                lambda: self._call(self.reference, "reference"),
                lambda: self._call(self.candidate, "candidate"),
                pairs,
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

    def _call(self, model: nn.Module, side: str) -> object:
        if isinstance(model, StandIn) and not model.computes:
            return None
        args, kwargs = self.arguments(side)
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
    _check_initialised("model", model, modules_of(model))
    arguments = arguments_of(inputs, model)
    names = {id(module): name for name, module in named_modules(model).items()}
    recorder, thread = Recorder(names, listener), threading.get_ident()
    with (
        garbage_set_aside(),
        ThreadState.capture().kept(),
        torch.no_grad(),
        module_states_kept((model,)),
        random_state_kept(),
        hooked((model,), lambda: recorder if threading.get_ident() == thread else None),
    ):
        args, kwargs = copied(arguments, as_it_is)
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
    modules = {id(module) for module in modules_of(reference)}
    shared = [module for module in modules_of(candidate) if id(module) in modules]
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
        for module in modules_of(model)
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


def _check_initialised(side: str, model: nn.Module, modules: Sequence[nn.Module]) -> None:
    one_of_each = {type(held): held for held in (*parameters_in(modules), *buffers_in(modules))}
    if any(map(is_lazy, one_of_each.values())):
        named = (*model.named_parameters(), *model.named_buffers())
        name = next(name for name, value in named if is_lazy(value))
        raise UsageError(
            f"the {side} holds {name!r}, which has no shape yet: run a lazy module once before it "
            "is compared"
        )


def working_dtype(model: nn.Module) -> torch.dtype | None:
    """The floating dtype of most of a model's parameters; None if it has none."""
    return Weights.of(model).dtype


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


def matching_pairs(glob: str, pairs: Mapping[str, str]) -> list[str]:
    """The reference's names of the modules that a glob names, on either side.

    Candidate's names count where none of the reference's matches.

    Args:
        pairs: the reference's names by the candidate's.

    Raises:
        UsageError: it matches none of either side's.
    """
    names = list(dict.fromkeys(pairs.values()))
    matched = fnmatch.filter(names, glob)
    if not matched:  # part of a module that holds several is named as it or as the whole
        own = [n for n in pairs if glob == n or fnmatch.fnmatch(whole_name(n), glob)]
        matched = list(dict.fromkeys(pairs[name] for name in own))
    return matched or matching(glob, list(dict.fromkeys([*names, *pairs])), _IN_COMMON, len(names))


_IN_COMMON = "the models have in common"


def matching(
    glob: str, names: Sequence[str], whose: str = _IN_COMMON, count: int | None = None
) -> list[str]:
    """The modules whose names match a glob.

    Args:
        names: the names of all modules that can be named.
        whose: which these are, for the message.
        count: how many modules these are, if some have two names.

    Raises:
        UsageError: it matches none.
    """
    matched = fnmatch.filter(names, glob)
    if not matched:
        end = glob.lstrip("*.")
        parts = end.count(".") + 1
        ends = {f"*{'.'.join(name.split('.')[-parts:])}" for name in names if glob != end}
        raise UsageError(
            f"{glob!r} matches none of the {count or len(names)} modules that {whose}, such as "
            f"{', '.join([n for n in names if n][:3]) or 'the root'}"
            f"{near_names(glob, [*names, *sorted(ends)])}"
        )
    return matched


def _included(pairing: Pairing, globs: Sequence[str]) -> dict[str, str]:
    """The pairs of which a name matches a glob."""
    wanted: set[str] = set()
    for glob in globs:
        wanted.update(matching_pairs(glob, pairing.pairs))
    return {name: target for name, target in pairing.pairs.items() if target in wanted}
