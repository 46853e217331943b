"""Compares plans of one recipe: batch size, remat and mesh, over a small grid that is stated."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attn_jax import config as config_lib
from attn_jax.plan import report
from attn_jax.plan.topologies import Topology

BATCHES = (1, 2, 0.5)  # times the recipe's
MESHES: tuple[dict[str, int], ...] = (
    {"data": -1, "fsdp": 1, "tensor": 1},
    {"data": 1, "fsdp": -1, "tensor": 1},
    {"data": 1, "fsdp": -1, "tensor": 2},
)


def search(
    config: config_lib.Section, topology: Topology, *, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The plans of the grid: those that fit by rows per second, then the others.

    The recipe's learning rate stays, whatever the batch size. `remat` is tried only where a plan
    does not fit without it, and only if the model has such a field. Where a batch does not fit
    even so, larger ones are not tried.

    Raises:
        ValueError: no combination is possible.
    """
    found: list[dict[str, Any]] = []
    refused: list[ValueError] = []
    for mesh in MESHES:
        too_large = float("inf")
        for factor in BATCHES:
            size = int(config["batch_size"] * factor)
            if size < 1 or size >= too_large:
                continue
            fits = False
            for changed in vary_remat(change(config, size, mesh)):
                say(f"compiling for {topology.name}: batch {size}, mesh {mesh} ...")
                try:
                    facts = report.make_plan(changed, topology).facts
                except ValueError as error:
                    refused.append(error)
                    say(f"  skipped: {error}")
                    break
                found.append(facts)
                fits = facts["fits"]
                if fits:
                    break
            else:
                too_large = size if not fits else too_large
    if not found:
        raise ValueError(f"no combination is possible; the first: {refused[0]}")
    return sorted(found, key=rank)


def change(
    config: config_lib.Section, batch_size: int, mesh: dict[str, int]
) -> dict[str, Any]:
    """The config with another batch size and mesh."""
    return config_lib.to_plain(config) | {"batch_size": batch_size, "mesh": mesh}


def vary_remat(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config as it is, and with `remat` everywhere if it is off and the model has it."""
    yield config
    if report.find_remat(config["model"]) is False:
        yield config | {"model": turn_on_remat(config["model"])}


def turn_on_remat(section: Any) -> Any:
    if not isinstance(section, dict):
        return section
    return {
        key: True if key == "remat" else turn_on_remat(value)
        for key, value in section.items()
    }


def rank(facts: dict[str, Any]) -> tuple[bool, float]:
    rate = facts["host"]["rows_per_second"]
    return not facts["fits"], -(rate or 0.0)


def describe_best(plans: Sequence[dict[str, Any]]) -> list[str]:
    """The flags of the best plan; what was tried."""
    factors = ", ".join(f"{factor:g}" for factor in BATCHES)
    tried = f"tried: batch x {factors}; mesh data, fsdp, or fsdp and tensor=2; remat if needed"
    best = plans[0]
    if not best["fits"]:
        return [tried, "none fits; a larger topology or more micro_batches may"]
    flags = [f"--config.batch_size={best['batch']['rows']}"]
    flags += [f"--config.mesh.{axis}={size}" for axis, size in best["mesh"].items()]
    if best["batch"]["remat"]:
        flags.append("--config.model.remat=True")
    return [tried, f"best: {' '.join(flags)}"]
