"""What the supervisor reads from TorchServe, and how it repairs workers that TorchServe gave up."""

from dataclasses import replace
from pathlib import Path

import pytest

from bundle.store import Bundle
from serving.deployment import Deployment
from serving.servers.torchserve import TorchserveServer
from serving.settings import ServingSettings
from serving.torchserve_server.management import Management
from tests.metrics_server import metrics_server


def test_torchserve_reports_what_it_answered(settings: ServingSettings, digits: Bundle) -> None:
    text = "\n".join(
        (
            "# TYPE trident_inference_seconds histogram",
            'trident_inference_seconds_bucket{ModelName="digits",Level="Model",le="0.005",} 2.0',
            'trident_inference_seconds_count{ModelName="digits",Level="Model",} 3.0E3',
            'trident_inference_seconds_sum{ModelName="digits",Level="Model",} 1.5',
            'trident_inference_seconds_count{ModelName="digits2",Level="Model",} 7.0',
            'trident_handler_seconds_count{ModelName="digits",Level="Model",} 9.0',
        )
    )

    with metrics_server(text) as port:
        management = Management(settings.of("torchserve"), f"http://127.0.0.1:{port}/metrics")
        assert management.handler_metric("trident_inference_seconds_count", digits) == 3000
    assert management.handler_metric("trident_inference_seconds_count", digits) is None


def test_torchserves_abandoned_worker_is_scaled_to_none_and_back(
    monkeypatch: pytest.MonkeyPatch, settings: ServingSettings, digits: Bundle, tmp_path: Path
) -> None:
    calls: list[tuple[str, int, bool]] = []
    ready = {"digits:1": 0, "digits:2": 1}
    second = replace(digits, manifest=digits.manifest.model_copy(update={"version": 2}))
    monkeypatch.setattr(Management, "ready_workers", lambda _, bundle: ready[bundle.name])
    monkeypatch.setattr(
        Management, "scale", lambda _, bundle, workers, wait: calls.append((bundle.name, workers, wait))
    )
    server = TorchserveServer(settings, Deployment((digits, second)), tmp_path)
    server.started(1)
    assert str(server.probe()) == "0 of 1 workers of digits:1"
    assert server.repair() is None  # TorchServe may be restarting it
    server.repair_after_s = 0.0
    assert "scaled" in (server.repair() or "")
    assert calls == [("digits:1", 0, True), ("digits:1", 1, False)]
    ready["digits:1"] = 1
    assert server.probe() is None
    assert server.repair() is None
