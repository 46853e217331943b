"""Opens images of several objects by name: the generated ones."""

from attn_jax.data import clevr_lite, scenes, sprites

NAMES = (
    "tetrominoes",
    *(f"multi_dsprites/{variant}" for variant in sprites.VARIANTS),
    "clevr_lite",
    "clevr_lite/whole",
)


def open_generated(
    data: str,
    split: str,
    size: int,
    *,
    canvas: int,
    tile: int = 5,
    fewest: int | None = None,
    most: int,
    seed: int = 0,
) -> scenes.Generated:
    """Opens a split of generated images.

    Args:
        data: one of `NAMES`.
        size: number of images.
        canvas: side of the images in pixels.
        tile: side of a tile in pixels; of tetrominoes.
        fewest, most: objects in an image. None: 3 in clevr_lite, 2, 2 and 1 in the variants
            of multi_dsprites, and `most` in tetrominoes, whose number is fixed.

    Raises:
        ValueError: the data is unknown; what its class cannot draw.
    """
    name, _, variant = data.partition("/")
    if data not in NAMES:
        raise ValueError(
            f"config.task.data={data!r} is unknown; it must be one of "
            f"{', '.join(map(repr, NAMES))}."
        )
    if name == "tetrominoes":
        if fewest not in (None, most):
            raise ValueError(
                f"{fewest=} differs from {most=}, but all images of tetrominoes have "
                "equally many; set config.task.fewest_objects to None."
            )
        return scenes.Tetrominoes(
            split, size, canvas=canvas, tile=tile, pieces=most, seed=seed
        )
    if name == "multi_dsprites":
        return sprites.MultiSprites(
            split,
            size,
            variant=variant,
            canvas=canvas,
            fewest=fewest,
            most=most,
            seed=seed,
        )
    return clevr_lite.ClevrLite(
        split,
        size,
        canvas=canvas,
        fewest=3 if fewest is None else fewest,
        most=most,
        whole=variant == "whole",
        seed=seed,
    )
