"""Settings as the servers report them, in our units."""

import json
import re
from pathlib import Path

import pytest

from bundle.store import Bundle
from serving.clients.endpoint import ServerName
from serving.deployment import Deployment
from serving.servers.model_config import settings_of_configs
from serving.servers.server import server_class
from serving.servers.torchserve import settings_of_description
from serving.settings import ServingSettings
from serving.torchserve_server.configuration import model_config
from serving.triton_server.repository import build_repository


def test_tritons_microseconds_are_our_milliseconds(settings: ServingSettings, digits: Bundle, tmp_path: Path) -> None:
    wanted = settings.model_copy(update={"queue_delay_ms": 2.5, "queue_size": 7}).of("triton")
    build_repository(digits, wanted, tmp_path)
    text = (tmp_path / "digits_v1_image/config.pbtxt").read_text()
    assert "max_queue_delay_microseconds: 2500 " in text
    (ours,) = re.findall(r'"settings" value: \{ string_value: (".*") \} \}', text)
    image = {
        "platform": "",
        "max_batch_size": 8,
        "dynamic_batching": {"max_queue_delay_microseconds": 2500},
        "instance_group": [{"count": 1}],
        "parameters": {"settings": {"string_value": json.loads(ours)}},
    }
    native = image | {"platform": "onnxruntime_onnx", "parameters": {"intra_op_thread_count": {"string_value": "1"}}}
    for classifier in (image, native):
        reported = settings_of_configs(classifier, image)
        assert reported == server_class("triton")(wanted, Deployment(()), Path()).expected_settings()
    assert (reported["queue_delay_ms"], reported["queue_size"]) == (2.5, 7)


def test_torchserves_milliseconds_are_whole_and_seconds_are_seconds(settings: ServingSettings) -> None:
    asked = settings.model_copy(update={"queue_delay_ms": 2.5, "request_timeout_s": 7.5})
    config = model_config(asked.of("torchserve"))
    reported = settings_of_description(
        {
            "minWorkers": config["minWorkers"],
            "batchSize": config["batchSize"],
            "maxBatchDelay": config["maxBatchDelay"],
            "responseTimeout": config["responseTimeout"],
            "jobQueueStatus": {"remainingCapacity": 200, "pendingRequests": 56},
            "customizedMetadata": '{"runtime": "onnxruntime", "threads": 1}',
        }
    )
    assert (reported["queue_delay_ms"], reported["request_timeout_s"], reported["queue_size"]) == (3, 8, 256)
    server = server_class("torchserve")(asked, Deployment(()), Path())
    assert reported.items() <= server.expected_settings().items()


@pytest.mark.parametrize("server", ["fastapi", "triton"])
def test_the_others_take_the_settings_as_they_are(server: ServerName, settings: ServingSettings) -> None:
    changed = settings.model_copy(update={"max_batch_size": 5})
    wanted = server_class(server)(changed, Deployment(()), Path()).expected_settings()
    assert (wanted["max_batch_size"], wanted["threads"]) == (5, 1)
