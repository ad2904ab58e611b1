"""The tests marked `gpu`."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Final

from bundle.errors import TridentError
from serving.settings import REPOSITORY
from trident.gpu_check.context import CheckSettings, StepRows, StepSkippedError

MARK: Final = "pytest.mark.gpu"
_RESULTS: Final = ("error", "failure", "skipped")


def run(settings: CheckSettings, rows: StepRows) -> None:
    """Run pytest on the files with such tests; only these are imported.

    Raises:
        StepSkippedError: this is an installation without the tests.
        TridentError: a test failed.
    """
    files = [str(path) for path in sorted((REPOSITORY / "tests").rglob("test_*.py")) if MARK in path.read_text()]
    if not files:
        raise StepSkippedError("there are no tests beside this code")
    report = settings.work / "gpu-tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *files,
    ]
    done = subprocess.run(command, cwd=REPOSITORY, check=False)
    if not report.is_file():
        raise TridentError(f"pytest ended with code {done.returncode}; its output is in the step's log")
    failed = _add_rows(report, rows)
    if failed or done.returncode:
        raise TridentError(f"{failed} tests failed (pytest ended with code {done.returncode})")


def _add_rows(report: Path, rows: StepRows) -> int:
    """One row per file; returns the number of failed tests."""
    counts: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it
        file = case.get("classname", "")
        result = next((name for name in _RESULTS if case.find(name) is not None), "passed")
        counts.setdefault(file, Counter())[result] += 1
        seconds[file] += float(case.get("time", 0))  # type: ignore[assignment]
    for file, count in counts.items():
        rows.add(
            tests=file,
            passed=count["passed"],
            failed=count["failure"] + count["error"],
            skipped=count["skipped"],
            s=float(seconds[file]),
        )
    return sum(count["failure"] + count["error"] for count in counts.values())
