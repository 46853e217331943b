"""DeepMind's multi-object TFRecords, written here by the protobuf library."""

import gzip
import struct

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from attn_jax import crc32c
from attn_jax.data import multi_object, packed_scenes, scene_sources, sources, tfrecords
from attn_jax.data.multi_object import Need
from attn_jax.protobuf import Damaged

SIZES = {"train": 4, "validation": 1, "test": 1}


def make_message():
    """The message class of tf.train.Example, of TensorFlow's feature.proto and example.proto."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="example.proto", package="t", syntax="proto3"
    )

    def add(name, *fields, parent=file.message_type):
        message = parent.add(name=name)
        for number, (label, kind, key) in enumerate(fields, 1):
            named = {"type_name": kind} if isinstance(kind, str) else {"type": kind}
            message.field.add(name=key, number=number, label=label, **named)
        return message

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    add("BytesList", (many, field.TYPE_BYTES, "value"))
    add("FloatList", (many, field.TYPE_FLOAT, "value"))
    add("Int64List", (many, field.TYPE_INT64, "value"))
    kinds = ("BytesList", "FloatList", "Int64List")
    add("Feature", *[(one, f".t.{kind}", kind) for kind in kinds])
    features = add("Features", (many, ".t.Features.Entry", "feature"))
    entry = [(one, field.TYPE_STRING, "key"), (one, ".t.Feature", "value")]
    add("Entry", *entry, parent=features.nested_type).options.map_entry = True
    add("Example", (one, ".t.Features", "features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


EXAMPLE = make_message()


def encode(**arrays):
    """Bytes one by one, as in the files of DeepMind."""
    example = EXAMPLE()
    for name, values in arrays.items():
        feature = example.features.feature[name]
        if values.dtype == np.uint8:
            feature.BytesList.value.extend(bytes([v]) for v in values.ravel().tolist())
        elif values.dtype == np.float32:
            feature.FloatList.value.extend(values.ravel().tolist())
        else:
            feature.Int64List.value.extend(values.ravel().tolist())
    return example.SerializeToString(deterministic=True)


def frame(data):
    def masked(part):
        return struct.pack(
            "<I", crc32c.compute_masked_crc(np.frombuffer(part, np.uint8))
        )

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def make_scene(number, shape=(35, 35, 3), entities=4, visible=3):
    """(arrays of an Example, image, ids): entity i is a band of rows; the others are absent."""
    rng = np.random.default_rng(number)
    height, width, _ = shape
    image = rng.integers(256, size=shape, dtype=np.uint8)
    ids = np.zeros((height, width), np.uint8)
    for i in range(1, visible + 1):
        ids[4 * i : 4 * i + 3, rng.integers(9) :] = i
    covered = np.uint8(255) * (ids == np.arange(entities)[:, None, None])
    shown = (np.arange(entities) <= visible).astype(np.float32)
    return {"image": image, "mask": covered[..., None], "visibility": shown}, image, ids


def write(path, scenes, **options):
    data = b"".join(frame(encode(**arrays)) for arrays, *_ in scenes)
    path.write_bytes(gzip.compress(data) if path.name.endswith("z") else data)
    return data


@pytest.mark.parametrize(
    ("data", "crc"), [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"", 0)]
)
def test_the_checksum_is_that_of_rfc_3720(data, crc):
    assert crc32c.compute_crc(np.frombuffer(data, np.uint8)) == crc


def test_the_checksum_is_the_same_whatever_the_lanes(monkeypatch):
    data = np.random.default_rng(0).integers(256, size=5000, dtype=np.uint8)
    expected = crc32c.compute_crc(data)
    for lane in (1, 512, 10_000):
        monkeypatch.setattr(crc32c, "SHORTEST_LANE", lane)
        assert crc32c.compute_crc(data) == expected


def test_an_example_gives_all_its_values():
    arrays = {
        "a": np.array([3, 250, 0], np.uint8),
        "b": np.array([-1.5, 2e9], np.float32),
        "c": np.array([-7, 0, 2**40]),
    }
    found = tfrecords.parse_example(encode(**arrays))
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    example = EXAMPLE()
    example.features.feature["text"].BytesList.value.append(b"\x0a\x01\x07\x0a")
    [text] = tfrecords.parse_example(example.SerializeToString()).values()
    assert text.tobytes() == b"\x0a\x01\x07\x0a"
    for broken in (b"\xff" * 9, encode(**arrays)[:-3], b"\x0a\x04\x0a\x02\x0a\x00"):
        with pytest.raises(Damaged):
            tfrecords.parse_example(broken)


@pytest.mark.parametrize("name", ["a.tfrecords", "a.tfrecords.gz"])
def test_records_come_back_and_are_read_once(tmp_path, cache, name, monkeypatch):
    scenes = [make_scene(i) for i in range(7)]
    write(tmp_path / name, scenes)
    pool = multi_object.open_tfrecords(tmp_path / name, Need(4, 2, 0, 9))
    assert len(pool) == 6  # two more than for training
    for i in (5, 0, 3):
        _, image, ids = scenes[i]
        np.testing.assert_array_equal(pool[i]["image"], image)
        np.testing.assert_array_equal(pool[i]["mask"], ids)
        assert pool[i]["name"] == f"{name}[{i}]" and pool.count_objects(i) == 3
    monkeypatch.setattr(packed_scenes, "write", None)
    again = multi_object.open_tfrecords(tmp_path / name, Need(4, 2, 0, 9))
    assert again.fingerprint() == pool.fingerprint()
    assert not list(cache.glob("attn_jax/tmp*"))


def test_multi_dsprites_store_entities_last_and_may_be_gray(tmp_path, cache):
    arrays, image, ids = make_scene(1, (64, 64, 1), 5, visible=2)
    arrays["mask"] = np.moveaxis(arrays["mask"], 0, 2)
    arrays["orientation"] = np.zeros(5, np.float32)
    write(tmp_path / "a.tfrecords", [(arrays,)])
    pool = multi_object.open_tfrecords(tmp_path / "a.tfrecords", Need(9, 9, 0, 9))
    record = pool[0]
    np.testing.assert_array_equal(record["image"], image.repeat(3, axis=2))
    np.testing.assert_array_equal(record["mask"], ids)
    assert pool.count_objects(0) == 2


def test_clevr_6_has_the_images_of_at_most_six_objects(tmp_path, cache):
    scenes = [
        make_scene(i, (35, 35, 3), 9, visible=i + 3) for i in (0, 4, 3, 1, 4, 2, 5, 0)
    ]
    write(tmp_path / "a.tfrecords", scenes)
    found = {}
    for split in SIZES:
        source = scene_sources.open_files(
            str(tmp_path / "a.tfrecords"), split, SIZES, fewest=None, most=6
        )
        found[split] = [source[i]["name"] for i in range(len(source))]
    assert found == {
        "train": ["a.tfrecords[0]", "a.tfrecords[2]", "a.tfrecords[3]"],
        "validation": ["a.tfrecords[5]"],
        "test": ["a.tfrecords[7]"],
    }
    assert sources.describe_left_out(source) == (
        " (left out: 3 with more than 6 objects: a.tfrecords[1], a.tfrecords[4], "
        "a.tfrecords[6])"
    )


def test_a_truncated_file_names_file_and_record(tmp_path, cache):
    scenes = [make_scene(i) for i in range(3)]
    data = write(tmp_path / "a.tfrecords", scenes)
    one = len(data) // 3
    need = Need(9, 0, 0, 9)
    for end, words in (
        (one + 5, "record 1 .*ends within its length"),
        (2 * one + 100, "record 2 .*ends after 88 of its"),
        (3 * one - 1, "record 2 .*ends after"),
    ):
        (tmp_path / "b.tfrecords").write_bytes(data[:end])
        with pytest.raises(
            ValueError, match=rf"b.tfrecords is no whole.*{words}.*Fetch it"
        ):
            multi_object.open_tfrecords(tmp_path / "b.tfrecords", need)
    zipped = gzip.compress(data)
    (tmp_path / "b.tfrecords").write_bytes(zipped[: len(zipped) * 2 // 3])
    with pytest.raises(
        ValueError, match=r"b.tfrecords is no whole.*record [12] .*Fetch it"
    ):
        multi_object.open_tfrecords(tmp_path / "b.tfrecords", need)
    assert not list(cache.glob("attn_jax/tmp*"))


def test_changed_bytes_are_seen(tmp_path):
    data = bytearray(write(tmp_path / "a.tfrecords", [make_scene(0)]))
    for place, words in ((3, "checksum of its length"), (500, "its checksum is wrong")):
        changed = data.copy()
        changed[place] ^= 1
        (tmp_path / "a.tfrecords").write_bytes(changed)
        with pytest.raises(ValueError, match=f"a.tfrecords .*record 0 .*{words}"):
            list(tfrecords.read_records(tmp_path / "a.tfrecords"))
    huge = struct.pack("<Q", 2**40)
    huge += struct.pack("<I", crc32c.compute_masked_crc(np.frombuffer(huge, np.uint8)))
    (tmp_path / "a.tfrecords").write_bytes(huge)
    with pytest.raises(
        ValueError, match="1,099,511,627,776 bytes, more than 67,108,864"
    ):
        list(tfrecords.read_records(tmp_path / "a.tfrecords"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"visibility": None}, "record 0 cannot be read: it lacks visibility; it has"),
        ({"image": np.zeros(99, np.uint8)}, "its image has 99 values of uint8"),
        (
            {"mask": np.zeros(99, np.uint8)},
            "its mask has 99 values .*4 entities of 35 x 35",
        ),
        ({"image": np.zeros(3675)}, "its image has 3,675 values of int64|float"),
    ],
)
def test_files_of_other_sets_say_what_they_lack(tmp_path, cache, changes, words):
    arrays = make_scene(0)[0] | changes
    arrays = {k: v for k, v in arrays.items() if v is not None}
    if arrays["image"].dtype == np.float64:
        arrays["image"] = arrays["image"].astype(int)
    write(tmp_path / "a.tfrecords", [(arrays,)])
    with pytest.raises(ValueError, match=f"{words}.*Tetrominoes, Multi-dSprites"):
        multi_object.open_tfrecords(tmp_path / "a.tfrecords", Need(9, 0, 0, 9))


def test_a_damaged_cache_is_written_again(tmp_path, cache):
    scenes = [make_scene(i) for i in range(2)]
    write(tmp_path / "a.tfrecords", scenes)
    need = Need(9, 0, 0, 9)
    pool = multi_object.open_tfrecords(tmp_path / "a.tfrecords", need)
    records = pool.folder / "records"
    records.write_bytes(records.read_bytes()[:-1])
    again = multi_object.open_tfrecords(tmp_path / "a.tfrecords", need)
    np.testing.assert_array_equal(again[1]["image"], scenes[1][1])
    changed = bytearray(records.read_bytes())
    changed[7] ^= 255
    records.write_bytes(changed)
    with pytest.raises(
        ValueError, match="is damaged; remove it, and a.tfrecords is read"
    ):
        again[0]
