"""What the numbers were measured on."""

from pathlib import Path
from typing import Final

# What matrices of low precision are computed with: int8, then bf16.
INSTRUCTIONS: Final = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "avx512_bf16", "amx_bf16", "bf16",
)  # fmt: skip


def processor() -> str:
    """The processor's name, and which of those instructions it has."""
    text = Path("/proc/cpuinfo").read_text()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = set((fields.get("flags") or fields.get("Features", "")).split())
    return f"{fields.get('model name', 'unknown processor')} with {', '.join(i for i in INSTRUCTIONS if i in flags)}"
