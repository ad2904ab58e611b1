"""Our settings -> TorchServe's four configuration files.

TorchServe cannot batch without a delay (a `maxBatchDelay` of 0 becomes 100 ms), so a `queue_delay_ms` below 1 becomes 1 ms.
"""

import math
from pathlib import Path
from typing import Any, Final

from serving.deployment import Deployment
from serving.settings import ServerSettings
from serving.torchserve_server.archive import archive_name

LOOPBACK: Final = "127.0.0.1"
_RESPONSE_BYTES: Final = 4 * 2**20  # a larger response kills the worker; 1000 classes take 80 KB


def model_config(settings: ServerSettings) -> dict[str, Any]:
    """model-config.yaml of the archive, in TorchServe's units: ms for the delay, s for timeouts."""
    return {
        "minWorkers": settings.workers,
        "maxWorkers": settings.workers,
        "batchSize": settings.max_batch_size,
        "maxBatchDelay": max(1, math.ceil(settings.queue_delay_ms)),
        "responseTimeout": math.ceil(settings.request_timeout_s),
        "startupTimeout": math.ceil(settings.start_timeout_s),
        "maxRetryTimeoutInSec": 300,
        "jobQueueSize": settings.queue_size,
        "deviceType": "cpu" if settings.device == "cpu" else "gpu",
        # Keys must not be in an archive: workers read TRIDENT_API_KEYS.
        "trident": settings.model_dump(mode="json", exclude={"api_keys"}),
    }


def config_properties(settings: ServerSettings, deployment: Deployment, store: Path, metrics_config: Path) -> str:
    """config.properties: management on loopback, models only from the store, bounded requests."""
    host, ports = settings.host, settings.ports
    # TorchServe makes the first version of a model the default.
    ordered = sorted(deployment, key=lambda bundle: not deployment.is_default(bundle))
    lines = {
        "inference_address": f"http://{host}:{ports.torchserve}",
        "management_address": f"http://{LOOPBACK}:{ports.torchserve_management}",
        "metrics_address": f"http://{host}:{ports.torchserve_metrics}",
        "grpc_inference_address": host,
        "grpc_inference_port": ports.torchserve_grpc,
        "grpc_management_address": LOOPBACK,
        "grpc_management_port": ports.torchserve_grpc_management,
        "model_store": store,
        "load_models": ",".join(f"{bundle.manifest.model}={archive_name(bundle)}" for bundle in ordered),
        "allowed_urls": f"file://{store}/.*",
        "install_py_dep_per_model": "false",
        "enable_model_api": "true",  # for rollouts; the management port listens on loopback only
        "enable_envvars_config": "false",
        # TorchServe's own tokens are random at every start, expire, and are refused with 400. handler.py checks our keys.
        "disable_token_authorization": "true",
        "max_request_size": settings.max_body_bytes,
        "max_response_size": _RESPONSE_BYTES,
        "job_queue_size": settings.queue_size,
        "default_response_timeout": math.ceil(settings.request_timeout_s),
        "default_startup_timeout": math.ceil(settings.start_timeout_s),
        "number_of_netty_threads": 2,
        "netty_client_threads": 1,
        "metrics_mode": "prometheus",
        "metrics_config": metrics_config,
        "disable_system_metrics": "true",  # else a Python process starts every minute
        "async_logging": "false",
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


METRICS_YAML: Final = """\
dimensions:
  - &model_name "ModelName"
  - &level "Level"
  - &worker_name "WorkerName"
  - &hostname "Hostname"
ts_metrics:
  counter:
    - {name: Requests2XX, unit: Count, dimensions: [*level, *hostname]}
    - {name: Requests4XX, unit: Count, dimensions: [*level, *hostname]}
    - {name: Requests5XX, unit: Count, dimensions: [*level, *hostname]}
    - {name: ts_inference_requests_total, unit: Count, dimensions: ["model_name", "model_version", "hostname"]}
    - {name: ts_inference_latency_microseconds, unit: Microseconds, dimensions: ["model_name", "model_version",
    "hostname"]}
    - {name: ts_queue_latency_microseconds, unit: Microseconds, dimensions: ["model_name", "model_version", "hostname"]}
  gauge:
    - {name: QueueTime, unit: Milliseconds, dimensions: [*level, *hostname]}
    - {name: WorkerThreadTime, unit: Milliseconds, dimensions: [*level, *hostname]}
    - {name: WorkerLoadTime, unit: Milliseconds, dimensions: [*worker_name, *level, *hostname]}
model_metrics:
  gauge:
    - {name: HandlerTime, unit: ms, dimensions: [*model_name, *level]}
    - {name: PredictionTime, unit: ms, dimensions: [*model_name, *level]}
  histogram:
    - {name: trident_handler_seconds, unit: s, dimensions: [*model_name, *level]}
    - {name: trident_inference_seconds, unit: s, dimensions: [*model_name, *level]}
"""

# To the console only; the stock file writes 8 lines per request. MODEL_LOG stays at info, the level of workers' tracebacks.
LOG4J2_XML: Final = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN" shutdownHook="disable">
  <Appenders>
    <Console name="STDOUT" target="SYSTEM_OUT">
      <PatternLayout pattern="%d{ISO8601} %-5p %c{1}: %m%n"/>
    </Console>
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="warn"/>
    <Logger name="org.pytorch.serve.wlm.BatchAggregator" level="warn"/>
    <Logger name="org.pytorch.serve.wlm.WorkerLifeCycle" level="warn"/>
    <Logger name="org.pytorch.serve.wlm.WorkerThread" level="warn"/>
    <Logger name="org.pytorch.serve.job" level="warn"/>
    <Logger name="MODEL_LOG" level="info"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="io.netty" level="error"/>
    <Logger name="org.apache" level="off"/>
    <Root level="info"><AppenderRef ref="STDOUT"/></Root>
  </Loggers>
</Configuration>
"""
