"""Names what NVIDIA's driver says of a GPU's errors: Xids in the kernel's log, memory that fails.

The log's lines: https://docs.nvidia.com/deploy/xid-errors/; counts of memory errors and remapped
rows: https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PROGRAM = "by a program on it, as a rule, and not by the GPU"
RESTART = "start the run again"
RESET = "reset it (nvidia-smi --gpu-reset), or reboot the host; have it replaced if that comes back"
REBOOT = "switch the host off and on; have it replaced if that comes back"
LINK = "see nvidia-smi nvlink --status; reset all its GPUs, or reboot the host"
# What each number says, and what is to be done. Of others the driver's own words are told.
XIDS = {
    13: ("an exception of a kernel", PROGRAM),
    31: ("a page fault", PROGRAM),
    32: ("a damaged stream of commands", RESET),
    43: ("a reset of one program's work", PROGRAM),
    45: ("the work of a program was cleared away", "it follows from what came before"),
    48: ("an uncorrectable error of its memory (double-bit ECC)", RESET),
    62: ("its controller halted", RESET),
    63: ("a bad row of its memory is to be replaced (remapped) at its next reset", RESET),
    64: ("a bad row of its memory could not be replaced (remapped)", RESET),
    74: ("an error of NVLink", LINK),
    79: ("it has fallen off the bus", REBOOT),
    92: ("many correctable errors of its memory", RESET),
    94: ("an uncorrectable error of its memory, which hit one program alone", RESTART),
    95: ("an uncorrectable error of its memory, which may have hit all programs", RESET),
    109: ("a program could not be switched in time", RESET),
    119: ("its system processor (GSP) does not answer", RESET),
    120: ("its system processor (GSP) failed", RESET),
    140: ("an uncorrectable error of its memory", RESET),
    154: ("it asks for a reset or a reboot", RESET),
}
LINE = re.compile(r"^\[\s*([\d.]+)\].*?\b(S?Xid) \(PCI:([^) ]+)[^)]*\): (\d+),? ?(.*)$")
UNCORRECTABLE = re.compile(r"^(SRAM|DRAM) Uncorrectable|^Double Bit")


@dataclass(frozen=True, slots=True)
class GpuFault:
    """One error of a GPU, or of a switch between GPUs."""

    address: str  # of the device, as PCI counts
    words: str  # what it is
    remedy: str
    is_of_program: bool = False  # and says nothing of the GPU


def find_faults(found: Mapping[str, Any], *, within_seconds: float) -> list[GpuFault]:
    """What a host reports of its GPUs: Xids of late, and memory that has failed since its reset.

    Args:
        found: what `read_gpu_faults` of the probe gives.
        within_seconds: older Xids are left out.
    """
    since = found["uptime"] - within_seconds
    faults = [*read_xids(found["xids"], since), *read_memory_errors(found["gpu_memory_errors"])]
    return list(dict.fromkeys(faults))  # a GPU in trouble says the same again and again


def read_xids(lines: list[str], since: float) -> Iterator[GpuFault]:
    """The Xids of a kernel's log.

    Args:
        lines: each begins with the seconds since boot, in brackets.
        since: in seconds since boot; earlier ones are left out.
    """
    for match in filter(None, map(LINE.match, lines)):
        seconds, kind, address, number, said = match.groups()
        if float(seconds) < since:
            continue
        said = re.sub(r"^pid=\S+, (name=[^,]+, )?", "", said).strip()
        if kind == "SXid":  # of a switch, with numbers of its own
            yield GpuFault(address, f"SXid {number} of an NVSwitch ({said})", LINK)
            continue
        words, remedy = XIDS.get(int(number), (said or "unknown", RESET))
        detail = f" ({said})" if said and said != words else ""
        yield GpuFault(address, f"Xid {number}, {words}{detail}", remedy, remedy == PROGRAM)


def read_memory_errors(report: str) -> Iterator[GpuFault]:
    """What `nvidia-smi -q -d ECC,ROW_REMAPPER` says of memory that has failed."""
    for address, values in read_sections(report):
        # Volatile ones are counted from the last reset on, which is since the run began at best.
        number = sum(
            int(value)
            for path, value in values.items()
            if "Volatile" in path and UNCORRECTABLE.match(path[-1]) and value.isdigit()
        )
        if number:
            words = f"{number} uncorrectable errors of its memory (ECC) since its last reset"
            yield GpuFault(address, words, RESET)
        if values.get(("Remapped Rows", "Pending")) == "Yes":
            yield GpuFault(address, "bad rows of its memory wait to be replaced (remapped)", RESET)
        if values.get(("Remapped Rows", "Remapping Failure Occurred")) == "Yes":
            words = "bad rows of its memory could not be replaced (remapped)"
            yield GpuFault(address, words, "have it replaced")


def read_sections(report: str) -> Iterator[tuple[str, dict[tuple[str, ...], str]]]:
    """Each GPU of a report by nvidia-smi: its address, and its values by the titles above them."""
    values: dict[tuple[str, ...], str] = {}
    address, titles = "", [(0, "")]
    for line in report.splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if line.startswith("GPU "):
            if address:
                yield address, values
            address, values, titles = text.removeprefix("GPU ").lower(), {}, []
        elif text and address:
            titles = [one for one in titles if one[0] < indent]
            name, is_value, value = text.partition(" :")
            if is_value:
                path = (*(title for _, title in titles), name.strip())
                values[path] = value.strip()
            else:
                titles.append((indent, text))
    if address:
        yield address, values


def describe_faults(faults: list[GpuFault]) -> str:
    """Faults as the end of an error; empty where there are none."""
    if not faults:
        return ""
    named = "; ".join(f"GPU {one.address}: {one.words}: {one.remedy}" for one in faults)
    return f"NVIDIA's driver reports on this host: {named}"
