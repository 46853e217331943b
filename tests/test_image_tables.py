"""Labeled images that a table lists."""

import numpy as np
import pytest
from PIL import Image

from attn_jax.data import sources


@pytest.fixture
def photos(tmp_path):
    """A folder of six images, each of another gray."""
    (tmp_path / "below").mkdir()
    for i in range(6):
        image = Image.fromarray(np.full((2, 3), 40 * i, np.uint8))
        image.save(tmp_path / ("below" if i % 2 else "") / f"{i}.png")
    return tmp_path


ROWS = ["0.png,cat", "below/1.png,dog", "2.png,cat", "below/3.png,dog"]


def write(path, rows, header="file,label"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def read(source):
    return [(record["name"].rpartition("/")[2], record["label"]) for record in source]


def test_a_table_names_files_and_labels_in_any_order_of_columns(photos):
    rows = [f"{label},ignored,{file}" for file, label in (r.split(",") for r in ROWS)]
    source = sources.open_split(
        write(photos / "all.csv", rows, "label,who,file"), "train"
    )
    assert source.labels == ("cat", "dog")
    assert read(source) == [("0.png", 0), ("1.png", 1), ("2.png", 0), ("3.png", 1)]
    rest = sources.open_split(str(photos / "all.csv"), "train", holdout=2)
    held = sources.open_split(str(photos / "all.csv"), "validation", holdout=2)
    assert sorted(read(rest) + read(held)) == sorted(read(source))


def test_a_folder_of_tables_has_splits_with_the_classes_of_training(photos):
    write(photos / "train.csv", ROWS)
    write(photos / "test.csv", ["4.png,dog"])
    assert sources.list_splits(str(photos)) == ["train", "test"]
    test = sources.open_split(str(photos), "test")
    assert (test.labels, read(test)) == (("cat", "dog"), [("4.png", 1)])


def test_other_labels_are_other_data(photos):
    data = write(photos / "all.csv", ROWS)
    before = sources.open_split(data, "train").fingerprint()
    assert sources.open_split(data, "train").fingerprint() == before
    write(photos / "all.csv", [*ROWS[:3], "below/3.png,cat"])
    assert sources.open_split(data, "train").fingerprint() != before


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ROWS, "path,label", "has no column 'file'; its columns are: path, label"),
        (["9.png,cat", *ROWS], "file,label", "1 row.* file is missing, in line 2: 9.png"),
        ([*ROWS, "a.txt,cat"], "file,label", "no image by its suffix, in line 6: a.txt"),
        ([*ROWS, "4.png,"], "file,label", r"1 row\(s\) without a label, in line 6"),
        ([*ROWS, "4.png"], "file,label", "line 6: 1 columns instead of 2. Correct them.$"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read_is_named(photos, rows, header, message):
    with pytest.raises(ValueError, match=message):
        sources.open_split(write(photos / "all.csv", rows, header), "train")


def test_a_label_that_training_lacks_is_named(photos):
    write(photos / "train.csv", ROWS)
    write(photos / "test.csv", ["4.png,bird"])
    with pytest.raises(ValueError, match="train.csv lacks, in line 2: bird"):
        sources.open_split(str(photos), "test")
