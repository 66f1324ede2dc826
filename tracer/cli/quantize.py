"""`trace_model quantize`: from a checkpoint to a quantised model and its files, by a recipe."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tracer.choices import CANDIDATES
from tracer.cli.exit_codes import ExitCode
from tracer.cli.parser.quantize import QuantizeRequest
from tracer.errors import UsageError
from tracer.execution.limits import user_path
from tracer.reports.progress import status
from wrappers import recipes
from wrappers.recipes.sections import Export


def quantize(request: QuantizeRequest) -> ExitCode:
    """Follows the recipe and says what has been written."""
    assert request.config is not None  # the parser requires it
    recipe = _with_export(recipes.Recipe.read(request.config), request)
    names = "dtype", "device", "processor", "trust_remote_code"
    given = {name: value for name in names if (value := getattr(request, name)) is not None}
    made = recipes.make(
        recipe, request.model, user_path(request.out), force=request.force, during=_shown, **given
    )
    if not request.output.quiet:
        for line in (*made.notes, *made.in_words()):
            print(line)
    size = sum(file.stat().st_size for file in made.folder.rglob("*") if file.is_file())
    graphs = f", {len(made.exported)} files in export" if made.exported else ""
    print(f"{request.out}: {size:,} bytes{graphs}")
    place = f"./{request.out}" if request.out in CANDIDATES else request.out
    command = ["trace_model", "compare", request.model, "--candidate", place]
    for name in ("dtype", "processor"):
        command += [f"--{name}", given[name]] if name in given else []
    print(f"compare it: {shlex.join(command)}")
    return ExitCode.AGREES


def _with_export(recipe: recipes.Recipe, request: QuantizeRequest) -> recipes.Recipe:
    """The recipe with what the command line says of the export."""
    export = recipe.export
    if request.export is not None:
        export = replace(export or Export(), format=request.export)  # type: ignore[arg-type]
    if request.per_layer:
        if export is None:
            raise UsageError(
                "--per-layer says how graphs are written, and the recipe has no [export]: give "
                "--export pt2|circle"
            )
        export = replace(export, per_layer=True)
    return replace(recipe, export=export)


@contextmanager
def _shown(what: str) -> Iterator[None]:
    with status(what):
        yield
