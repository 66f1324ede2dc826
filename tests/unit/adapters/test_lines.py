"""Lines of the original source, read from the traces of an exporter."""

import inspect

from tests.builders import exported as source
from tracer.adapters.lines import by_depth, frames_in

TRACE = f"""File "{source.__file__}", line 99, in forward
    hidden = block(hidden, hides, position)
  File "{source.__file__}", line 74, in forward
    attended, _ = self.attn(
  File "/other/site-packages/torch/nn/modules/linear.py", line 134, in forward
    return F.linear(input, self.weight, self.bias)
"""


def test_each_module_on_the_way_has_its_own_lines() -> None:
    root, block, linear = by_depth(frames_in(TRACE), 2)
    assert [frame.line for frame in root.frames] == [99]
    assert [frame.line for frame in block.frames] == [74]
    assert [frame.line for frame in linear.frames] == [134]
    assert linear.lines() == ()  # PyTorch's own, whatever machine it was exported on


def test_functions_between_belong_to_the_forward_that_calls_them() -> None:
    trace = 'File "a.py", line 1, in forward\n  File "a.py", line 9, in helper\n'
    (root,) = by_depth(frames_in(trace), 0)
    assert [(line, code.co_name) for code, line in root.lines()] == [(9, "helper"), (1, "forward")]


def test_the_code_is_that_of_the_file_where_it_is_here() -> None:
    forward = source.Norm.forward
    first = inspect.getsourcelines(forward)[1]
    trace = f'File "{source.__file__}", line {first + 1}, in forward'
    (root,) = by_depth(frames_in(trace), 0)
    ((code, line),) = root.lines()
    assert code == forward.__code__
    assert (line, root.beginning()) == (first + 1, (code, first))


def test_a_file_of_another_machine_is_named_all_the_same() -> None:
    (root,) = by_depth(frames_in('File "/not/here.py", line 7, in forward'), 0)
    ((code, line),) = root.lines()
    assert (code.co_filename, line, code.co_name) == ("/not/here.py", 7, "forward")


def test_without_a_trace_there_are_no_lines() -> None:
    assert [place.lines() for place in by_depth(frames_in(None), 2)] == [(), (), ()]
    assert by_depth(frames_in(None), 0)[0].beginning() is None
