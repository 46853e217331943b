"""Warnings of what decoding drops or makes up."""

import io

import numpy as np
import pytest
from PIL import Image
from trees import write_folder, write_npz

from attn_jax.data import sources, survey


@pytest.fixture(autouse=True)
def nothing_warned_of(monkeypatch):
    monkeypatch.setattr(survey, "_warned", set())


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


CLEAR = encoded(Image.new("RGBA", (3, 2), (10, 20, 30, 0)))
COLOUR = encoded(Image.new("RGB", (3, 2), (10, 20, 30)))
GREY = encoded(Image.new("L", (3, 2), 7))
GREY_PALETTE = encoded(Image.new("L", (3, 2), 7).convert("P"))


def deep(highest: int) -> bytes:
    return encoded(Image.fromarray(np.array([[0, highest]], np.uint16)))


def warnings_of(tmp_path, caplog, files, *, channels=3, has_background=False):
    tree = {f"train/cat/{i}.png": data for i, data in enumerate(files)}
    source = sources.open_split(write_folder(tmp_path, tree), "train")
    for _ in range(2):  # said once
        survey.warn_of_conversions(
            source, "DATA", channels=channels, has_background=has_background
        )
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("files", "options", "says"),
    [
        ([CLEAR, COLOUR, CLEAR], {}, "of 3 images looked at, 2 have transparency"),
        (
            [COLOUR, GREY],
            {"channels": 1},
            "of 2 images looked at, 1 are stored in colo",
        ),
        (
            [GREY, GREY],
            {},
            "of 2 images looked at, all are gray: config.task.channels=3",
        ),
        ([GREY_PALETTE], {}, "all are gray"),
        ([deep(4095), deep(9)], {"channels": 1}, "those of 16 bits reach only 4,095"),
    ],
)
def test_a_conversion_is_counted_and_said_once(tmp_path, caplog, files, options, says):
    [message] = warnings_of(tmp_path, caplog, files, **options)
    assert message.startswith("'DATA': of") and says in message


@pytest.mark.parametrize(
    ("files", "options"),
    [
        ([COLOUR, GREY], {}),  # ImageNet has some grey ones
        ([GREY, GREY_PALETTE], {"channels": 1}),
        ([CLEAR, COLOUR], {"has_background": True}),
        ([deep(4095), deep(65535)], {"channels": 1}),
        ([b"no image"], {}),
    ],
)
def test_data_that_fits_is_not_warned_of(tmp_path, caplog, files, options):
    assert warnings_of(tmp_path, caplog, files, **options) == []


@pytest.mark.parametrize(("channels", "says"), [(1, None), (3, "all are gray")])
def test_arrays_are_looked_at_as_well(tmp_path, caplog, channels, says):
    source = sources.open_split(write_npz(tmp_path), "train")
    survey.warn_of_conversions(source, "DATA", channels=channels, has_background=False)
    assert (says in caplog.text) if says else not caplog.text


def test_of_much_data_a_part_is_looked_at():
    class Counting:
        seen: list[int] = []

        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            self.seen.append(index)
            return {"image": GREY}

    source = Counting()
    assert len(survey.sample(source)) == len(source.seen) == survey.SAMPLE
    assert source.seen[0] == 0 and source.seen[-1] == 10**9 - 1
