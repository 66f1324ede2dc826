"""The frame of `Comparison.to_frame` as a file: `.csv` for spreadsheets, `.parquet` for pandas.

One line for each compared value, in execution order. In a `.csv` a shape is "1x26x64" and a figure
that could not be computed is empty.
"""

import io

from tracer.comparison.result import Comparison
from tracer.reports import Run


def csv(comparison: Comparison, run: Run | None = None) -> str:
    """The rows as comma-separated values with a header."""
    frame = comparison.to_frame()
    frame["shape"] = ["x".join(map(str, shape)) for shape in frame["shape"]]
    return frame.to_csv(index=False, lineterminator="\n")


def parquet(comparison: Comparison, run: Run | None = None) -> bytes:
    """The rows as a Parquet file; shapes are lists of integers."""
    file = io.BytesIO()
    frame = comparison.to_frame()
    frame["shape"] = [list(shape) for shape in frame["shape"]]
    frame.to_parquet(file, engine="pyarrow", index=False)
    return file.getvalue()
