"""What was compared of the models' own outputs, and what the candidate does not return."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.measurement.rows import Row
from tracer.tensors.roles import Roles, is_any
from tracer.tensors.value_path import ValuePath


@dataclass
class FinalOutput:
    """What is known of the output of the root, which a verdict is about.

    Attributes:
        compared: how many elements and plain values of it were compared.
        finite: how many of them are finite on both sides.
        missing: the reference's values that the candidate does not return.
    """

    compared: int = 0
    finite: int = 0
    missing: list[ValuePath] = field(default_factory=list)

    def note(self, row: Row) -> None:
        """Counts a row of the root."""
        if row.difference is not None:
            self.compared += row.difference.elements
            self.finite += row.difference.count

    def note_plain(self) -> None:
        """Counts an equal value that is no tensor."""
        self.compared += 1
        self.finite += 1

    def wrong(
        self,
        wrong: Mapping[ValuePath, object],
        candidate: Mapping[ValuePath, object],
        roles: Roles,
    ) -> dict[ValuePath, object]:
        """What the candidate returns otherwise, or not at all, and not as a matter of form.

        A cache that it does not return at all is one of form.

        Args:
            wrong: the reference's values that differ, or are not there.
            candidate: all that the candidate returns.
        """
        has_cache = any(is_any(path, roles.caches) for path in candidate)
        found = {
            path: left
            for path, left in wrong.items()
            if has_cache or not is_any(path, roles.caches)
        }
        self.missing += [path for path in found if candidate.get(path) is None]
        return found
