"""The benchmark's side of the load generator: a process that is started once and makes one run after another."""

import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Self

from loadtest.errors import GeneratorError
from loadtest.generator.recording import Recording
from loadtest.generator.spec import GeneratorSpec
from serving.processes import die_with_parent


class Generator:
    """A generator process, as a context manager."""

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.generator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            preexec_fn=die_with_parent,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    @property
    def pid(self) -> int:
        """The pid of the process; workers are its children."""
        return self._process.pid

    def run(self, spec: GeneratorSpec) -> Recording:
        """Make one run.

        Raises:
            GeneratorError: the process ended; the message holds the end of its output.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(spec.model_dump_json() + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            output = self._errors.read().decode(errors="replace")
            raise GeneratorError(f"the load generator ended with {self._process.wait()}:\n{output[-2000:]}")
        return Recording.model_validate_json(line)
