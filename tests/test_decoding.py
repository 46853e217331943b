"""Encoded images to pixels: every mode, what is refused, and in which words."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from attn_jax.data import decoding

GOLDEN = pathlib.Path(__file__).parent / "golden/vit/preprocess/images.npz"
PIXELS = np.load(GOLDEN)["image"]  # 37 x 53


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_a_png_decodes_to_its_pixels():
    data = encoded(Image.fromarray(PIXELS))
    np.testing.assert_array_equal(decoding.decode(data, 3), PIXELS)


def test_an_array_decodes_like_its_file():
    data = encoded(Image.fromarray(PIXELS))
    grey = decoding.decode(data, 1)
    assert grey.shape == (37, 53, 1)
    np.testing.assert_array_equal(decoding.decode(PIXELS, 1), grey)
    np.testing.assert_array_equal(decoding.decode(PIXELS, 3), PIXELS)
    np.testing.assert_array_equal(decoding.decode(grey[:, :, 0], 3), grey.repeat(3, 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_decodes_to_the_channels_asked_for(mode, channels):
    image = Image.new(mode, (5, 3), 1 if mode == "1" else None)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    decoded = decoding.decode(data, channels)
    assert decoded.shape == (3, 5, channels) and decoded.dtype == np.uint8


def test_sixteen_bits_keep_the_high_byte():
    deep = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16)
    decoded = decoding.decode(encoded(Image.fromarray(deep)), 1)
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 0x7F, 0xFF])


def test_transparent_pixels_keep_their_colour():
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    np.testing.assert_array_equal(
        decoding.decode(encoded(clear), 3)[0, 0], [10, 20, 30]
    )


WHOLE = encoded(Image.fromarray(PIXELS), "JPEG")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"a/b\.jpg \(0 bytes\) cannot be decoded: its format is none"),
        (b"not an image", "its format is none of JPEG, PNG"),
        (WHOLE[: len(WHOLE) // 2], "truncated"),
        (encoded(Image.new("F", (2, 2)), "TIFF"), "its pixels are floats"),
        (encoded(Image.new("I", (2, 2)), "TIFF"), "its pixels are 32-bit integers"),
    ],
    ids=["empty", "text", "truncated", "floats", "integers"],
)
def test_bytes_that_are_no_image_are_refused_by_name_with_a_remedy(data, says):
    with pytest.raises(ValueError, match=says) as error:
        decoding.decode(data, 3, name="a/b.jpg")
    assert "a/b.jpg" in str(error.value)
    assert "config.task.corrupt='skip'" in str(error.value)


@pytest.mark.parametrize(
    ("data", "channels", "says"),
    [
        (WHOLE, 2, r"channels=2 must be 1 \(gray\) or 3"),
        (
            PIXELS.astype(np.float32),
            3,
            r"x is float32 \[37, 53, 3\]; an image array must be uint8",
        ),
        (PIXELS[:, :, :2], 3, r"x is uint8 \[37, 53, 2"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused(data, channels, says):
    with pytest.raises(ValueError, match=says):
        decoding.decode(data, channels, name="x")


# --- rotation, transparency, depth ------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_photograph_is_turned_upright_unless_asked_not_to(orientation, format):
    # Where the first row and the first column of the file belong, by the EXIF standard.
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.swapaxes(0, 1),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(PIXELS, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), format, exif=exif)
    found = decoding.decode(data, 3)
    as_stored = decoding.decode(data, 3, exif_rotation=False)
    assert found.shape == turned.shape and as_stored.shape == PIXELS.shape
    if format == "PNG":  # which loses nothing
        np.testing.assert_array_equal(found, turned)
        np.testing.assert_array_equal(as_stored, PIXELS)


def test_malformed_exif_leaves_the_image_as_it_is():
    data = encoded(Image.fromarray(PIXELS), "PNG", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(decoding.decode(data, 3), PIXELS)


def transparent_images():
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (200, 100, 0, 255))
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (100, 100, 100, 128))
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (70, 255))
    keyed = Image.new("RGB", (2, 1), (0, 0, 0))
    keyed.putpixel((1, 0), (200, 100, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 200, 100, 0])
    palette.putpixel((1, 0), 1)
    return {
        "RGBA": (encoded(rgba), [200, 100, 0]),
        # 128/255 of 100 on 250: 174.7
        "half": (encoded(half), [175, 150, 175]),
        "LA": (encoded(grey), [70, 70, 70]),
        "colour key": (encoded(keyed, transparency=(0, 0, 0)), [200, 100, 0]),
        "palette": (encoded(palette, transparency=0), [200, 100, 0]),
        "GIF": (encoded(palette, "GIF", transparency=0), [200, 100, 0]),
    }


@pytest.mark.parametrize("kind", transparent_images())
def test_transparent_pixels_are_blended_onto_the_background(kind):
    data, opaque = transparent_images()[kind]
    found = decoding.decode(data, 3, background=(250, 200, 250))
    np.testing.assert_array_equal(found[0, 0], [250, 200, 250])
    np.testing.assert_allclose(found[0, 1], opaque, atol=1)  # rounding of the blend
    grey = decoding.decode(data, 1, background=(255, 255, 255))
    assert grey[0, 0, 0] == 255 and grey.shape == (1, 2, 1)


def test_an_opaque_image_has_no_use_for_a_background():
    data = encoded(Image.fromarray(PIXELS))
    found = decoding.decode(data, 3, background=(1, 2, 3))
    np.testing.assert_array_equal(found, PIXELS)


def tiff_of_12_bits(values: list[int]) -> bytes:
    """One row of an even number of values, packed by hand: Pillow writes no such file."""
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
        for a, b in zip(values[::2], values[1::2], strict=True)
    )
    tags = [(256, len(values)), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8)]
    tags += [(277, 1), (278, 1), (279, len(packed))]
    data = packed + b"\0" * (len(packed) % 2)
    fields = b"".join(
        tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little")
        for tag, value in tags
    )
    start = (8 + len(data)).to_bytes(4, "little")
    number = len(tags).to_bytes(2, "little")
    return b"II*\0" + start + data + number + fields + b"\0\0\0\0"


def test_a_tiff_of_12_bits_spans_the_whole_range():
    decoded = decoding.decode(tiff_of_12_bits([0, 15, 16, 2048, 4080, 4095]), 1)
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 128, 255, 255])


def test_a_portable_graymap_of_12_bits_spans_the_whole_range():
    pixels = np.array([0, 2048, 4095], ">u2").tobytes()
    decoded = decoding.decode(b"P5 3 1 4095\n" + pixels, 1)
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 128, 255])
