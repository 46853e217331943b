"""Device mesh and shardings of parameters, state and batches, independent of the models.

Mesh axes: `data` splits the batch and replicates parameters, `fsdp` splits both, `tensor`
splits individual layers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from attn_jax import paths

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    sizes: Mapping[str, int] | ConfigDict,  # ConfigDict is not a Mapping
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh with the given axis sizes; an axis of -1 takes all remaining devices.

    Slices of TPUs, which only the data-center network connects, split `data`, or else `fsdp`.

    Raises:
        ValueError: an axis is unknown, or the product is not the number of devices; the slices
            divide neither axis.
    """
    devices = list(jax.devices() if devices is None else devices)
    if unknown := sorted(set(sizes) - set(AXES)):
        raise ValueError(f"config.mesh.{unknown[0]}: the axes are {', '.join(AXES)}.")
    shape = [sizes.get(axis, 1) for axis in AXES]
    shown = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise ValueError(
            f"config.mesh ({shown}): sizes must be positive, and at most one may be -1 "
            "(all remaining devices)."
        )
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"config.mesh ({shown}) asks for {known} devices, but {len(devices)} are here; "
            "the product of the sizes must be the number of devices. Set one axis to -1 "
            "to use all remaining ones."
        )
    auto = (AxisType.Auto,) * len(AXES)  # the default, Explicit, breaks Linen modules
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:  # which make_mesh does not know
        outer = split_over_slices(shape, slices)
        grid = mesh_utils.create_hybrid_device_mesh(
            [size // part for size, part in zip(shape, outer, strict=True)],
            outer,
            devices=devices,
            allow_split_physical_axes=True,
        )
        return Mesh(grid, AXES, axis_types=auto)
    try:
        return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices)
    except NotImplementedError:
        # A physical axis of the torus must be split, which make_mesh only does on v5e.
        grid = mesh_utils.create_device_mesh(
            shape, devices=devices, allow_split_physical_axes=True
        )
        return Mesh(grid, AXES, axis_types=auto)


def split_over_slices(shape: Sequence[int], slices: int) -> list[int]:
    """How many parts of each axis lie in different slices.

    Raises:
        ValueError: the slices divide neither `data` nor `fsdp`.
    """
    for i, axis in enumerate(AXES[:2]):
        if shape[i] % slices == 0:
            return [slices if other == axis else 1 for other in AXES]
    raise ValueError(
        f"config.mesh (data={shape[0]}, fsdp={shape[1]}): the devices are {slices} slices, which "
        "must divide data or fsdp, as the network between them is too slow for tensor."
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first dimension over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_shards(mesh: Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raises ValueError if devices and micro-batches do not divide the batch."""
    for key, value in [("batch_size", batch_size), ("micro_batches", micro_batches)]:
        if value < 1:
            raise ValueError(f"config.{key}={value} must be at least 1.")
    shards = batch_shards(mesh) * micro_batches
    if batch_size % shards:
        below, above = batch_size // shards * shards, -(-batch_size // shards) * shards
        raise ValueError(
            f"config.batch_size={batch_size} must be divisible by data x fsdp x "
            f"micro_batches = {mesh.shape['data']} x {mesh.shape['fsdp']} x "
            f"{micro_batches} = {shards}; use {f'{below} or ' if below else ''}{above}, or "
            "change config.mesh."
        )


def param_shardings(
    mesh: Mesh, params: Any, rules: Sequence, fsdp_min_elements: int
) -> Any:
    """A NamedSharding for every parameter.

    Args:
        rules: [[name regex, [mesh axis or None for each dimension]], ...], first match wins.
        fsdp_min_elements: a parameter without a rule is split over `fsdp` along its largest
            divisible dimension if it has at least this many elements, else replicated.

    Raises:
        ValueError: a rule matches nothing or does not fit a parameter's shape.
    """
    chosen = paths.match_first(rules, paths.named_leaves(params), key="sharding_rules")

    def sharding(name: str, leaf: Any) -> NamedSharding:
        if name in chosen:
            return NamedSharding(
                mesh, spec_by_rule(mesh, name, leaf.shape, chosen[name])
            )
        return NamedSharding(mesh, default_spec(mesh, leaf.shape, fsdp_min_elements))

    return paths.map_named(sharding, params)


def spec_by_rule(
    mesh: Mesh, name: str, shape: Sequence[int], axes: Sequence[str | None]
) -> PartitionSpec:
    if len(axes) != len(shape):
        raise ValueError(
            f"config.sharding_rules: {list(axes)} has {len(axes)} entries, but {name} has "
            f"the shape {tuple(shape)}; give one axis or None per dimension."
        )
    for dim, axis in zip(shape, axes, strict=True):
        if axis is not None and axis not in AXES:
            raise ValueError(
                f"config.sharding_rules: {axis!r} is not a mesh axis; the axes are "
                f"{', '.join(AXES)}."
            )
        if axis is not None and dim % mesh.shape[axis]:
            raise ValueError(
                f"config.mesh.{axis}={mesh.shape[axis]} must divide every dimension that "
                f"a rule splits, but {name} has the shape {tuple(shape)} and the rule "
                f"{list(axes)}. Change the mesh, or the rule in config.sharding_rules."
            )
    return PartitionSpec(*axes)


def default_spec(mesh: Mesh, shape: Sequence[int], min_elements: int) -> PartitionSpec:
    size = mesh.shape["fsdp"]
    divisible = [i for i, dim in enumerate(shape) if dim % size == 0]
    if size == 1 or math.prod(shape) < min_elements or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda i: shape[i])
    return PartitionSpec(*("fsdp" if i == largest else None for i in range(len(shape))))


def state_shardings(mesh: Mesh, state: Any, params: Any, shardings: Any) -> Any:
    """Shardings of a training state.

    A leaf whose name ends with that of a parameter of the same shape (Adam's moments, the
    average) is sharded like it. Others (counters, factored moments) are replicated.
    """
    layout = {
        name: (leaf.shape, sharding)
        for (name, leaf), sharding in zip(
            paths.named_leaves(params).items(), jax.tree.leaves(shardings), strict=True
        )
    }

    def sharding(name: str, leaf: Any) -> NamedSharding:
        parts = name.split("/")
        for start in range(len(parts)):
            shape, found = layout.get("/".join(parts[start:]), (None, None))
            if found is not None and tuple(shape) == tuple(leaf.shape):
                return found
        return replicated(mesh)

    return paths.map_named(sharding, state)


def add_shardings(shapes: Any, shardings: Any) -> Any:
    """Shapes and dtypes with shardings, as needed to restore a checkpoint."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        shardings,
    )


def describe_shardings(params: Any, shardings: Any) -> list[str]:
    """One line per distinct sharding, with the number of parameters that have it."""
    groups: dict[str, list[tuple[str, int]]] = {}
    leaves = zip(
        paths.named_leaves(params).items(), jax.tree.leaves(shardings), strict=True
    )
    for (name, leaf), sharding in leaves:
        spec = ", ".join(str(axis) for axis in sharding.spec) or "replicated"
        groups.setdefault(spec, []).append((name, int(np.prod(leaf.shape))))
    return [
        f"{spec}: {len(group)} arrays, {sum(size for _, size in group):,} parameters, "
        f"such as {max(group, key=lambda pair: pair[1])[0]}"
        for spec, group in groups.items()
    ]
