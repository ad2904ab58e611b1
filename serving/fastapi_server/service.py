"""What the endpoints of one process share."""

from dataclasses import dataclass, field

from serving.fastapi_server.access import Access
from serving.fastapi_server.fleet import Fleet
from serving.fastapi_server.hosting import Hosting
from serving.fastapi_server.metrics import Metrics
from serving.settings import ServingSettings


@dataclass(frozen=True)
class Service:
    """One worker process. Made before its event loop runs; `hosting.start` loads the models."""

    settings: ServingSettings
    metrics: Metrics = field(init=False)
    access: Access = field(init=False)
    hosting: Hosting = field(init=False)
    fleet: Fleet = field(init=False)

    def __post_init__(self) -> None:
        metrics = Metrics()
        hosting = Hosting(self.settings, metrics)
        for name, part in {
            "metrics": metrics,
            "access": Access(self.settings),
            "hosting": hosting,
            "fleet": Fleet.of_environment(hosting),
        }.items():
            object.__setattr__(self, name, part)
