"""Small sets of labelled images in every form that `sources.open_split` reads."""

import gzip
import io
import zipfile

import numpy as np
from PIL import Image

from attn_jax.data import decoding

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
        int(decoding.decode(r["image"], 3, name=r["name"])[0, 0, 0])
        for r in (source[i] for i in range(len(source)))
    ]


def targets(source) -> list[int]:
    return [source[i]["label"] for i in range(len(source))]


FORMS = ("folder", "zip", "stored zip", "zip with a top folder")


def write_form(root, form, tree=TREE):
    """The tree in one of `FORMS`."""
    if form == "folder":
        return write_folder(root, tree)
    if form == "stored zip":
        return write_zip(root, tree, compression=zipfile.ZIP_STORED)
    return write_zip(root, tree, top="cats/" if "top" in form else "")
