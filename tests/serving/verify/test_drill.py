"""`trident drill`: processes of a real server are killed under load."""

from pathlib import Path

import pytest

from bundle.store import Bundle
from serving.clients.endpoint import SERVERS
from tests.workplace import processes_of, trident


@pytest.mark.integration
def test_triton_is_drilled(digits: Bundle, tmp_path: Path) -> None:
    done = trident("drill", "--servers", "triton", "--model", str(digits.path), cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    stub, server = [line for line in done.stdout.splitlines() if line.split()[:1] == ["triton"]][-2:]
    assert "Trident: model loaded again" in stub
    assert "Trident: restart" in server
    for row in (stub, server):
        requests, lost, wrong = map(int, row.split()[-3:])
        assert requests > lost > 0
        assert wrong == 0
    assert processes_of(tmp_path) == []


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_three_are_drilled(digits: Bundle, tmp_path: Path) -> None:
    done = trident("drill", "--model", str(digits.path), cwd=tmp_path, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0] in SERVERS]
    assert {row[0] for row in rows} == set(SERVERS)
    assert processes_of(tmp_path) == []
