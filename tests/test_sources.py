"""Every kind of data behind `load`: what it reads, what it refuses, and in which words."""

import concurrent.futures
import gzip
import io
import logging
import pathlib
import pickle
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
from PIL import Image

from attn_jax.data import images, sources
from attn_jax.tasks.classify import Classify

PIXELS = np.arange(11 * 5 * 7, dtype=np.uint16).astype(np.uint8).reshape(11, 5, 7)
LABELS = np.arange(11) % 3


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 3), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


# Values count up in the order of listing, so that a record tells its place.
TREE = {
    "train/cat/a.png": png(0),
    "train/cat/b.PNG": png(1),
    "train/dog/a.png": png(2),
    "train/dog/b.png": png(3),
    "train/dog/notes.txt": b"ignored",
    "val/dog/a.png": png(4),
    "test/cat/a.png": png(5),
    "README.txt": b"ignored",
}


def write_folder(root, tree=TREE):
    for name, data in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root)


def write_zip(root, tree=TREE, top="", compression=zipfile.ZIP_DEFLATED):
    path = root / "images.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in tree.items():
            archive.writestr(top + name, data)
    return str(path)


def write_npz(root, **changes):
    path = root / "set.npz"
    x, y = PIXELS, LABELS
    content = dict(x_train=x, y_train=y, x_test=x[:4], y_test=y[:4]) | changes
    np.savez(path, **{k: v for k, v in content.items() if v is not None})
    return str(path)


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim])
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + sizes + array.astype(np.uint8).tobytes()


def write_idx(root, split="t10k", packed=False, **changes):
    content = dict(images=idx(PIXELS), labels=idx(LABELS)) | changes
    for number, kind in ((3, "images"), (1, "labels")):
        name = f"{split}-{kind}-idx{number}-ubyte" + (".gz" if packed else "")
        data = content[kind]
        (root / name).write_bytes(gzip.compress(data) if packed else data)
    return str(root)


def values(source) -> list[int]:
    return [
        int(images.decode(r["image"], 3, name=r["name"])[0, 0, 0])
        for r in (source[i] for i in range(len(source)))
    ]


def targets(source) -> list[int]:
    return [source[i]["label"] for i in range(len(source))]


# --- embedded digits and holdout ------------------------------------------------------


def test_digits_split_into_disjoint_stratified_parts():
    parts = {s: sources.load("digits", s, holdout=180) for s in sources.SPLITS}
    assert [len(parts[s]) for s in sources.SPLITS] == [1257, 180, 360]
    for source in parts.values():
        counts = np.bincount(targets(source), minlength=10)
        assert counts.max() - counts.min() <= 0.1 * len(source) / 10 + 1
    whole = sources.load("digits", "train")
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
        source = sources.load("digits", split, holdout=180)
        assert targets(source) == labels.tolist()
        expected = np.round(pixels[17].reshape(8, 8, 1) * (255 / 16))
        np.testing.assert_array_equal(source[17]["image"], expected)
    assert source.labels == tuple("0123456789")
    assert source[0]["image"].dtype == np.uint8 and int(test_x.max()) == 16


def test_fewer_examples_are_a_stratified_part_of_the_training_split():
    whole = sources.load("digits", "train", holdout=180)
    few = sources.load("digits", "train", holdout=180, examples=100)
    assert len(few) == 100
    images = {whole[i]["image"].tobytes() for i in range(len(whole))}
    assert {few[i]["image"].tobytes() for i in range(100)} <= images
    share = np.bincount(few.targets) / 100
    np.testing.assert_allclose(
        share, np.bincount(whole.targets) / len(whole), atol=0.02
    )
    assert few.fingerprint() != whole.fingerprint()
    for split in ("validation", "test"):  # these stay whole
        part = sources.load("digits", split, holdout=180, examples=100)
        assert len(part) == len(sources.load("digits", split, holdout=180))
    assert len(sources.load("digits", "train", holdout=180, examples=1257)) == 1257


@pytest.mark.parametrize("examples", [0, -3, 1258])
def test_examples_that_are_not_there_are_refused(examples):
    with pytest.raises(
        ValueError, match="has 1,257 training examples; set config.task"
    ):
        sources.load("digits", "train", holdout=180, examples=examples)


def test_the_holdout_is_the_same_in_every_run(tmp_path):
    path = write_npz(tmp_path)
    first, second = (sources.load(path, "validation", holdout=4) for _ in range(2))
    assert first.fingerprint() == second.fingerprint() and len(first) == 4
    other = sources.load(path, "train", holdout=4)
    assert len(other) == 7 and other.fingerprint() != first.fingerprint()


def test_a_record_in_memory_cannot_be_overwritten(tmp_path):
    source = sources.load("digits", "test")
    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][:] = 0


# --- npz and idx ----------------------------------------------------------------------


def test_an_npz_gives_its_splits(tmp_path):
    source = sources.load(write_npz(tmp_path), "test")
    assert len(source) == 4 and source.labels is None
    np.testing.assert_array_equal(source[3]["image"], PIXELS[3, :, :, None])
    assert targets(source) == LABELS[:4].tolist()


def test_an_npz_may_hold_colour_its_own_validation_and_a_column_of_labels(tmp_path):
    colour = np.repeat(PIXELS[..., None], 3, axis=3)
    path = write_npz(tmp_path, x_validation=colour, y_validation=LABELS[:, None])
    source = sources.load(path, "validation")
    np.testing.assert_array_equal(source[2]["image"], colour[2])
    assert targets(source) == LABELS.tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_found_by_folder_or_by_one_of_them(tmp_path, packed):
    folder = write_idx(tmp_path, packed=packed)
    one = f"{folder}/t10k-labels-idx1-ubyte" + (".gz" if packed else "")
    for data in (folder, one):
        source = sources.load(data, "test")
        np.testing.assert_array_equal(source[10]["image"], PIXELS[10, :, :, None])
        assert targets(source) == LABELS.tolist()


def test_the_digest_of_arrays_follows_their_content(tmp_path):
    digests = set()
    for name, change in (("a", 0), ("b", 1), ("c", 0)):
        folder = tmp_path / name
        folder.mkdir()
        path = write_npz(folder, x_train=PIXELS + np.uint8(change))
        digests.add(sources.load(path, "train").fingerprint())
    assert len(digests) == 2


# --- folders and zips -----------------------------------------------------------------


@pytest.fixture(params=["folder", "zip", "stored zip", "zip with a top folder"])
def tree(request, tmp_path):
    """TREE in each of the forms that hold it."""
    if request.param == "folder":
        return write_folder(tmp_path)
    if request.param == "stored zip":
        return write_zip(tmp_path, compression=zipfile.ZIP_STORED)
    return write_zip(tmp_path, top="cats/" if "top" in request.param else "")


def test_classes_and_files_come_in_sorted_order(tree):
    train = sources.load(tree, "train")
    assert values(train) == [0, 1, 2, 3] and targets(train) == [0, 0, 1, 1]
    assert train.labels == ("cat", "dog") and train.skipped == 0
    assert train[1]["name"].endswith("train/cat/b.PNG")


def test_labels_are_numbered_by_the_training_split(tree):
    validation = sources.load(tree, "validation")  # named val, and without cats
    assert values(validation) == [4] and targets(validation) == [1]
    assert validation.labels == ("cat", "dog")
    assert values(sources.load(tree, "test")) == [5]


def test_a_pickled_source_reads_the_same_records_in_several_threads(tree):
    source = pickle.loads(pickle.dumps(sources.load(tree, "train")))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        records = list(threads.map(lambda i: source[i % 4], range(200)))
    assert all(records[i] == source[i % 4] for i in range(200))


def test_the_digest_of_files_follows_name_and_size(tmp_path):
    digests = []
    for i, change in enumerate(
        ({}, {}, {"train/cat/a.png": png(0) + b"!"}, {"train/cat/c.png": png(0)})
    ):
        folder = tmp_path / str(i)
        folder.mkdir()
        data = (
            write_folder(folder / "tree", TREE | change),
            write_zip(folder, TREE | change),
        )
        digests.append([sources.load(d, "train").fingerprint() for d in data])
    for a, b, c, d in zip(*digests, strict=True):
        assert a == b and len({a, c, d}) == 3


# --- corrupt images -------------------------------------------------------------------

BROKEN = TREE | {"train/cat/b.PNG": b"", "train/dog/a.png": png(2)[:-30]}


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_corrupt_images_are_left_out_named_and_counted(tmp_path, write, caplog):
    with caplog.at_level(logging.WARNING):
        source = sources.load(write(tmp_path, BROKEN), "train", corrupt="skip")
    assert values(source) == [0, 3] and source.skipped == 2
    assert "train/cat/b.PNG (0 bytes) cannot be decoded" in caplog.text
    assert "train/dog/a.png" in caplog.text
    assert targets(source) == [0, 1]


def test_skipping_finds_nothing_in_good_data(tree, tmp_path):
    source = sources.load(tree, "train", corrupt="skip")
    assert source.skipped == 0
    assert source.fingerprint() == sources.load(tree, "train").fingerprint()
    assert len(sources.load("digits", "test", corrupt="skip")) == 360


def test_the_count_of_skipped_images_outlives_the_holdout(tmp_path):
    more = {f"train/{c}/{i}.png": png(9) for c in ("cat", "dog") for i in range(3)}
    tree = {k: v for k, v in (BROKEN | more).items() if not k.startswith("val/")}
    path = write_folder(tmp_path, tree)
    source = sources.load(path, "train", holdout=2, corrupt="skip")
    assert source.skipped == 2 and len(source) == 6
    assert sorted(source.targets) == sorted(targets(source))


def test_reading_a_corrupt_image_names_it_and_the_remedy(tmp_path):
    record = sources.load(write_folder(tmp_path, BROKEN), "train")[1]
    with pytest.raises(ValueError, match=r"b\.PNG .*config\.task\.corrupt='skip'"):
        images.decode(record["image"], 3, name=record["name"])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_member_is_refused_by_name(tmp_path, compression):
    path = write_zip(tmp_path, compression=compression)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("train/cat/a.png").header_offset
    with open(path, "r+b") as file:
        file.seek(start + 30 + len("train/cat/a.png") + 20)
        file.write(b"\xff\xff\xff")
    source = sources.load(path, "train")
    with pytest.raises(ValueError, match=r"cat/a\.png is damaged .*corrupt='skip'"):
        source[0]
    assert values(sources.load(path, "train", corrupt="skip")) == [1, 2, 3]


# --- errors ---------------------------------------------------------------------------


def test_an_index_past_the_end_is_an_index_error(tree):
    for data in (tree, "digits"):
        source = sources.load(data, "test")
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
        sources.load("digits", **arguments)


def test_a_holdout_beside_a_validation_split_is_refused(tree):
    with pytest.raises(ValueError, match="has a validation split of its own. Set conf"):
        sources.load(tree, "test", holdout=2)


@pytest.mark.parametrize("data", ["", "no/such/path.npz", "mnist"])
def test_data_that_does_not_exist_is_refused(data):
    with pytest.raises(
        ValueError, match=f"'{data}' does not exist. Set config.task.da"
    ):
        sources.load(data, "train")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "set.csv").write_text("1,2")
    with pytest.raises(
        ValueError, match="expected an .npz, .zip or idx file, or a fold"
    ):
        sources.load(str(tmp_path / "set.csv"), "train")


def test_a_class_with_one_example_cannot_be_held_out(tmp_path):
    path = write_npz(tmp_path, y_train=np.array([5] + [0, 1] * 5))
    with pytest.raises(ValueError, match="the rarest has 1.: every class needs two"):
        sources.load(path, "train", holdout=4)


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
        (dict(y_train=np.array([None] * 11)), "cannot read x_train, y_train: Object"),
    ],
)
def test_a_malformed_npz_is_refused(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        sources.load(write_npz(tmp_path, **changes), "train")


def test_an_npz_with_other_keys_or_none_is_refused(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, pictures=PIXELS)
    with pytest.raises(
        ValueError, match=r"holds the keys \['pictures'\]; it must hold"
    ):
        sources.load(str(path), "train")
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="set.npz is no readable .npz file"):
        sources.load(str(path), "train")


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
        (dict(labels=idx(LABELS[:-1])), "holds 11 images, .* 10 labels; they must be"),
        (dict(images=idx(PIXELS[:0]), labels=idx(LABELS[:0])), "and not none"),
    ],
)
def test_a_malformed_idx_file_is_refused(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        sources.load(write_idx(tmp_path, **changes), "test")


def test_a_cut_gzip_and_a_missing_sibling_are_refused(tmp_path):
    write_idx(tmp_path, packed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="images-idx3-ubyte.gz is no whole gzip file"):
        sources.load(str(tmp_path), "test")
    with pytest.raises(ValueError, match="has no split 'train'; it has: test"):
        sources.load(str(tmp_path), "train")
    path.unlink()
    with pytest.raises(ValueError, match="the test split has no idx file of images"):
        sources.load(str(tmp_path), "test")


@pytest.mark.parametrize("write", [write_folder, write_zip])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"validation/cat/a.png": png(0)}, "two names of one split. Remove or rename"),
        ({"train/bird/a.txt": b""}, "bird holds no image .* or remove the folder"),
        (
            {"val/bird/a.png": png(0)},
            "holds classes that the training split lacks: bird",
        ),
    ],
)
def test_a_malformed_tree_is_refused(tmp_path, write, changes, says):
    path = write(tmp_path, TREE | changes)
    with pytest.raises(ValueError, match=says):
        sources.load(path, "train")
        sources.load(path, "validation")


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({}, "holds nothing; expected SPLIT/CLASS/IMAGE"),
        (
            {"cat/a.png": png(0)},
            r"holds cat.*; expected SPLIT/CLASS/IMAGE with SPLIT one",
        ),
        ({"test/cat/a.png": png(0)}, "has no split 'train'; it has: test"),
        ({"train/cat/a.png": b""}, "none of 1 images can be decoded. Check the files"),
    ],
)
@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_a_tree_without_readable_training_images_is_refused(
    tmp_path, write, tree, says
):
    with pytest.raises(ValueError, match=says):
        sources.load(write(tmp_path, tree), "train", corrupt="skip")


def test_a_split_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.png").write_bytes(png(0))
    with pytest.raises(
        ValueError, match="train holds no class folder; expected SPLIT/"
    ):
        sources.load(str(tmp_path), "train")


def test_a_zip_that_is_none_or_packed_otherwise_is_refused(tmp_path):
    path = write_zip(tmp_path, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match="packed by method 12; members must be stored"):
        sources.load(path, "train")
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="images.zip is no whole zip file"):
        sources.load(path, "train")


# --- TensorFlow Datasets --------------------------------------------------------------

# In a process of its own, in which TensorFlow cannot be imported even if installed.
PRELUDE = """
import importlib.abc, importlib.util, io, pickle, sys
class NoTensorFlow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tensorflow":
            raise ModuleNotFoundError("No module named 'tensorflow'", name=name)
sys.meta_path.insert(0, NoTensorFlow())
real = importlib.util.find_spec  # etils asks it
importlib.util.find_spec = lambda name, *a: None if name == "tensorflow" else real(name, *a)
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from attn_jax.data import images, sources
from attn_jax.tasks.classify import Classify

class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES = dict(
        image=tfds.features.Image(shape=(None, None, 3)),
        label=tfds.features.ClassLabel(names=["cat", "dog"]),
    )
    name = "tiny"
    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.FEATURES))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(3)}
    def _generate_examples(self, n):
        for i in range(n):
            file = io.BytesIO()
            Image.new("RGB", (5, 3), (i, 0, 0)).save(file, "PNG")
            record = dict(image=file.getvalue(), label=i % 2)
            yield i, {k: v for k, v in record.items() if k in self.FEATURES}

def refusal(data, split="train"):
    try:
        sources.load(data, split)
    except ValueError as error:
        return str(error)
"""


def run_without_tensorflow(script: str, folder):
    script = PRELUDE + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=pathlib.Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_catalogue_set_prepared_without_tensorflow_is_read_without_it(tmp_path):
    run_without_tensorflow(
        """
        folder = sys.argv[1]
        Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
        data = f"tfds:tiny@{folder}"
        test = sources.load(data, "test")
        assert len(test) == 3 and test.labels == ("cat", "dog")
        record = test[2]
        assert isinstance(record["image"], bytes) and type(record["label"]) is int
        assert record["name"] == "tfds:tiny/1.0.0 test[2]"
        pixel = images.decode(record["image"], 3)[0, 0, 0]
        assert pixel % 2 == record["label"]
        assert pickle.loads(pickle.dumps(test))[2] == record
        train, held = (sources.load(data, s, holdout=4) for s in ("train", "validation"))
        pixels = [images.decode(s[i]["image"], 3)[0, 0, 0]
                  for s in (train, held) for i in range(len(s))]
        assert len(held) == 4 and sorted(pixels) == list(range(12))
        assert len(sources.load(data, "test", corrupt="skip")) == 3
        assert len({s.fingerprint() for s in (train, held, test)}) == 3
        assert "has no validation split" in refusal(data, "validation")
        try:
            test[3]
        except IndexError:
            pass
        else:
            raise AssertionError("an index past the end was read")
        assert "tensorflow" not in sys.modules
        """,
        tmp_path,
    )


def test_a_catalogue_set_that_is_not_prepared_names_the_command_and_the_extra(tmp_path):
    run_without_tensorflow(
        """
        folder = sys.argv[1]
        error = refusal(f"tfds:mnist@{folder}")
        assert f"tfds:mnist is not prepared in {folder}. " in error, error
        assert "pip install 'attn_jax[tf]'" in error
        assert f"tfds.builder('mnist', data_dir='{folder}', file_format='array_rec" in error
        Tiny.FEATURES = dict(image=Tiny.FEATURES["image"])
        Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
        error = refusal(f"tfds:tiny@{folder}")
        assert "tfds:tiny has no feature 'label'; it has: image." in error, error
        import json, pathlib
        info = pathlib.Path(folder, "tiny/1.0.0/dataset_info.json")
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        error = refusal(f"tfds:tiny@{folder}")
        assert "is prepared as tfrecord, which has no random access" in error, error
        """,
        tmp_path,
    )


# --- real data ------------------------------------------------------------------------


def test_the_official_mnist_test_files_equal_the_npz(shared):
    idx_source = sources.load(str(shared / "data/mnist"), "test")
    npz_source = sources.load(str(shared / "data/mnist/mnist.npz"), "test")
    assert len(idx_source) == 10_000
    assert idx_source.fingerprint() == npz_source.fingerprint()


def test_cifar_in_a_zip_has_ten_classes_of_small_colour_images(shared):
    path = str(shared / "data/cifar10/cifar10_jpeg_folder.zip")
    source = sources.load(path, "validation", holdout=500)
    assert np.bincount(source.targets).tolist() == [50] * 10
    assert source.labels[3] == "cat"
    record = source[0]
    assert images.decode(record["image"], 3, name=record["name"]).shape == (32, 32, 3)
    assert f"/{source.labels[record['label']]}/" in record["name"]


def test_a_label_beyond_the_classes_is_refused_before_and_in_training(tmp_path):
    """It would be an example of no class: nothing to learn, never right."""
    fields = dict(num_classes=10, image_size=8, channels=1)
    path = write_npz(tmp_path, y_train=LABELS + 10)
    with pytest.raises(ValueError, match="labels from 0 to 12, .* to 13"):
        Classify(data=path, **fields).source("train")
    record = {"image": PIXELS[0], "label": 10}
    with pytest.raises(ValueError, match="has the label 10, but .*labels count from 0"):
        Classify(data=path, **fields).example(record, None)
