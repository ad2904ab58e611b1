"""NVIDIA GPUs during a run: utilisation, memory, power and energy, by NVML (nvidia-ml-py)."""

import time
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class GpuUse(BaseModel):
    """All GPUs of the machine during a run: mean utilisation and power, peak memory, energy as power x time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    utilisation: float
    memory_mib: float
    power_w: float
    energy_j: float


class Gpus:
    """The machine's GPUs, as a context manager. Without NVML or without a GPU there are no samples."""

    def __enter__(self) -> Self:
        self._nvml: Any = None
        self._handles: list[Any] = []
        self._samples: list[tuple[float, float, float, float]] = []
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # package, driver or device is missing; NVML has an error class for each
            return self
        self._nvml = pynvml
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return self

    def __exit__(self, *_: object) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def sample(self) -> None:
        """Take one sample."""
        if not self._handles:
            return
        nvml = self._nvml
        utilisation = [nvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in self._handles]
        memory = sum(nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in self._handles)
        power = sum(nvml.nvmlDeviceGetPowerUsage(handle) for handle in self._handles)
        self._samples.append(
            (time.perf_counter(), sum(utilisation) / len(utilisation) / 100, memory / 2**20, power / 1000)
        )

    def use(self) -> GpuUse | None:
        """The use over all samples; None without samples."""
        if not self._samples:
            return None
        times, utilisation, memory, power = zip(*self._samples, strict=True)
        mean_power = sum(power) / len(power)
        return GpuUse(
            names=tuple(str(self._nvml.nvmlDeviceGetName(handle)) for handle in self._handles),
            utilisation=sum(utilisation) / len(utilisation),
            memory_mib=max(memory),
            power_w=mean_power,
            energy_j=mean_power * (times[-1] - times[0]),
        )
