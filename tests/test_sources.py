"""`open_split`: splits, holdout, corrupt images, and what it refuses for every kind of data."""

import logging
import pathlib

import numpy as np
import pytest
from trees import (
    FORMS,
    TREE,
    png,
    targets,
    values,
    write_folder,
    write_form,
    write_npz,
    write_zip,
)

from attn_jax.data import decoding, sources


@pytest.fixture(params=FORMS)
def tree(request, tmp_path):
    """TREE in each of the forms that hold it."""
    return write_form(tmp_path, request.param)


# --- embedded digits and holdout ------------------------------------------------------


def test_digits_split_into_disjoint_stratified_parts():
    parts = {s: sources.open_split("digits", s, holdout=180) for s in sources.SPLITS}
    assert [len(parts[s]) for s in sources.SPLITS] == [1257, 180, 360]
    for source in parts.values():
        counts = np.bincount(targets(source), minlength=10)
        assert counts.max() - counts.min() <= 0.1 * len(source) / 10 + 1
    whole = sources.open_split("digits", "train")
    assert len(whole) == 1437
    pixels = [
        source[i]["image"].tobytes()
        for source in (parts["train"], parts["validation"])
        for i in range(len(source))
    ]
    assert sorted(pixels) == sorted(whole[i]["image"].tobytes() for i in range(1437))


def test_digits_are_the_split_that_scikit_learn_makes():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    rest_x, test_x, rest_y, test_y = train_test_split(
        x, y, test_size=360, random_state=0, stratify=y
    )
    _, held_x, _, held_y = train_test_split(
        rest_x, rest_y, test_size=180, random_state=0, stratify=rest_y
    )
    for split, pixels, labels in (
        ("test", test_x, test_y),
        ("validation", held_x, held_y),
    ):
        source = sources.open_split("digits", split, holdout=180)
        assert targets(source) == labels.tolist()
        expected = np.round(pixels[17].reshape(8, 8, 1) * (255 / 16))
        np.testing.assert_array_equal(source[17]["image"], expected)
    assert source.labels == tuple("0123456789")
    assert source[0]["image"].dtype == np.uint8 and int(test_x.max()) == 16


def test_fewer_examples_are_a_stratified_part_of_the_training_split():
    whole = sources.open_split("digits", "train", holdout=180)
    few = sources.open_split("digits", "train", holdout=180, examples=100)
    assert len(few) == 100
    images = {whole[i]["image"].tobytes() for i in range(len(whole))}
    assert {few[i]["image"].tobytes() for i in range(100)} <= images
    share = np.bincount(few.targets) / 100
    np.testing.assert_allclose(
        share, np.bincount(whole.targets) / len(whole), atol=0.02
    )
    assert few.fingerprint() != whole.fingerprint()
    for split in ("validation", "test"):  # these stay whole
        part = sources.open_split("digits", split, holdout=180, examples=100)
        assert len(part) == len(sources.open_split("digits", split, holdout=180))
    assert (
        len(sources.open_split("digits", "train", holdout=180, examples=1257)) == 1257
    )


@pytest.mark.parametrize("examples", [0, -3, 1258])
def test_examples_that_are_not_there_are_refused(examples):
    with pytest.raises(
        ValueError, match="has 1,257 training examples; set config.task"
    ):
        sources.open_split("digits", "train", holdout=180, examples=examples)


def test_the_holdout_is_the_same_in_every_run(tmp_path):
    path = write_npz(tmp_path)
    first, second = (
        sources.open_split(path, "validation", holdout=4) for _ in range(2)
    )
    assert first.fingerprint() == second.fingerprint() and len(first) == 4
    other = sources.open_split(path, "train", holdout=4)
    assert len(other) == 7 and other.fingerprint() != first.fingerprint()


def test_a_record_in_memory_cannot_be_overwritten(tmp_path):
    source = sources.open_split("digits", "test")
    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][:] = 0


# --- corrupt images -------------------------------------------------------------------

BROKEN = TREE | {"train/cat/b.PNG": b"", "train/dog/a.png": png(2)[:-30]}


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_corrupt_images_are_left_out_named_and_counted(tmp_path, write, caplog):
    with caplog.at_level(logging.WARNING):
        source = sources.open_split(write(tmp_path, BROKEN), "train", corrupt="skip")
    assert values(source) == [0, 3] and source.skipped == 2
    assert "train/cat/b.PNG (0 bytes) cannot be decoded" in caplog.text
    assert "train/dog/a.png" in caplog.text
    assert targets(source) == [0, 1]


def test_skipping_finds_nothing_in_good_data(tree, tmp_path):
    source = sources.open_split(tree, "train", corrupt="skip")
    assert source.skipped == 0
    assert source.fingerprint() == sources.open_split(tree, "train").fingerprint()
    assert len(sources.open_split("digits", "test", corrupt="skip")) == 360


def test_the_count_of_skipped_images_outlives_the_holdout(tmp_path):
    more = {f"train/{c}/{i}.png": png(9) for c in ("cat", "dog") for i in range(3)}
    tree = {k: v for k, v in (BROKEN | more).items() if not k.startswith("val/")}
    path = write_folder(tmp_path, tree)
    source = sources.open_split(path, "train", holdout=2, corrupt="skip")
    assert source.skipped == 2 and len(source) == 6
    assert sorted(source.targets) == sorted(targets(source))


def test_reading_a_corrupt_image_names_it_and_the_remedy(tmp_path):
    record = sources.open_split(write_folder(tmp_path, BROKEN), "train")[1]
    with pytest.raises(ValueError, match=r"b\.PNG .*config\.task\.corrupt='skip'"):
        decoding.decode(record["image"], 3, name=record["name"])


# --- errors ---------------------------------------------------------------------------


def test_an_index_past_the_end_is_an_index_error(tree):
    for data in (tree, "digits"):
        source = sources.open_split(data, "test")
        with pytest.raises(IndexError):
            source[len(source)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(split="dev"), "split='dev' must be one of 'train', 'validation', 'test'"),
        (
            dict(split="test", corrupt="drop"),
            "corrupt='drop' must be 'error' or 'skip'",
        ),
        (dict(split="train", holdout=-1), "holdout=-1 must be 0 or a number"),
        (dict(split="validation"), "no validation split. Set config.task.holdout"),
        (dict(split="train", holdout=9), r"holdout=9 of 1437 .* in 10 classes"),
        (dict(split="train", holdout=1430), "Change config.task.holdout"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        sources.open_split("digits", **arguments)


def test_a_holdout_beside_a_validation_split_is_refused(tree):
    with pytest.raises(ValueError, match="has a validation split of its own. Set conf"):
        sources.open_split(tree, "test", holdout=2)


@pytest.mark.parametrize("data", ["no/such/path.npz", "mnist", "x" * 5000, "a\0b"])
def test_data_that_does_not_exist_is_refused_and_a_relative_path_says_from_where(data):
    words = rf"does not exist \(relative to {pathlib.Path.cwd()}; an absolute path"
    with pytest.raises(ValueError, match=words) as error:
        sources.open_split(data, "train")
    assert "Set config.task.data" in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "config.task.data is empty. Set config.task.data to 'digits'"),
        ("/no/such/path", "'/no/such/path' does not exist. Set config.task.data"),
        ("~nobody-of-this-name/x", "there is no such user's home; write it in full"),
    ],
)
def test_data_that_does_not_exist_is_refused(data, says):
    with pytest.raises(ValueError, match=says):
        sources.open_split(data, "train")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "set.txt").write_text("1,2")
    with pytest.raises(ValueError, match="expected an .npz, .zip or idx file, a table"):
        sources.open_split(str(tmp_path / "set.txt"), "train")


def test_a_class_with_one_example_cannot_be_held_out(tmp_path):
    path = write_npz(tmp_path, y_train=np.array([5] + [0, 1] * 5))
    with pytest.raises(ValueError, match="the rarest has 1.: every class needs two"):
        sources.open_split(path, "train", holdout=4)


# --- real data ------------------------------------------------------------------------


def test_the_official_mnist_test_files_equal_the_npz(shared):
    idx_source = sources.open_split(str(shared / "data/mnist"), "test")
    npz_source = sources.open_split(str(shared / "data/mnist/mnist.npz"), "test")
    assert len(idx_source) == 10_000
    assert idx_source.fingerprint() == npz_source.fingerprint()


def test_cifar_in_a_zip_has_ten_classes_of_small_colour_images(shared):
    path = str(shared / "data/cifar10/cifar10_jpeg_folder.zip")
    source = sources.open_split(path, "validation", holdout=500)
    assert np.bincount(source.targets).tolist() == [50] * 10
    assert source.labels[3] == "cat"
    record = source[0]
    assert decoding.decode(record["image"], 3, name=record["name"]).shape == (32, 32, 3)
    assert f"/{source.labels[record['label']]}/" in record["name"]
