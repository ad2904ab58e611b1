"""The processor of this machine, for the output of the benchmarks."""

from pathlib import Path
from typing import Final

# Instructions for matrices in int8, then in bf16.
INSTRUCTIONS: Final = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "avx512_bf16", "amx_bf16", "bf16",
)  # fmt: skip


def processor() -> str:
    """Return the processor's name and the instructions that it supports."""
    text = Path("/proc/cpuinfo").read_text()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = set((fields.get("flags") or fields.get("Features", "")).split())
    return f"{fields.get('model name', 'unknown processor')} with {', '.join(i for i in INSTRUCTIONS if i in flags)}"
