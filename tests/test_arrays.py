"""Arrays in .npz and idx files: what is read, what is refused, and in which words."""

import numpy as np
import pytest
from trees import LABELS, PIXELS, idx, targets, write_idx, write_npz

from attn_jax.data import sources


def test_an_npz_gives_its_splits(tmp_path):
    source = sources.open_split(write_npz(tmp_path), "test")
    assert len(source) == 4 and source.labels is None
    np.testing.assert_array_equal(source[3]["image"], PIXELS[3, :, :, None])
    assert targets(source) == LABELS[:4].tolist()


def test_an_npz_may_hold_colour_its_own_validation_and_a_column_of_labels(tmp_path):
    colour = np.repeat(PIXELS[..., None], 3, axis=3)
    path = write_npz(tmp_path, x_validation=colour, y_validation=LABELS[:, None])
    source = sources.open_split(path, "validation")
    np.testing.assert_array_equal(source[2]["image"], colour[2])
    assert targets(source) == LABELS.tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_found_by_folder_or_by_one_of_them(tmp_path, packed):
    folder = write_idx(tmp_path, packed=packed)
    one = f"{folder}/t10k-labels-idx1-ubyte" + (".gz" if packed else "")
    for data in (folder, one):
        source = sources.open_split(data, "test")
        np.testing.assert_array_equal(source[10]["image"], PIXELS[10, :, :, None])
        assert targets(source) == LABELS.tolist()


def test_the_digest_of_arrays_follows_their_content(tmp_path):
    digests = set()
    for name, change in (("a", 0), ("b", 1), ("c", 0)):
        folder = tmp_path / name
        folder.mkdir()
        path = write_npz(folder, x_train=PIXELS + np.uint8(change))
        digests.add(sources.open_split(path, "train").fingerprint())
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(x_train=None, y_train=None), "has no split 'train'; it has: test"),
        (dict(y_train=None), "lacks y_train; a split needs both x_train and y_train"),
        (
            dict(x_train=PIXELS / 255),
            r"x_train is float64 \[11, 5, 7\]; images must be",
        ),
        (dict(x_train=PIXELS[0]), r"x_train is uint8 \[5, 7\]; images must be uint8"),
        (dict(x_train=PIXELS[:0], y_train=LABELS[:0]), "at least one"),
        (dict(y_train=LABELS[:-1]), r"y_train is int64 \[10\] for 11 images"),
        (dict(y_train=LABELS * 1.5), "must be one whole number from 0 up"),
        (dict(y_train=LABELS - 1), "must be one whole number from 0 up"),
        (
            dict(y_train=np.array([None] * 11)),
            "cannot read x_train, y_train: y_train.npy holds Python objects",
        ),
    ],
)
def test_a_malformed_npz_is_refused(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        sources.open_split(write_npz(tmp_path, **changes), "train")


def test_an_npz_with_other_keys_or_none_is_refused(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, pictures=PIXELS)
    with pytest.raises(
        ValueError, match=r"holds the keys \['pictures'\]; it must hold"
    ):
        sources.open_split(str(path), "train")
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="set.npz is no readable .npz file"):
        sources.open_split(str(path), "train")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            dict(images=b"\1\2\3\4" + b"\0" * 30),
            "starts with 0x01020304; an idx file of",
        ),
        (dict(images=b""), "starts with 0x; an idx file"),
        (dict(labels=idx(PIXELS)), "with 1 dimensions starts with 0x00000801"),
        (
            dict(images=idx(PIXELS)[:-1]),
            r"384 bytes of data, its header \[11, 5, 7\] pro",
        ),
        (dict(images=idx(PIXELS) + b"x"), "promises 385. Fetch it again"),
        (dict(labels=idx(LABELS[:-1])), "holds 11 images, .* 10 labels; there must be"),
        (dict(images=idx(PIXELS[:0]), labels=idx(LABELS[:0])), "and at least one"),
    ],
)
def test_a_malformed_idx_file_is_refused(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        sources.open_split(write_idx(tmp_path, **changes), "test")


def test_a_cut_gzip_and_a_missing_sibling_are_refused(tmp_path):
    write_idx(tmp_path, packed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="images-idx3-ubyte.gz is no whole gzip file"):
        sources.open_split(str(tmp_path), "test")
    with pytest.raises(ValueError, match="has no split 'train'; it has: test"):
        sources.open_split(str(tmp_path), "train")
    path.unlink()
    with pytest.raises(ValueError, match="the test split has no idx file of images"):
        sources.open_split(str(tmp_path), "test")


# --- what is read and what is left out --------------------------------------------------


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_every_usual_name_of_the_validation_split_is_known(tmp_path, name):
    path = write_npz(tmp_path, **{f"x_{name}": PIXELS[:2], f"y_{name}": LABELS[:2]})
    assert targets(sources.open_split(path, "validation")) == [0, 1]


def test_two_names_of_one_split_are_refused(tmp_path):
    more = dict(x_val=PIXELS, y_val=LABELS, x_validation=PIXELS, y_validation=LABELS)
    with pytest.raises(
        ValueError, match="both x_validation and x_val, two names of one"
    ):
        sources.open_split(write_npz(tmp_path, **more), "train")


def test_keys_and_files_that_are_not_read_are_named(tmp_path):
    path = write_npz(tmp_path, x_dev=PIXELS, mean=np.float32(3))
    left_out = sources.open_split(path, "train").left_out
    assert left_out == (
        ("mean", "not a key that we read"),
        ("x_dev", "not a key that we read"),
    )
    folder = tmp_path / "idx"
    folder.mkdir()
    write_idx(folder)
    (folder / "train").mkdir()
    left_out = sources.open_split(str(folder), "test").left_out
    assert left_out == (("train", "beside the idx files"),)
