"""`python -m trace_model` is `trace_model`."""

import sys

import trace_model

if __name__ == "__main__":
    # Another module of that name in the working directory would come first.
    assert trace_model.tracer
    from tracer.cli import main

    sys.exit(main(sys.argv[1:]))
