"""What is published: the wheel and its check, the release's workflow, what messages name."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import tracer

ROOT = Path(__file__).parents[2]
CHECK = ROOT / ".ci" / "check_wheel.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Extras of those who work on the project, for which no message asks.
OF_DEVELOPERS = {"dev", "docs"}
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))


def wheel(folder: Path, *, version: str = PROJECT["version"], without: str = "") -> Path:
    """A wheel as `pip wheel` makes it, of the files that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "tracer", "wrappers", "trace_model"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    extras = "".join(f"Provides-Extra: {name}\n" for name in EXTRAS)
    about = f"trace_model-{version}.dist-info"
    made = folder / f"trace_model-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as file:
        for name in listed:
            if name != without:
                file.writestr(name, b"")
        file.writestr(f"{about}/METADATA", f"Name: trace-model\nVersion: {version}\n{extras}\n")
        file.writestr(f"{about}/entry_points.txt", "")
        file.writestr(f"{about}/licenses/LICENSE", "")
    return made


def check(*arguments: object) -> tuple[int, str]:
    finished = subprocess.run(
        [sys.executable, str(CHECK), *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return finished.returncode, finished.stdout + finished.stderr


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="this is no git checkout"
)
class TestWheel:
    def test_one_that_is_as_it_should_be(self, tmp_path):
        made = wheel(tmp_path)
        assert check(made, "--tag", f"v{tracer.__version__}") == (
            0,
            f"{made.name}: as it should be\n",
        )

    def test_one_without_a_data_file(self, tmp_path):
        made = wheel(tmp_path, without="tracer/reports/page/report.css")
        assert check(made) == (1, f"{made.name}: tracer/reports/page/report.css is missing\n")

    def test_one_with_what_is_not_ours(self, tmp_path):
        made = wheel(tmp_path)
        with zipfile.ZipFile(made, "a") as file:
            file.writestr("tests/conftest.py", "")
        assert check(made) == (1, f"{made.name}: tests/conftest.py is not in the repository\n")

    def test_one_of_another_version(self, tmp_path):
        code, said = check(wheel(tmp_path, version="9.9"), "--tag", "v9.8")
        assert code == 1
        assert "the version is 9.9: expected that of tracer.__version__" in said
        assert "the version is 9.9: expected that of the tag v9.8" in said


def test_the_workflow_builds_and_checks():
    assert WORKFLOW[True] == {"push": {"tags": ["v*"]}, "workflow_dispatch": None}
    steps = {
        step["name"]: step["run"]
        for job in WORKFLOW["jobs"].values()
        for step in job["steps"]
        if "run" in step
    }
    assert "python -m build" in steps["Build"]
    assert ".ci/check_wheel.py dist/*.whl --installed" in steps["Check"]
    for command in steps.values():
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)


def test_every_package_is_in_the_wheel():
    target = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]
    packages = target["build"]["targets"]["wheel"]["packages"]
    assert packages == ["tracer", "wrappers", "trace_model"]
    assert all((ROOT / name / "py.typed").is_file() for name in packages)


def test_addresses_are_no_placeholders():
    for address in PROJECT.get("urls", {}).values():
        assert address.startswith("https://")
        assert not re.search(r"example\.|localhost|OWNER|USER|<|\{", address), address


def test_messages_name_what_can_be_installed():
    """The package itself and its version, as the extra has it: an index may not know ours."""
    sources = [path for room in ("tracer", "wrappers") for path in (ROOT / room).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in sources]
    named = {found for text in texts for found in re.findall(r"pip install '([^']+)'", text)}
    optional = {
        requirement
        for extra, requirements in EXTRAS.items()
        if extra not in OF_DEVELOPERS
        for requirement in requirements
    }
    assert len(named) >= 6
    assert named <= optional
