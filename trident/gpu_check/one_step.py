"""One step as a process: `python -m trident.gpu_check.one_step NAME ROWS < settings`.

Reads the settings as JSON from standard input. Writes rows to the file ROWS as they come. Exit code 0: done or skipped; 1:
failed, with the reason in the last line of standard error.
"""

import sys
from pathlib import Path

from bundle.atomic_file import atomic_write
from bundle.errors import TridentError
from trident.gpu_check.context import CheckSettings, StepRows, StepSkippedError, StoredRows
from trident.gpu_check.steps import STEPS


def main() -> None:
    """Run the step that the command line names."""
    name, file = sys.argv[1], Path(sys.argv[2])
    settings = CheckSettings.model_validate_json(sys.stdin.read())
    try:
        STEPS[name].run(settings, StepRows(file))
    except StepSkippedError as error:
        atomic_write(file, StoredRows(skipped=error.message).model_dump_json())
    except TridentError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
