"""Speeds of GPUs and links that a predicted step time rests on."""

from dataclasses import dataclass

from hunyuan_train.config.planned_machines import MATMUL_SHARE, PlannedMachines
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.errors import ConfigError

GIGA = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuModel:
    """One GPU in its usual machine. Rates are those of the data sheets, one direction."""

    name: str
    memory_bytes: int
    bf16_flops: float  # dense, per second
    float32_flops: float  # without tensor cores
    memory_bandwidth: float  # bytes per second
    node_bandwidth: float  # between GPUs of one machine
    network_bandwidth: float  # between machines, for each GPU
    host_bandwidth: float  # to host memory, for each GPU
    source: str


GPUS = {
    model.name: model
    for model in (
        GpuModel(
            name="a100",
            memory_bytes=80 * 10**9,
            bf16_flops=312e12,
            float32_flops=19.5e12,
            memory_bandwidth=2.04e12,
            node_bandwidth=300e9,
            network_bandwidth=25e9,
            host_bandwidth=32e9,
            source="NVIDIA A100 80GB SXM data sheet; HDR InfiniBand, PCIe 4",
        ),
        GpuModel(
            name="h100",
            memory_bytes=80 * 10**9,
            bf16_flops=989e12,
            float32_flops=67e12,
            memory_bandwidth=3.35e12,
            node_bandwidth=450e9,
            network_bandwidth=50e9,
            host_bandwidth=64e9,
            source="NVIDIA H100 SXM data sheet; NDR InfiniBand, PCIe 5",
        ),
        GpuModel(
            name="a800",
            memory_bytes=80 * 10**9,
            bf16_flops=312e12,
            float32_flops=19.5e12,
            memory_bandwidth=2.04e12,
            node_bandwidth=200e9,
            network_bandwidth=25e9,
            host_bandwidth=32e9,
            source="NVIDIA A800 80GB SXM data sheet: an A100 with NVLink of 400 GB/s both ways; "
            "HDR InfiniBand, PCIe 4",
        ),
        GpuModel(
            name="h800",
            memory_bytes=80 * 10**9,
            bf16_flops=989e12,
            float32_flops=67e12,
            memory_bandwidth=3.35e12,
            node_bandwidth=200e9,
            network_bandwidth=50e9,
            host_bandwidth=64e9,
            source="NVIDIA H800 SXM data sheet: an H100 with NVLink of 400 GB/s both ways; NDR "
            "InfiniBand, PCIe 5",
        ),
        GpuModel(
            name="h20",
            memory_bytes=96 * 10**9,
            bf16_flops=148e12,
            float32_flops=44e12,
            memory_bandwidth=4.0e12,
            node_bandwidth=450e9,
            network_bandwidth=50e9,
            host_bandwidth=64e9,
            source="NVIDIA HGX H20 96GB as published by those who sell it (NVIDIA has no data "
            "sheet of it on its site); NDR InfiniBand, PCIe 5",
        ),
        GpuModel(
            name="h200",
            memory_bytes=141 * 10**9,
            bf16_flops=989e12,
            float32_flops=67e12,
            memory_bandwidth=4.8e12,
            node_bandwidth=450e9,
            network_bandwidth=50e9,
            host_bandwidth=64e9,
            source="NVIDIA H200 SXM data sheet; NDR InfiniBand, PCIe 5",
        ),
        GpuModel(
            name="b200",
            memory_bytes=180 * 10**9,
            bf16_flops=2250e12,
            float32_flops=75e12,
            memory_bandwidth=7.7e12,
            node_bandwidth=900e9,
            network_bandwidth=50e9,
            host_bandwidth=64e9,
            source="NVIDIA DGX B200 data sheet; NDR InfiniBand, PCIe 5",
        ),
        GpuModel(
            name="l40s",
            memory_bytes=48 * 10**9,
            bf16_flops=362e12,
            float32_flops=91.6e12,
            memory_bandwidth=864e9,
            node_bandwidth=32e9,
            network_bandwidth=25e9,
            host_bandwidth=32e9,
            source="NVIDIA L40S data sheet; no NVLink, PCIe 4; HDR InfiniBand",
        ),
        GpuModel(
            name="a6000",
            memory_bytes=48 * 10**9,
            bf16_flops=155e12,
            float32_flops=38.7e12,
            memory_bandwidth=768e9,
            node_bandwidth=32e9,
            network_bandwidth=12.5e9,
            host_bandwidth=32e9,
            source="NVIDIA RTX A6000 data sheet, half of its tensor rate, which is with sparsity; "
            "PCIe 4 without an NVLink bridge, which joins two cards; Ethernet of 100 Gb/s",
        ),
        GpuModel(
            name="rtx4090",
            memory_bytes=24 * 10**9,
            bf16_flops=165e12,
            float32_flops=82.6e12,
            memory_bandwidth=1.008e12,
            node_bandwidth=32e9,
            network_bandwidth=12.5e9,
            host_bandwidth=32e9,
            source="NVIDIA Ada GPU architecture paper, with sums in float32; no NVLink, PCIe 4; "
            "Ethernet of 100 Gb/s",
        ),
    )
}

# What programs reach of the rates above, beside MATMUL_SHARE. These numbers stay as they are: plans
# of two versions then differ by what is counted alone.
BANDWIDTH_SHARE = 0.78  # of memory and links: 2.6 of 3.35 TB/s, and 350 of 450 GB/s of an H100
ATTENTION_SHARE = 0.35  # flash-attn 2 on an H100 (https://arxiv.org/abs/2407.08608)
KERNEL_SECONDS = 2e-6  # from the end of a kernel to full work of the next
HOST_MEMORY_BANDWIDTH = 300e9  # of a machine's CPUs, for the offloaded update


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What a plan takes for granted of the machines, beside what the run itself says of them."""

    disk: int = 0  # bytes free where the run writes; 0: unknown, no check
    gpu: GpuModel = GPUS["h100"]
    matmul_share: float = MATMUL_SHARE


def find_gpu(name: str) -> GpuModel:
    """The speeds of a GPU by its name, in capitals or not.

    Raises:
        ConfigError: not one of those that are known here.
    """
    known = name.strip().lower()
    if known not in GPUS:
        raise ConfigError(
            f"gpu is {name}; speeds are known of {', '.join(GPUS)}. For another card leave --gpu "
            "out and say how much memory it has, such as --gpu_memory 24: the plan then tells what "
            "fits, and its times are those of the default GPU"
        )
    return GPUS[known]


def as_machine(machines: PlannedMachines) -> Machine:
    """One of the machines that are planned for."""
    usual, given = find_gpu(machines.gpu).memory_bytes, machines.gpu_memory
    return Machine(
        num_gpus=machines.gpus,
        num_cores=machines.gpus,
        gpu_memory=usual if given is None else int(given * GIGA),
        host_memory=int(machines.host_memory * GIGA),
    )


def as_hardware(machines: PlannedMachines) -> Hardware:
    """What else is to be assumed of them."""
    return Hardware(
        disk=int(machines.disk * GIGA),
        gpu=find_gpu(machines.gpu),
        matmul_share=machines.matmul_share,
    )
