"""The service against its own OpenAPI description: valid and invalid requests get the responses that it describes, and
never a 500.
"""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from bundle.store import Bundle
from serving.settings import ServingSettings
from tests.serving.fastapi_server.live_service import live_service

pytestmark = pytest.mark.integration

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_responses_are_as_described(settings: ServingSettings, digits: Bundle, tmp_path: Path) -> None:
    with live_service(settings.model_copy(update={"max_body_bytes": 100_000})) as live:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{live.url}/openapi.json"),
                *("--checks", CHECKS, "--max-examples", "30", "--seed", "1", "--generation-deterministic"),
                *("--phases", "examples,coverage,fuzzing", "--no-color", "--continue-on-failure"),
                *("-H", "X-Request-Timeout-Ms: 9000"),  # schemathesis would try 1 ms, which is answered with 504
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "/predict" in done.stdout or "passed" in done.stdout
        httpx.post(
            f"{live.url}/v2/repository/models/digits/load"
        ).raise_for_status()  # schemathesis may have unloaded it
        assert httpx.post(f"{live.url}/predict", content=digits.golden_inputs()[0][1]).status_code == 200
