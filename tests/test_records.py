"""Numbers on disk: damage is dropped, and a failed write does not end the training."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import types

import pytest
from etils import epath

from attn_jax import logs, records
from attn_jax.logs import Log
from attn_jax.records import MetricsFile, TensorBoard, read_records

GOOD = {"step": 5, "seconds": 2.5, "train/loss": 0.5, "test/accuracy": None}


def start(workdir, start_step=0):
    return Log(workdir, start_step=start_step, total_steps=1000, batch_size=8)


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 6, "seco',
        b"\0" * 40,
        b"\xff\xfe",
        b"no JSON",
        b"[6, 1.0]",
        b"6",
        b"[" * 100_000,
        b'{"seconds": 1.0}',
        b'{"step": 6}',
        b'{"step": 6, "seconds": null}',
        b'{"step": "6", "seconds": 1.0}',
        b'{"step": 6.5, "seconds": 1.0}',
        b'{"step": true, "seconds": 1.0}',
        b'{"step": -6, "seconds": 1.0}',
        b'{"step": 6, "seconds": -1.0}',
        b'{"step": 6, "seconds": 1.0, "train/loss": "0.5"}',
        b'{"step": 6, "seconds": 1.0, "train/loss": NaN}',
        b'{"step": 6, "seconds": 1.0, "train/loss": 1e999}',
    ],
)
def test_a_damaged_line_is_dropped_and_said(tmp_path, capsys, line):
    good = json.dumps(GOOD).encode()
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    with start(tmp_path, start_step=10):
        pass
    assert [json.loads(text) for text in file.read_text().splitlines()] == [GOOD] * 2
    said = "WARNING: metrics.jsonl: dropped 1 damaged line(s)\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("text", [None, "", '{"step": 11, "seconds": 1.0}\n'])
def test_a_resumed_run_says_that_its_records_are_lost(tmp_path, capsys, text):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with start(tmp_path, start_step=10):
        pass
    assert "metrics.jsonl has no records up to step 10;" in capsys.readouterr().out
    with start(tmp_path, start_step=0):  # a new run has none
        pass
    assert capsys.readouterr().out == ""


def test_curves_are_drawn_in_spite_of_a_damaged_line(tmp_path):
    good = json.dumps(GOOD)
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n\0\0\0\n{good}\n")
    logs.draw_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_whole_file_is_not_written_again(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(GOOD) + "\n")
    before = file.stat().st_ino
    MetricsFile(epath.Path(file), start_step=10)
    assert file.stat().st_ino == before


class FullDisk:
    """Makes `target.name` raise as on a full disk while `full` is set."""

    def __init__(self, monkeypatch, target, name):
        self.full, original = False, getattr(target, name)

        def write(*arguments, **options):
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **options)

        monkeypatch.setattr(target, name, write)


def test_a_full_disk_is_said_once_and_numbers_go_on_after_it(
    tmp_path, monkeypatch, capsys
):
    disk = FullDisk(monkeypatch, records.json, "dumps")
    with start(tmp_path) as log:
        for step in range(1, 7):
            disk.full = 2 <= step <= 4
            log.write(step, {"train/loss": 1.0}, training=True)
    said = [x for x in capsys.readouterr().out.splitlines() if "WARNING" in x]
    assert said == [
        "WARNING: cannot write metrics.jsonl ([Errno 28] No space left on device); "
        "training continues."
    ]
    found, damaged = read_records(log.workdir / "metrics.jsonl")
    assert ([record["step"] for record in found], damaged) == ([1, 5, 6], 0)


def test_a_line_after_a_torn_one_stands_on_its_own(tmp_path):
    file = MetricsFile(epath.Path(tmp_path / "metrics.jsonl"), start_step=0)
    file.append(GOOD)

    class AlmostFull:
        """A path whose disk takes half of what is written."""

        @contextlib.contextmanager
        def open(self, mode):
            with (tmp_path / "metrics.jsonl").open(mode) as opened:
                yield types.SimpleNamespace(write=lambda text: self.fail(opened, text))

        def fail(self, opened, text):
            opened.write(text[: len(text) // 2])
            raise OSError(errno.ENOSPC, "full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "_path", AlmostFull())
        with pytest.raises(OSError, match="full"):
            file.append(GOOD)
    file.append(GOOD | {"step": 7})
    found, damaged = read_records(epath.Path(tmp_path / "metrics.jsonl"))
    assert ([record["step"] for record in found], damaged) == ([5, 7], 1)


def test_tensorboard_goes_on_in_a_new_file_after_a_full_disk(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, records.RecordWriter, "write")
    monkeypatch.setattr(records, "RETRY_SECONDS", 0.0)
    board = TensorBoard(epath.Path(tmp_path), purge_step=1)
    board.write({"train/before": 1.0}, 1)
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        board.write({"train/lost": 1.0}, 2)
    disk.full = False
    board.write({"train/after": 1.0}, 3)
    board.close()
    texts = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    assert len(texts) == 2
    assert b"train/before" in texts[0] and b"train/after" in texts[1]


def test_curves_that_cannot_be_drawn_are_said(tmp_path, monkeypatch, capsys):
    def fail(workdir):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(logs, "draw_curves", fail)
    with start(tmp_path):
        pass
    said = "WARNING: cannot write curves.png ([Errno 28] full); training continues.\n"
    assert capsys.readouterr().out == said


def test_a_place_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"the workdir .* cannot be written: .*Free some"):
        start(tmp_path)


def test_a_disk_that_is_full_is_refused_at_the_start(tmp_path, monkeypatch):
    # An empty file can be created on it all the same.
    disk = FullDisk(monkeypatch, type(epath.Path(tmp_path)), "write_text")
    disk.full = True
    with pytest.raises(OSError, match=r"cannot be written: .*No space left"):
        start(tmp_path)


TALK = """
import sys
from attn_jax.logs import Log

with Log(sys.argv[1], start_step=0, total_steps=3000, batch_size=8) as log:
    for step in range(1, 3001):
        log.say(f"{sys.argv[2]} {step} " + "x" * 100)
    log.write(3000, {"train/loss": 1.0}, training=True)
print("the end", file=sys.stderr)
"""


def talk(folder, stdout, word="step", **variables):
    return subprocess.Popen(
        [sys.executable, "-c", TALK, str(folder), word],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | variables,
        text=True,
    )


def test_a_reader_of_stdout_that_goes_away_does_not_end_the_run(tmp_path):
    with talk(tmp_path, subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        err = process.stderr.read()
    assert process.returncode == 0, err
    assert err.count("WARNING: cannot write to stdout ([Errno 32] Broken pipe)") == 1
    assert err.endswith("the end\n")
    assert (tmp_path / "curves.png").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_stdout_on_a_full_disk_does_not_end_the_run(tmp_path):
    with open("/dev/full", "w") as full, talk(tmp_path, full) as process:
        err = process.stderr.read()
    assert process.returncode == 0, err
    assert err.count("WARNING: cannot write to stdout ([Errno 28] No space left") == 1


def test_a_name_outside_the_encoding_of_stdout_does_not_end_the_run(tmp_path):
    folder = tmp_path / "Lauf-über-Nacht"
    process = talk(folder, subprocess.PIPE, "über", PYTHONIOENCODING="ascii")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.startswith("\\xfcber 1 x")
    assert (folder / "metrics.jsonl").exists()


def test_a_full_disk_under_tensorboard_does_not_block_the_run(tmp_path, capsys):
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        with start(tmp_path) as log:
            with contextlib.suppress(OSError), (folder / "more").open("wb") as file:
                file.write(bytes(100_000))
            for step in range(1, 2000):
                log.write(step, {"train/loss": 1.0}, training=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert len(read_records(log.workdir / "metrics.jsonl")[0]) == 1999
    said = [x for x in capsys.readouterr().out.splitlines() if "WARNING" in x]
    assert len(said) == 1
    assert "cannot write TensorBoard files ([Errno 28] No space left" in said[0]
