"""Data that a stranger made to do harm: one line each, soon, in little memory.

A process of its own reads all of it, so that its peak memory can be measured and a program
that it starts is seen.
"""

import contextlib
import gzip
import io
import json
import os
import pathlib
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import numpy as np
import pytest
from trees import LABELS, PIXELS, idx, png, write_folder, write_zip

SECONDS, BYTES = 20, 2 * 2**30  # what a case may take
GOOD = {"train/a/0.png": png(0), "train/b/0.png": png(1)}


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def png_of(width, height, *more):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = (b"IDAT", zlib.compress(b"\0" * 100))
    return png_chunks((b"IHDR", header), *more, data, (b"IEND", b""))


ZEROS = zlib.compress(b"\0" * 2**27, 9)
IMAGES = {
    "empty": b"",
    "random": bytes(range(256)) * 20,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage",
    "png of 10^10 pixels": png_of(100_000, 100_000),
    "png of 2^62 pixels": png_of(2**31 - 1, 2**31 - 1),
    "png of 100 million pixels": png_of(10_000, 10_000),
    "png without data": png_chunks((b"IHDR", png_of(8, 8)[16:29]), (b"IEND", b"")),
    "png cut short": png_of(50, 50),
    "png with a text bomb": png_of(8, 8, (b"zTXt", b"a\0\0" + ZEROS)),
    "png with a profile bomb": png_of(8, 8, (b"iCCP", b"a\0\0" + ZEROS)),
    "png with a chunk of 2 GB": png_of(8, 8)[:33] + b"\x7f\xff\xff\xffIDAT",
    "gif of 2^32 pixels": b"GIF89a" + b"\xff" * 4 + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2",
    "bmp of 2^40 pixels": b"BM" + bytes(8) + struct.pack(
        "<IIiiHHIIiiII", 54, 40, 2**20, 2**20, 1, 24, 0, 0, 0, 0, 0, 0
    ),
    "ppm of 10^18 pixels": b"P6 1000000000 1000000000 255\n" + b"\0" * 99,
    "ppm of endless digits": b"P6 " + b"9" * 10_000 + b" 1 255\n",
    "webp of 2^28 pixels": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2,
    "tiff of 2^40 pixels": b"II*\0\x08\0\0\0\x04\0" + b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in [(256, 2**20), (257, 2**20), (258, 8), (262, 1)]
    ) + bytes(4),
    "tiff that leads to itself": b"II*\0\x08\0\0\0\x00\0\x08\0\0\0",
}  # fmt: skip


# --- each builds its data in `root` and returns what config.task.data would be ------------


def pipe(path):
    os.mkfifo(path)
    return str(path)


def link(path, target):
    path.symlink_to(target)
    return str(path)


def listening(path):
    server = socket.socket(socket.AF_UNIX)
    with contextlib.chdir(path.parent):  # the name of a socket must be short
        server.bind(path.name)
    server.close()
    return str(path)


def in_a_class(root, make, *arguments):
    write_folder(root, GOOD)
    make(root / "train/a/1.png", *arguments)
    return str(root)


def written(path, data):
    path.write_bytes(data)
    return str(path)


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def deep_folder(root):
    write_folder(root, GOOD)
    with contextlib.chdir(root / "train/a"):
        for _ in range(500):
            os.mkdir("d")
            os.chdir("d")
    return str(root)


def linked_levels(root):
    """30 folders, each with two links to the next: 2^30 ways down."""
    write_folder(root, GOOD)
    for level in range(30):
        (root / f"train/a/{level}").mkdir()
        for name in "xy":
            (root / f"train/a/{level}/{name}").symlink_to(root / f"train/a/{level + 1}")
    return str(root)


def patched_zip(root, old, new, tree=None):
    path = pathlib.Path(write_zip(root, GOOD if tree is None else tree))
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new))
    return str(path)


def zip_sizes(root, packed, size):
    """A zip whose table of contents tells these sizes of each member."""
    path = pathlib.Path(write_zip(root, GOOD))
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2")
    while at >= 0:
        data[at + 20 : at + 28] = struct.pack("<II", packed, size)
        at = data.find(b"PK\1\2", at + 4)
    return written(path, bytes(data))


def zip_that_lies(root):
    """Members of 128 MB whose size is told as 9 bytes."""
    path = pathlib.Path(write_zip(root, {k: b"\0" * 2**27 for k in GOOD}))
    data = path.read_bytes()
    return written(path, data.replace(struct.pack("<I", 2**27), struct.pack("<I", 9)))


def npz(root, header, data=b"", size=None, version=(1, 0), name="x_train.npy"):
    """An .npz whose x_train has this header."""
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) & 0xFFFF)
    magic = b"\x93NUMPY" + bytes(version)
    labels = io.BytesIO()
    np.save(labels, LABELS)
    path = root / "set.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, magic + length + text + data)
        archive.writestr("y_train.npy", labels.getvalue())
    return str(path)


def header_of(shape, descr="|u1"):
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"


def npz_of(root, **arrays):
    np.savez(root / "set.npz", **arrays)
    return str(root / "set.npz")


def packed_idx(root, images, labels=None):
    written(root / "train-labels-idx1-ubyte", idx(LABELS) if labels is None else labels)
    written(root / "train-images-idx3-ubyte.gz", images)
    return str(root)


def idx_header(*shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


class Run:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self):
        return (os.system, ("touch pickled",))


CASES = {
    "a device": lambda root: "/dev/zero",
    "a relative path upwards": lambda root: "../" * 100,
    "a name of 100 kB": lambda root: "x" * 100_000,
    "a zero byte": lambda root: "a\0b",
    "a link to itself": lambda root: link(root / "set.npz", root / "set.npz"),
    **{
        f"a pipe named {name}": lambda root, name=name: pipe(root / name)
        for name in ("set", "set.npz", "set.zip", "train-images-idx3-ubyte.gz")
    },
    **{
        f"a device named {name}": lambda root, n=name: link(root / n, "/dev/zero")
        for name in ("set.npz", "set.zip", "train-images-idx3-ubyte")
    },
    "idx files that are devices": lambda root: [
        link(root / f"train-{kind}-ubyte", "/dev/zero")
        for kind in ("images-idx3", "labels-idx1")
    ] and str(root),
    "idx labels that are a pipe": lambda root: [
        written(root / "train-images-idx3-ubyte", idx(PIXELS)),
        pipe(root / "train-labels-idx1-ubyte"),
    ] and str(root),
    "a socket": lambda root: listening(root / "set.zip"),
    "a folder named .npz": lambda root: (root / "a.npz").mkdir() or str(root / "a.npz"),
    "a folder named .zip": lambda root: (root / "a.zip").mkdir() or str(root / "a.zip"),
    # folders
    "an image that is a pipe": lambda root: in_a_class(root, pipe),
    "an image that is a socket": lambda root: in_a_class(root, listening),
    "an image that is a device": lambda root: in_a_class(root, link, "/dev/zero"),
    "an image that links nowhere": lambda root: in_a_class(root, link, "nowhere"),
    "an image that links to itself": lambda root: in_a_class(root, link, "1.png"),
    "an image of 1 TB": lambda root: in_a_class(root, sparse, 2**40),
    "a folder that links to its parent": lambda root: (
        write_folder(root, GOOD) and link(root / "train/a/up", root / "train")
        and str(root)
    ),
    "two classes that are one folder": lambda root: (
        write_folder(root, GOOD) and link(root / "train/c", root / "train/a")
        and str(root)
    ),
    "folders 500 deep": deep_folder,
    "folders with 2^30 ways down": linked_levels,
    **{
        f"{name} in a folder": lambda root, data=data: in_a_class(root, written, data)
        for name, data in IMAGES.items()
    },
    "an image named in two lines": lambda root: write_folder(
        root, GOOD | {"train/a/two\nlines.png": b"x"}
    ),
    "an image named in no encoding": lambda root: in_a_class(
        root, lambda path: (path.parent / "\udcff.png").write_bytes(b"x")
    ),
    # zips
    **{
        f"{name} in a zip": lambda root, data=data: write_zip(
            root, GOOD | {"train/a/1.png": data}
        )
        for name, data in IMAGES.items()
    },
    "a zip cut short": lambda root: written(
        root / "set.zip", pathlib.Path(write_zip(root)).read_bytes()[:300]
    ),
    "a zip of zeros": lambda root: written(root / "set.zip", bytes(10_000)),
    "a zip that promises 4 GB": lambda root: zip_sizes(root, 100, 2**32 - 2),
    "a zip packed beyond its end": lambda root: zip_sizes(root, 2**31, 100),
    "a zip of members larger than told": zip_that_lies,
    "a zip of names 10,000 deep": lambda root: write_zip(
        root, {"train/" + "d/" * 10_000 + "a.txt": b""}
    ),
    "a zip with a broken name": lambda root: patched_zip(
        root, b"train/a/0.png", b"train/a/\xff\xfe\0\0\0"
    ),
    # npz
    "an npz of 10^15 pixels": lambda root: npz(root, header_of((10**9, 1000, 1000))),
    "an npz of 1 GB that is not there": lambda root: npz(root, header_of((2**30, 1, 1))),
    "an npz of negative length": lambda root: npz(root, header_of((-1, 5, 7))),
    "an npz of no images of 2^60 pixels": lambda root: npz(
        root, header_of((0, 2**30, 2**30))
    ),
    "an npz of nested brackets": lambda root: npz(root, "(" * 9000),
    "an npz header of 64 kB": lambda root: npz(root, "{" + " " * 65_000 + "}"),
    "an npz of version 9": lambda root: npz(root, header_of((11, 5, 7)), version=(9, 0)),
    "an npz of text": lambda root: npz(root, header_of((11, 5, 7), "<U1000000000")),
    "an npz that promises 4 GB": lambda root: (
        npz_of(root, x_train=PIXELS, y_train=LABELS)
        and zip_of_npz_sizes(root / "set.npz", 2**32 - 2)
    ),
    "an npz of a pickle": lambda root: npz_of(
        root, x_train=np.array([Run()] * 3, object), y_train=np.arange(3)
    ),
    "a pickle named .npz": lambda root: written(
        root / "set.npz", __import__("pickle").dumps(Run())
    ),
    "an npy of 10^15 values named .npz": lambda root: written(
        root / "set.npz", b"\x93NUMPY\1\0v\0" + header_of((10**15,)).encode()
    ),
    "labels of 2^62": lambda root: npz_of(
        root, x_train=PIXELS, y_train=np.full(11, 2**62)
    ),
    # idx
    "an idx of 2^96 pixels": lambda root: packed_idx(
        root, gzip.compress(idx_header(2**32 - 1, 2**32 - 1, 2**32 - 1))
    ),
    "an idx of 1 TB of zeros": lambda root: packed_idx(
        root, gzip.compress(idx_header(2**20, 2**10, 2**10) + bytes(2**20))
    ),
    "an idx that goes on for 128 MB": lambda root: packed_idx(
        root, gzip.compress(idx_header(11, 5, 7) + bytes(2**27))
    ),
    "an idx of 500 MB that are not there": lambda root: packed_idx(
        root, gzip.compress(idx_header(500, 1000, 1000))
    ),
    "a gzip of zeros": lambda root: packed_idx(root, bytes(1000)),
    # catalogue
    "tfds without a name": lambda root: "tfds:",
    "tfds from a device": lambda root: "tfds:mnist@/dev/zero",
    "tfds of 100 kB": lambda root: "tfds:" + "x" * 100_000,
    "tfds upwards": lambda root: "tfds:../../etc/passwd",
}  # fmt: skip

REAL_LABELS = {
    "real labels of a device": lambda root: "/dev/zero",
    "real labels of a pipe": lambda root: pipe(root / "real.json"),
    "real labels 100,000 deep": lambda root: written(
        root / "real.json", b"[" * 100_000 + b"]" * 100_000
    ),
    "a real label of 10,000 digits": lambda root: written(
        root / "real.json", b"[[" + b"9" * 10_000 + b"]]"
    ),
    "real labels of 1 TB": lambda root: sparse(root / "real.json", 2**40),
    "real labels that are no text": lambda root: written(
        root / "real.json", b"\xff\xfe"
    ),
}


def zip_of_npz_sizes(path, size):
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", size)
    return written(path, bytes(data))


# --- the process that reads them ----------------------------------------------------------


def read(name, root):
    from attn_jax.tasks.classify import Classify

    fields = dict(num_classes=2, image_size=8)
    if name in REAL_LABELS:
        path = REAL_LABELS[name](root)
        Classify(
            data="digits", **fields | {"num_classes": 10}, real_labels=path
        ).source("test")
        return
    task = Classify(data=CASES[name](root), **fields)
    source = task.source("train")
    for index in range(len(source)):
        task.example(source[index], None)


def report(root):
    """Prints a JSON object for each case: the error, the time, the peak memory."""

    def give_up(*_):
        raise TimeoutError("too slow")

    started = []
    sys.addaudithook(
        lambda event, _: (
            started.append(event)
            if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
            else None
        )
    )
    import PIL.Image  # what the first case would be charged with

    from attn_jax.tasks import classify  # noqa: F401

    PIL.Image.init()
    signal.signal(signal.SIGALRM, give_up)
    for number, name in enumerate(CASES | REAL_LABELS):
        folder = root / str(number)
        folder.mkdir()
        started.clear()
        error, message, begin = "none", "", time.perf_counter()
        signal.alarm(SECONDS)
        try:
            read(name, folder)
        except BaseException as problem:
            error, message = type(problem).__name__, str(problem)
        signal.alarm(0)
        seconds = time.perf_counter() - begin
        peak = read_peak_memory()
        found = dict(name=name, error=error, message=message, seconds=seconds)
        print(json.dumps(found | dict(peak=peak, started=started)), flush=True)


def read_peak_memory():
    """Bytes, of this program alone: `ru_maxrss` includes the process that started it."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    [line] = [x for x in status.read_text().splitlines() if x.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    here = pathlib.Path(__file__).resolve().parent
    path = os.pathsep.join([str(here.parent), str(here)])
    done = subprocess.run(
        [sys.executable, __file__, str(root)],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=root,
        env=os.environ | {"PYTHONPATH": path},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES | REAL_LABELS), done.stderr[-2000:]
    assert not (root / "pickled").exists()
    return {each["name"]: each for each in found}


@pytest.mark.parametrize("name", CASES | REAL_LABELS)
def test_hostile_data_is_one_line_soon_and_in_little_memory(reports, name):
    found = reports[name]
    assert found["error"] == "ValueError", found
    assert 0 < len(found["message"]) < 1000 and "\n" not in found["message"], found
    assert found["seconds"] < SECONDS and found["peak"] < BYTES, found
    assert not found["started"], found


if __name__ == "__main__":
    report(pathlib.Path(sys.argv[1]))
