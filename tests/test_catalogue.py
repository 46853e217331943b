"""Sets of TensorFlow Datasets, read where TensorFlow cannot be imported."""

import pathlib
import subprocess
import sys
import textwrap

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
from attn_jax.data import decoding, sources
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
        sources.open_split(data, split)
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
        test = sources.open_split(data, "test")
        assert len(test) == 3 and test.labels == ("cat", "dog")
        record = test[2]
        assert isinstance(record["image"], bytes) and type(record["label"]) is int
        assert record["name"] == "tfds:tiny/1.0.0 test[2]"
        pixel = decoding.decode(record["image"], 3)[0, 0, 0]
        assert pixel % 2 == record["label"]
        assert pickle.loads(pickle.dumps(test))[2] == record
        train, held = (sources.open_split(data, s, holdout=4) for s in ("train", "validation"))
        pixels = [decoding.decode(s[i]["image"], 3)[0, 0, 0]
                  for s in (train, held) for i in range(len(s))]
        assert len(held) == 4 and sorted(pixels) == list(range(12))
        assert len(sources.open_split(data, "test", corrupt="skip")) == 3
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


def test_clevr_is_read_with_the_properties_of_its_objects(tmp_path):
    run_without_tensorflow(
        """
        from attn_jax.data import scene_sources
        classes = {key: tfds.features.ClassLabel(names=names) for key, names in dict(
            color=["red", "green", "purple", "cyan", "gray", "blue", "brown", "yellow"],
            material=["metal", "rubber"],  # not in the order of the target
            shape=["cube", "sphere", "cylinder"], size=["small", "large"]).items()}
        coords = tfds.features.Tensor(shape=(3,), dtype=np.float32)
        Tiny.FEATURES = dict(image=Tiny.FEATURES["image"], objects=tfds.features.Sequence(
            {**classes, "3d_coords": coords}))
        def encode(number):
            file = io.BytesIO()
            Image.new("RGB", (6, 4), (number, 0, 0)).save(file, "PNG")
            return file.getvalue()
        Tiny._generate_examples = lambda self, n: ((i, dict(
            image=encode(i),
            objects=[dict(color="gray", material="metal", shape="cylinder", size="large")
                     | {"3d_coords": [i, -3.0, 0.5]}] * i)) for i in range(n))
        Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
        data, sizes = f"tfds:tiny@{sys.argv[1]}", dict(train=9, validation=2, test=2)
        splits = {s: scene_sources.open_files(data, s, sizes, fewest=1, most=6) for s in sizes}
        # The train split has 0 to 11 objects, the test split 0, 1 and 2.
        assert {s: len(source) for s, source in splits.items()} == dict(
            train=4, validation=2, test=2)
        assert len(splits["train"].left_out) == 6
        for source in splits.values():
            record = pickle.loads(pickle.dumps(source))[1]
            count = int(record["image"][0, 0, 0])
            rows = record["properties"]
            assert rows.shape == (10, 19) and "mask" not in record
            expected = np.zeros(19)
            expected[:3] = np.array([count, -3, 0.5]) / 6 + 0.5
            expected[[4, 6, 9, 10, 18]] = 1  # large, metal, cylinder, gray, there
            assert np.allclose(rows[:count], expected, atol=1e-6)
            assert not rows[count:].any()
        """,
        tmp_path,
    )
