"""Files of a stranger: each ends in one ValueError, quickly and without memory."""

import json
import os
import pathlib
import resource
import shutil
import struct
import time
import zipfile

import numpy as np
import pytest

from attn_jax.convert import load_pretrained

GOLDEN = pathlib.Path(__file__).parent / "golden"
BERT = GOLDEN / "bert" / "hf" / "pretraining"
VIT = GOLDEN / "vit" / "hf" / "classification"
TIMM = GOLDEN / "vit" / "timm" / "map_pool.safetensors"
NPZ = GOLDEN / "vit" / "google" / "token_ckpt.npz"

# The limits of the design are 2 GB for the process, and 20 s a file. A file here is of a few
# kilobytes: what it costs beyond that is what its lies cost.
SECONDS, BYTES = 5, 2**29


def refused(path, message):
    """Loads what must be refused, and checks the message, the time and the memory."""
    memory, start = peak_bytes(), time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(path)
    assert time.monotonic() - start < SECONDS
    assert peak_bytes() - memory < BYTES
    first, *table = str(error.value).splitlines()
    assert len(first) < 1000
    assert all(line.startswith("  ") for line in table)


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- configurations ---------------------------------------------------------------------


BAD_NUMBERS = [
    "1e309", "-1e309", "NaN", "1" + "0" * 400, "9" * 5000, '"12"', "null", "-1", "0",
    "true", "1.5", "[]", "{}", "1000000000",
]  # fmt: skip


def with_entry(source, folder, key, text):
    """A folder whose config.json has this text as the value of a key."""
    shutil.copy(source / "model.safetensors", folder)
    config = json.loads((source / "config.json").read_text())
    config.pop(key, None)
    body = json.dumps(config)[1:]
    (folder / "config.json").write_text(f'{{"{key}": {text}, {body}')
    return folder


@pytest.mark.parametrize("text", BAD_NUMBERS, ids=lambda text: text[:8])
@pytest.mark.parametrize(
    ("source", "key"),
    [
        (BERT, "hidden_size"),
        (BERT, "num_hidden_layers"),
        (BERT, "num_attention_heads"),
        (BERT, "vocab_size"),
        (BERT, "max_position_embeddings"),
        (VIT, "hidden_size"),
        (VIT, "num_hidden_layers"),
        (VIT, "num_attention_heads"),
        (VIT, "intermediate_size"),
        (VIT, "patch_size"),
        (VIT, "image_size"),
    ],
)
def test_a_count_that_cannot_be_is_refused(tmp_path, source, key, text):
    refused(
        with_entry(source, tmp_path, key, text),
        "config.json|its configuration|differ in",
    )


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (BERT, "layer_norm_eps"),
        (BERT, "hidden_dropout_prob"),
        (VIT, "layer_norm_eps"),
        (VIT, "attention_probs_dropout_prob"),
    ],
)
@pytest.mark.parametrize(
    "text", ["1e309", "NaN", "-1", '"0.1"', "null", "1" + "0" * 400, "true", "[0.1]"]
)
def test_a_number_that_cannot_be_is_refused(tmp_path, source, key, text):
    path = with_entry(source, tmp_path, key, text)
    refused(path, f"config.json: {key}=.* must be a finite number|is no JSON")


@pytest.mark.parametrize("text", ["[]", "{}", "null", "1", '"relu6"'])
@pytest.mark.parametrize(
    ("source", "key"),
    [(BERT, "hidden_act"), (VIT, "hidden_act"), (BERT, "position_embedding_type")],
)
def test_a_choice_that_is_none_of_ours_is_refused(tmp_path, source, key, text):
    refused(with_entry(source, tmp_path, key, text), f"{key}=.* is none of")


@pytest.mark.parametrize("text", ["[]", "{}", "null", "7", '"gpt2"'])
def test_a_family_that_is_none_of_ours_is_refused(tmp_path, text):
    refused(with_entry(BERT, tmp_path, "model_type", text), "known: 'bert', 'vit'")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        "",
        "[]",
        "\x00",
        "null",
        '{"hidden_size": ' + "9" * 5000 + "}",
    ],
    ids=["lists", "objects", "empty", "list", "zero", "null", "digits"],
)
def test_a_configuration_that_is_none_is_refused(tmp_path, text):
    shutil.copy(BERT / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, "is no JSON|holds no JSON object")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("num_heads", '"4"'),
        ("num_heads", "0"),
        ("num_heads", "1" + "0" * 400),
        ("num_heads", "1000000000"),
        ("img_size", "1e309"),
        ("img_size", "[1, 2, 3]"),
        ("img_size", "-16"),
        ("img_size", "2000000000"),
        ("img_size", '{"a": 1}'),
        ("act_layer", "[]"),
        ("global_pool", "{}"),
        ("pretrained_cfg", "[]"),
        ("model_args", '"a"'),
        ("architecture", "[]"),
        ("norm_layer", "[]"),
    ],
)
def test_arguments_of_timm_that_cannot_be_are_refused(tmp_path, key, text):
    shutil.copy(TIMM, tmp_path / "m.safetensors")
    config = json.loads(TIMM.with_suffix(".json").read_text())
    config.pop(key, None)
    body = json.dumps(config)[1:]
    (tmp_path / "m.json").write_text(f'{{"{key}": {text}, {body}')
    # A number may fit the file, but not the model.
    other = {"num_heads": "divisible", "img_size": "image_size"}
    refused(tmp_path / "m.safetensors", f"{key}|{other.get(key, key)}")


# --- files of arrays --------------------------------------------------------------------


def header(text, after=b""):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text)) + text + after


def entry(shape, end, dtype="F32"):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


SAFETENSORS = {
    "empty": b"",
    "header_longer_than_the_file": struct.pack("<Q", 2**62) + b"{}",
    "header_of_a_gigabyte": struct.pack("<Q", 2**30) + b"{}",
    "nested_header": header(b"[" * 200_000),
    "no_json": header(b"\xff\xfe{"),
    "array_longer_than_the_file": header(entry([10**15], 4 * 10**15)),
    "product_that_overflows": header(entry([2**40, 2**40], 0)),
    "empty_array_of_a_huge_shape": header(entry([0, 2**60], 0)),
    "negative_shape": header(entry([-1], 4), bytes(4)),
    "offsets_backwards": header(
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)
    ),
    "unknown_type": header(entry([4], 4, "F8_E4M3"), bytes(4)),
    "no_such_type": header(entry([4], 4, "F31"), bytes(4)),
    "long_name": header(
        {"n" * 10**6: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "name_with_newlines": header(
        {"a\nb\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        bytes(4),
    ),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_safetensors_file_that_lies_is_refused(tmp_path, name):
    shutil.copy(BERT / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS[name])
    refused(tmp_path, "model.safetensors")


def test_a_sparse_safetensors_file_is_refused(tmp_path):
    shutil.copy(BERT / "config.json", tmp_path)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(header(entry([1], 4), bytes(4)))
        file.truncate(2**36)
    refused(tmp_path, "no whole .safetensors file")


def npy(shape, dtype="<f4", data=b""):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(-(len(text) + 11) % 64 + len(text)) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


ARRAYS = {
    "shape_longer_than_the_member": npy("(1000000000000,)"),
    "shape_that_overflows": npy("(4611686018427387904, 4611686018427387904)"),
    "empty_array_of_a_huge_shape": npy("(0, 4611686018427387904)"),
    "negative_shape": npy("(-4,)", data=bytes(16)),
    "more_than_the_shape": npy("(1,)", data=bytes(64)),
    "objects": npy("(1,)", "|O", data=bytes(8)),
    "nested_header": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000,
    "not_an_array": b"<html>",
    "empty": b"",
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_npz_whose_arrays_lie_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("embedding/kernel.npy", ARRAYS[name])
    refused(tmp_path / "a.npz", "a.npz is no whole .npz file")


def test_an_npz_that_grows_a_thousandfold_is_refused(tmp_path):
    """An honest header over a gigabyte of zeros in a megabyte."""
    zeros = npy(f"({2**28},)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("embedding/kernel.npy", "w", force_zip64=True) as member:
            member.write(zeros)
            for _ in range(2**10):
                member.write(bytes(2**20))
    refused(tmp_path / "a.npz", "probably a decompression bomb")


def test_an_npz_that_hides_its_size_is_refused(tmp_path):
    """The header of the archive says 64 bytes, the stream holds a hundred megabytes."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy("(25000000,)", data=bytes(100_000_000)))
    content = bytearray(path.read_bytes())
    size = struct.pack("<L", 100_000_128)
    assert content.count(size) == 2  # in the member's header and in the directory
    path.write_bytes(content.replace(size, struct.pack("<L", 64)))
    refused(path, "a.npz is no whole .npz file")


@pytest.mark.parametrize(
    "names",
    [
        ["Transformer/encoderblock_999999999/a"],
        ["block999999999/unit1/conv1/kernel", "conv_root/kernel"],
        ["block1/unit999999999/conv1/kernel", "conv_root/kernel"],
        ["Transformer/encoderblock_" + "9" * 5000 + "/a"],
        ["Transformer/encoderblock/a"],
        ["head/bias"],
        ["pre_logits/bias"],
    ],
    ids=lambda names: names[0][:20],
)
def test_names_of_an_npz_that_promise_too_much_are_refused(tmp_path, names):
    arrays = dict(np.load(NPZ)) | {name: np.float32(0) for name in names}
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", "a.npz")


def test_a_million_unknown_arrays_are_listed_in_part(tmp_path):
    arrays = dict(np.load(NPZ)) | {f"more{i}": np.float32(0) for i in range(1000)}
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", "differ in 1000 arrays(.|\\n)*and 800 more")


# --- what is no file --------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["config.json", "model.safetensors", "a.npz", "b.safetensors"]
)
@pytest.mark.parametrize("kind", ["pipe", "zero"])
def test_a_pipe_or_a_device_is_refused(tmp_path, place, kind):
    shutil.copy(BERT / "config.json", tmp_path)
    shutil.copy(BERT / "model.safetensors", tmp_path)
    shutil.copy(TIMM.with_suffix(".json"), tmp_path / "b.json")
    (tmp_path / place).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(tmp_path / place)
    else:
        (tmp_path / place).symlink_to("/dev/zero")
    path = (
        tmp_path if place in ("config.json", "model.safetensors") else tmp_path / place
    )
    refused(path, "not a regular file")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "", "a\0b"])
def test_a_path_that_is_no_path_is_refused(path):
    refused(path, "not a regular file|is empty|does not exist|cannot be read")
