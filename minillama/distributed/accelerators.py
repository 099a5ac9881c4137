"""Scaling: from 8B to 405B, on paper first.

Written by notebooks/17_scaling.ipynb: edit it there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """A data sheet: bytes of memory, bytes/s of it, dense operations/s in bf16 and fp8, bytes/s one
    way of a link.
    """

    memory: float
    bandwidth: float
    bf16: float
    fp8: float
    link: float
    source: str


ACCELERATORS = {
    "a100-80gb": Accelerator(
        80e9, 2.039e12, 312e12, 312e12, 300e9, "NVIDIA A100 data sheet, 80GB SXM; it has no fp8"
    ),
    "h100-80gb": Accelerator(
        80e9, 3.35e12, 989e12, 1979e12, 450e9, "NVIDIA H100 data sheet, SXM, without sparsity"
    ),
    "h200-141gb": Accelerator(
        141e9, 4.8e12, 989e12, 1979e12, 450e9, "NVIDIA H200 data sheet, SXM, without sparsity"
    ),
    "b200-180gb": Accelerator(
        180e9, 8e12, 2250e12, 4500e12, 900e9, "NVIDIA DGX B200 data sheet / 8, without sparsity"
    ),
    "mi300x-192gb": Accelerator(
        192e9, 5.3e12, 1307e12, 2615e12, 448e9, "AMD MI300X data sheet, without sparsity"
    ),
    "l40s-48gb": Accelerator(
        48e9, 0.864e12, 362e12, 733e12, 32e9, "NVIDIA L40S data sheet; PCIe 4"
    ),
}
USABLE = 0.9  # share of a card's memory that is planned with; the rest is the runtime's
GPUS_PER_SERVER, NETWORK_BANDWIDTH = 8, 50e9  # cards in a server; bytes/s between servers
# seconds that a message takes even if it is empty, within a server and between servers: assumed
LINK_LATENCY, NETWORK_LATENCY = 10e-6, 30e-6
