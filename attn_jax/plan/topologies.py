"""Devices that need not be here: TPU slices by name, with the data sheet of their chip."""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

GIB = 2**30
RESERVED = GIB // 4  # that the compiler keeps: of 16 GiB of a v5e it offers 15.75


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device by its data sheet, in bytes and operations per second.

    Attributes:
        hbm_bytes: memory, with what the compiler keeps for itself (`RESERVED`).
        flops: dense, bfloat16.
        hbm: bandwidth of the memory.
        ici: of all links to other chips of the slice, in one direction.
        dcn: of the data-center network to other slices.
        shape: dimensions of the torus.
        cores: JAX devices of a chip.
    """

    hbm_bytes: float
    flops: float
    hbm: float
    ici: float
    dcn: float
    shape: int
    cores: int = 1


# Google Cloud TPU documentation, pages "v5e", "v5p", "v6e" and "TPU7x" (2026-11), which give the ICI
# in both directions. DCN of v5e and v6e: 200 and 800 Gbit/s a host of 8 chips. A chip of TPU7x is
# two JAX devices. v4 is left out: its page does not give all of these.
CHIPS = {
    "v5e": Chip(16 * GIB, 197e12, 800e9, 200e9, 3.125e9, 2),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9, 6.25e9, 3),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 400e9, 12.5e9, 2),
    "tpu7x": Chip(96 * GIB, 1153.5e12, 3690e9, 300e9, 6.25e9, 3, cores=2),
}
GPUS = ("a100", "h100", "h200", "b200", "gb200")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    Attributes:
        name: as given.
        devices: all of them, on all hosts.
        chip: their data sheet; None: not known.
        hosts: number of processes.
        slices: parts that only the data-center network connects.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    hosts: int
    slices: int


def open_topology(name: str) -> Topology:
    """The devices of "CHIP:SHAPE", such as "v5e:4x4", or "2*v5e:4x4", two such slices.

    Raises:
        ValueError: the name is unknown, no such slice exists, or libtpu is not installed.
    """
    slices, chip, shape = parse_name(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology={name} needs the TPU compiler, which is not installed; it needs no "
            "TPU: pip install 'attn_jax[tpu]'"
        )
    # Without these, libtpu asks the metadata server of a TPU host that is not there, and refuses
    # a second process, as if each held the TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip}:{shape}", **options
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"--topology={name}: there is no such slice ({first_line(error)}). Sides are "
            f"usually powers of two, such as {chip}:{'x'.join(['4'] * CHIPS[chip].shape)}."
        ) from error
    return describe_devices(name, found.devices, CHIPS[chip])


def parse_name(name: str) -> tuple[int, str, str]:
    """(slices, chip, shape) of "2*v5e:4x4"; see `open_topology`."""
    match = re.fullmatch(r"(?:(\d{1,3})\*)?([\w-]+):([\dx]+)", name.strip().lower())
    chip = (
        match[2] if match else name.strip().lower().rpartition("*")[2].partition(":")[0]
    )
    if chip in GPUS:
        raise ValueError(
            f"--topology={name}: GPUs that are not here cannot be planned for: that needs the "
            f"CUDA compiler of jax 0.11 or later (here {jax.__version__}) and a description of "
            "the GPU. On a machine that has them, plan without --topology, or with --measure."
        )
    if chip not in CHIPS:
        near = difflib.get_close_matches(chip, CHIPS, n=3, cutoff=0.3)
        hint = f"do you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"--topology={name}: unknown chip {chip!r}; {hint}The chips are "
            f"{', '.join(CHIPS)}; write CHIP:SHAPE, such as v5e:4x4 or v5p:4x4x4, or "
            "2*v5e:4x4 for two slices."
        )
    sides = match[3].split("x") if match else []
    if (
        match is None
        or not all(side.isdigit() and int(side) for side in sides)
        or match[1] == "0"
    ):
        sides = []
    if len(sides) != CHIPS[chip].shape or math.prod(map(int, sides)) > 2**16:
        example = "x".join(["4"] * CHIPS[chip].shape)
        raise ValueError(
            f"--topology={name}: a slice of {chip} has {CHIPS[chip].shape} sides; write "
            f"{chip}:{example}, or 2*{chip}:{example} for two slices."
        )
    assert match is not None
    return int(match[1] or 1), chip, match[3]


def open_local() -> Topology:
    """The devices that are here."""
    devices = jax.devices()
    kind = devices[0].device_kind.lower()
    names = {"v5 lite": "v5e", "v5e": "v5e", "v6 lite": "v6e", "v6e": "v6e"}
    names |= {"v5p": "v5p", "v5": "v5p", "7x": "tpu7x"}
    chip = next((chip for part, chip in names.items() if part in kind), None)
    known = CHIPS[chip] if chip and devices[0].platform == "tpu" else None
    return describe_devices("here", devices, known)


def describe_devices(name: str, devices: Sequence[Any], chip: Chip | None) -> Topology:
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    hosts = len({device.process_index for device in devices})
    return Topology(name, devices, chip, hosts, slices)


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
