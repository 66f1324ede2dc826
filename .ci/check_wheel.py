#!/usr/bin/env python3
"""Checks a wheel before it is released: what is in it, what it says of itself, and that it works.

    python .ci/check_wheel.py dist/trace_model-0.1.0-py3-none-any.whl [--tag v0.1.0] [--installed]

Every file that git knows of the packages is in it, data files too, and nothing else. With
`--installed` it has been installed into the Python that runs this, and two models are compared far
from the checkout.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tracer", "wrappers", "trace_model")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--tag", help="of the release, which names the version")
    parser.add_argument("--installed", action="store_true", help="try the installed packages too")
    asked = parser.parse_args()
    problems = [*contents(asked.wheel), *description(asked.wheel, asked.tag)]
    if asked.installed and not problems:
        problems = list(use())
    for problem in problems:
        print(f"{asked.wheel.name}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{asked.wheel.name}: as it should be")
    return 1 if problems else 0


def contents(wheel: Path) -> Iterator[str]:
    """What is missing in a wheel, and what should not be in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = set(listed.stdout.split("\0")) - {""}
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
        own = {name.split("/", 1)[1] for name in file.namelist() if ".dist-info/" in name}
    yield from (f"{name} is missing" for name in sorted(expected - found))
    yield from (f"{name} is not in the repository" for name in sorted(found - expected))
    for name in ("METADATA", "entry_points.txt", "licenses/LICENSE"):
        if name not in own:
            yield f"{name} is missing"


def description(wheel: Path, tag: str | None) -> Iterator[str]:
    """Where a wheel's metadata and the repository say different things."""
    said = metadata_of(wheel)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = (ROOT / "tracer" / "__init__.py").read_text(encoding="utf-8")
    if f'__version__ = "{said["Version"]}"' not in source:
        yield f"the version is {said['Version']}: expected that of tracer.__version__"
    if tag is not None and tag != f"v{said['Version']}":
        yield f"the version is {said['Version']}: expected that of the tag {tag}"
    if set(said.get_all("Provides-Extra", [])) != set(project["optional-dependencies"]):
        yield "its extras are not those of pyproject.toml"


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        [name] = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(file.read(name))


def use() -> Iterator[str]:
    """What does not work of the installed packages, where no checkout is near."""
    program = "import trace_model as t; t.tracer.compare; t.wrappers.prepare; print(t.__file__)"
    reports = [f"--report=out{suffix}" for suffix in (".html", ".json", ".md", ".xml", ".csv")]
    command = Path(sys.executable).parent / "trace_model"
    commands = [
        [sys.executable, "-P", "-c", program],
        [str(command), "--version"],
        [str(command), "compare", "tiny-llama", *reports],
        [sys.executable, "-P", "-m", "trace_model", "show", "random-llama", "--tree"],
    ]
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as folder:
        for each in commands:
            finished = subprocess.run(
                each, cwd=folder, env=surroundings, capture_output=True, text=True, check=False
            )
            if finished.returncode:
                yield f"{' '.join(each)} ended with {finished.returncode}: {finished.stderr}"
            elif "-c" in each and Path(finished.stdout.strip()).is_relative_to(ROOT):
                yield "the packages of the checkout were found, and not the installed ones"


if __name__ == "__main__":
    sys.exit(main())
