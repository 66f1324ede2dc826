"""`trace_model export`: quantises a model and writes it, or a part of it, as a graph."""

import wrappers
from tracer.cli.exit_codes import ExitCode
from tracer.cli.parser.export import ExportRequest
from tracer.cli.resolve import resolve_model
from tracer.reports.progress import status
from tracer.tensors.leaves import dtype_name
from wrappers.deploy.parts import exported_part


def export(request: ExportRequest) -> ExitCode:
    """Writes the file and says what it takes."""
    subject = resolve_model(request)
    module, inputs = exported_part(
        subject.model,
        request.part,  # type: ignore[arg-type]  # one of the parser's choices, which are these
        layer=request.layer,
        tokens=request.tokens,
        past=request.past,
        seed=request.seed,
    )
    with status(f"exporting {request.part}"):
        wrappers.export(module, inputs, request.file)
    for note in subject.notes:
        print(note)
    print(f"{request.out}: {request.file.stat().st_size:,} bytes, called with")
    first = "hidden states" if inputs[0].is_floating_point() else "token ids"
    names = first, "cos", "sin", "mask"
    for place, tensor in enumerate(inputs):
        past = f"past {'value' if place % 2 else 'key'} {(place - len(names)) // 2}"
        name = names[place] if place < len(names) else past
        print(f"  {name}: {dtype_name(tensor.dtype)} {list(tensor.shape)}")
    return ExitCode.AGREES
