"""Names of modules, read in the other model's way: wrappers seen through, rename rules applied."""

import re
from collections.abc import Mapping

from torch import nn

from tracer.errors import UsageError, near_names
from tracer.execution.limits import LONGEST_NAME, check_rule, time_limit

# Segments that wrappers put into module names: torch.compile, DataParallel and DDP, FSDP,
# activation checkpointing, and wrappers that keep what they wrap in an attribute.
_WRAPPER_SEGMENTS = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "wrapped"}
)
_WRAPPER_PREFIXES = ("base_model.model.",)  # parameter-efficient fine-tuning adapters


def unchanged(name: str) -> str:
    return name


def without_wrappers(name: str) -> str:
    for prefix in _WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_SEGMENTS)


def renamed(
    candidates: Mapping[str, nn.Module],
    references: Mapping[str, nn.Module],
    rename: Mapping[str, str],
) -> dict[str, str]:
    names = {name: name for name in candidates if name}
    for pattern, replacement in rename.items():
        check_rule(pattern, replacement)
        rule = re.compile(pattern)
        with time_limit(f"the rename rule {pattern!r}"):
            changed = {
                n: rule.sub(replacement, new) for n, new in names.items() if rule.search(new)
            }
        if any(len(new) > LONGEST_NAME for new in changed.values()):
            raise UsageError(
                f"rename rule {pattern!r} makes names of more than {LONGEST_NAME:,} characters"
            )
        if not changed:
            raise UsageError(
                f"rename rule {pattern!r} matches none of the candidate's {len(names)} module "
                f"names, such as {', '.join(list(names)[:3])}; the rules apply to the candidate's "
                f"names{near_names(pattern, names)}"
            )
        known = {*references, *(without_wrappers(name) for name in references)}
        if not any(new in known or without_wrappers(new) in known for new in changed.values()):
            example, result = next(iter(changed.items()))
            raise UsageError(
                f"rename rule {pattern!r} turns {example!r} into {result!r}, and no name it makes "
                f"is a module of the reference{near_names(result, references)}"
            )
        names.update(changed)
    return names


def rules_of(pairs: Mapping[str, str]) -> dict[str, str]:
    """Rename rules, as few as will do, that turn the candidate's names into the reference's.

    >>> rules_of({"h.0.wo": "layers.0.o_proj", "h.1.wo": "layers.1.o_proj"})
    {'^h\\\\.(\\\\d+)\\\\.wo(?![^.])': 'layers.\\\\1.o_proj'}

    Numbers are kept as they are where both names have the same.

    Args:
        pairs: the reference's name by the candidate's.
    """
    rules: dict[str, str] = {}
    for name, target in sorted(pairs.items(), key=lambda pair: pair[0].count(".")):
        if applied(rules, name) != target:
            rules = {**dict([_rule(name, target)]), **rules}  # the longest names come first
    return rules


def _rule(name: str, target: str) -> tuple[str, str]:
    numbers = [part for part in name.split(".") if part.isdigit()]
    if numbers != [part for part in target.split(".") if part.isdigit()]:
        return f"^{re.escape(name)}(?![^.])", target
    pattern = r"\.".join(
        r"(\d+)" if part.isdigit() else re.escape(part) for part in name.split(".")
    )
    groups = iter(range(1, len(numbers) + 1))
    parts = (rf"\{next(groups)}" if part.isdigit() else part for part in target.split("."))
    return f"^{pattern}(?![^.])", ".".join(parts)


def applied(rules: Mapping[str, str], name: str) -> str:
    for pattern, replacement in rules.items():
        new_name, count = re.subn(pattern, replacement, name)
        if count:
            return new_name
    return name
