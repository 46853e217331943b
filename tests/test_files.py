"""Images in folders and zips: what is read, what is refused, and in which words."""

import concurrent.futures
import pathlib
import pickle
import zipfile

import pytest
from trees import (
    FORMS,
    TREE,
    png,
    targets,
    values,
    write_folder,
    write_form,
    write_idx,
    write_npz,
    write_zip,
)

from attn_jax.data import sources


@pytest.fixture(params=FORMS)
def tree(request, tmp_path):
    """TREE in each of the forms that hold it."""
    return write_form(tmp_path, request.param)


def test_classes_and_files_come_in_sorted_order(tree):
    train = sources.open_split(tree, "train")
    assert values(train) == [0, 1, 2, 3] and targets(train) == [0, 0, 1, 1]
    assert train.labels == ("cat", "dog") and train.skipped == 0
    assert train[1]["name"].endswith("train/cat/b.PNG")


def test_labels_are_numbered_by_the_training_split(tree):
    validation = sources.open_split(tree, "validation")  # named val, and without cats
    assert values(validation) == [4] and targets(validation) == [1]
    assert validation.labels == ("cat", "dog")
    assert values(sources.open_split(tree, "test")) == [5]


def test_a_pickled_source_reads_the_same_records_in_several_threads(tree):
    source = pickle.loads(pickle.dumps(sources.open_split(tree, "train")))
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
        digests.append([sources.open_split(d, "train").fingerprint() for d in data])
    for a, b, c, d in zip(*digests, strict=True):
        assert a == b and len({a, c, d}) == 3


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_member_is_refused_by_name(tmp_path, compression):
    path = write_zip(tmp_path, compression=compression)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("train/cat/a.png").header_offset
    with open(path, "r+b") as file:
        file.seek(start + 30 + len("train/cat/a.png") + 20)
        file.write(b"\xff\xff\xff")
    source = sources.open_split(path, "train")
    with pytest.raises(ValueError, match=r"cat/a\.png is damaged .*corrupt='skip'"):
        source[0]
    assert values(sources.open_split(path, "train", corrupt="skip")) == [1, 2, 3]


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
        sources.open_split(path, "train")
        sources.open_split(path, "validation")


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({}, "holds nothing; expected CLASS/IMAGE, or SPLIT/"),
        (
            {"cat/a.png": png(0)},
            r"holds cat.*; .* or SPLIT/CLASS/IMAGE with SPLIT one",
        ),
        # Splits of other names are no classes.
        (
            {"learn/cat/a.png": png(0), "hold/cat/a.png": png(0)},
            "; expected CLASS/IMAG",
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
        sources.open_split(write(tmp_path, tree), "train", corrupt="skip")


def test_a_split_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.png").write_bytes(png(0))
    with pytest.raises(
        ValueError, match="train holds no class folder; expected CLASS/"
    ):
        sources.open_split(str(tmp_path), "train")


def test_a_zip_that_is_none_or_packed_otherwise_is_refused(tmp_path):
    path = write_zip(tmp_path, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(
        ValueError, match="compressed by method 12; members must be stored"
    ):
        sources.open_split(path, "train")
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="images.zip is no whole zip file"):
        sources.open_split(path, "train")


# --- what is read and what is left out --------------------------------------------------

DEEP = TREE | {
    "train/cat/2020/may/c.JFIF": png(7),
    "train/cat/2020/notes.heic": b"",
    "train/cat/.a.png": b"",
    "train/.thumbs/a.png": b"",
    "train/loose.png": png(8),
    "other/cat/a.png": png(9),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_below_a_class_folder_are_of_this_class_and_the_rest_is_named(
    tmp_path, form
):
    train = sources.open_split(write_form(tmp_path, form, DEEP), "train")
    assert values(train) == [7, 0, 1, 2, 3] and targets(train) == [0, 0, 0, 1, 1]
    assert train.labels == ("cat", "dog")
    by_reason = {}
    for name, reason in train.left_out:
        by_reason.setdefault(reason, set()).add(name)
    hidden = "train/.thumbs/a.png" if "zip" in form else "train/.thumbs/"
    assert by_reason == {
        "of another suffix": {"train/cat/2020/notes.heic", "train/dog/notes.txt"},
        "hidden": {"train/cat/.a.png", hidden},
        "beside the class folders": {"train/loose.png"},
        "beside the split folders": {"README.txt", "other"},
    }
    told = sources.describe_left_out(train)
    assert "2 of another suffix: train/cat/2020/notes.heic, train/dog/notes.txt" in told
    assert "1 beside the class folders: train/loose.png" in told


def test_what_macos_adds_to_a_zip_is_named_once(tmp_path):
    extra = {f"__MACOSX/train/cat/._{i}.png": b"" for i in range(3)}
    train = sources.open_split(write_zip(tmp_path, TREE | extra), "train")
    assert values(train) == [0, 1, 2, 3]
    assert ("__MACOSX", "beside the split folders") in train.left_out


def test_a_suffix_in_capitals_is_that_suffix(tmp_path):
    path = pathlib.Path(write_zip(tmp_path)).rename(tmp_path / "IMAGES.ZIP")
    assert values(sources.open_split(str(path), "train")) == [0, 1, 2, 3]
    path = pathlib.Path(write_npz(tmp_path)).rename(tmp_path / "SET.NPZ")
    assert len(sources.open_split(str(path), "test")) == 4


@pytest.mark.parametrize("write", [write_folder, write_zip])
@pytest.mark.parametrize("around", ["", "photos/"])
def test_class_folders_without_splits_are_the_training_split(tmp_path, write, around):
    if around and write is write_folder:
        return
    tree = {"cat/a.png": png(1), "dog/b.png": png(2), "dog/.c.png": b"", "d.txt": b""}
    path = write(tmp_path, {around + name: data for name, data in tree.items()})
    source = sources.open_split(path, "train")
    assert source.labels == ("cat", "dog")
    assert [source[i]["label"] for i in range(len(source))] == [0, 1]
    assert source[1]["image"] == png(2)
    assert [reason for _, reason in source.left_out] == [
        "beside the class folders",
        "hidden",
    ]
    with pytest.raises(
        ValueError, match="has no validation split. Set config.task.hol"
    ):
        sources.open_split(path, "validation")


@pytest.mark.parametrize("write", [write_folder, write_zip, write_npz, write_idx])
def test_data_that_has_moved_keeps_its_fingerprint(tmp_path, write, monkeypatch):
    prints = []
    for place in ("here", "there/below"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        path = write(folder)
        prints.append(sources.open_split(path, "test").fingerprint())
    monkeypatch.chdir(tmp_path)
    relative = str(pathlib.Path(path).relative_to(tmp_path))
    prints.append(sources.open_split(relative, "test").fingerprint())
    assert len(set(prints)) == 1


def test_a_folder_that_links_to_images_elsewhere_is_read(tmp_path):
    (tmp_path / "store").mkdir()
    write_folder(tmp_path / "store", {"a.png": png(5), "b.png": png(6)})
    write_folder(tmp_path / "set", {"train/dog/a.png": png(7)})
    (tmp_path / "set/train/cat").symlink_to(tmp_path / "store")
    (tmp_path / "set/train/dog/b.png").symlink_to(tmp_path / "store/b.png")
    assert values(sources.open_split(str(tmp_path / "set"), "train")) == [5, 6, 7, 6]
