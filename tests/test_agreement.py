"""Two processes of which one fails: both learn of it, and neither waits for ever."""

import json
import socket

import processes
import pytest

import attn_jax.agreement as agreement


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """{what was tried: [report of process 0, report of the faulty process 1]}."""
    workdir = tmp_path_factory.mktemp("faulty")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = "tests/faulty_processes.py"
    group = [processes.start(script, workdir, address, 2, i) for i in range(2)]
    try:
        ends = [processes.finish(process, timeout=120) for process in group]
    finally:
        for process in group:
            process.kill()
    for code, _, err in ends:
        assert code == 0, err
    lines = [
        [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        for _, out, _ in ends
    ]
    return workdir, list(zip(*lines, strict=True))


SAVED = [[1], [1], [3, 1], [3, 1], [5, 3, 1]]
FAILED = "could not be saved in"


def test_a_save_that_fails_on_one_process_fails_on_both_and_the_next_one_works(reports):
    _, pairs = reports
    for pair, steps in zip(pairs, SAVED, strict=False):
        for report in pair:
            assert report["steps"] == steps
            failed = report["what"] in ("full disk", "failing write")
            assert (FAILED in str(report["outcome"])) == failed == bool(report["said"])
            assert report["seconds"] < 20  # orbax alone waits for 20 minutes


def test_the_process_that_failed_says_why_and_the_other_that_it_was_another(reports):
    _, pairs = reports
    for at, why in ((1, "only 10 bytes are free"), (3, "File too large")):
        healthy, faulty = pairs[at]
        assert "another process could not write" in healthy["said"][0]
        assert why in faulty["said"][0]


def test_trouble_with_the_storage_of_one_process_ends_both_and_moves_nothing(reports):
    _, pairs = reports
    assert [report["outcome"] for report in pairs[5]] == [5, 5]
    healthy, faulty = pairs[6]
    assert "another process cannot read it" in healthy["outcome"]
    assert "Nothing was changed" in faulty["outcome"]
    assert healthy["steps"] == faulty["steps"] == [5, 3, 1]


def test_damage_that_one_process_sees_makes_both_take_the_older_checkpoint(reports):
    workdir, pairs = reports
    assert [report["outcome"] for report in pairs[7]] == [3, 3]
    assert [report["steps"] for report in pairs[7]] == [[3, 1], [3, 1]]
    assert len(list((workdir / "damaged").iterdir())) == 1
    assert [report["steps"] for report in pairs[8]] == [[5, 3, 1]] * 2


def test_with_one_process_everything_is_its_own_decision():
    assert agreement.max_over_processes(3) == 3
    assert agreement.broadcast_from_first([2, 1]) == [2, 1]
    assert agreement.all_succeeded(True) and not agreement.all_succeeded(False)
    agreement.raise_together(None, "elsewhere")
    with pytest.raises(KeyError):
        agreement.raise_together(KeyError(), "elsewhere")
