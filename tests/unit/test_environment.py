"""The versions that a report is of."""

import torch

import tracer
from tracer.environment import environment


def test_what_it_ran_on() -> None:
    found = environment()
    assert (found["trace_model"], found["torch"]) == (tracer.__version__, torch.__version__)
    assert {"python", "transformers", "platform"} <= found.keys()
    assert all(found.values())
