"""The accelerators of the study, one of a node of eight, by their makers' numbers."""

from typing import NamedTuple

DEVICES_PER_NODE = 8


class Hardware(NamedTuple):
    """An accelerator and its links. Rates are peaks; the fractions say what of them is counted on."""

    name: str
    flops: float
    """bfloat16 operations a second of dense matrix products."""
    memory: float
    """Bytes of memory."""
    memory_rate: float
    """Bytes a second to and from it."""
    nvlink_rate: float
    """Bytes a second each way to the other devices of the node."""
    network_rate: float
    """Bytes a second each way to other nodes, of this device's share."""
    products_reached: float = 0.7
    """Fraction of ``flops`` in large matrix products. An assumption: Hopper's power limit is met before its peak."""
    memory_reached: float = 0.8
    """Fraction of ``memory_rate`` in passes over long arrays. An assumption."""
    links_reached: float = 0.8
    """Fraction of the links' rates in long collectives. An assumption."""
    memory_usable: float = 0.9
    """Fraction of ``memory`` for arrays; the rest is the driver's, the collectives' buffers and fragmentation. JAX
    takes 0.75 unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""


H100 = Hardware("H100", 989.4e12, 80e9, 3.35e12, 450e9, 50e9)
"""H100 SXM5, 80 GB. NVIDIA's data sheet: 1,979 TFLOPS in bfloat16 with sparsity, half of it dense; 3.35 TB/s; NVLink
900 GB/s, both ways together. A DGX H100 has a 400 Gb/s ConnectX-7 adapter for each device (its user guide)."""

H200 = Hardware("H200", 989.4e12, 141e9, 4.8e12, 450e9, 50e9)
"""H200 SXM, 141 GB: the H100's arithmetic and links with more and faster memory (4.8 TB/s; NVIDIA's data sheet)."""
