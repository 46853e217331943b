"""What is drawn and written of slots: figures of the user's images, masks as files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import ROOT

import train
from attn_jax import config as config_lib
from attn_jax import evaluate, predict
from attn_jax.__main__ import main
from attn_jax.analysis import slot_attention as figures
from attn_jax.analysis.drawing import color_segments
from attn_jax.restore import restore

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def slot_run(tmp_path_factory):
    """A run of two steps on 10x10 pixels, two pieces and four slots."""
    folder = tmp_path_factory.mktemp("slots")
    config = config_lib.load(
        f"{ROOT}/configs/slot_attention/tetrominoes.py:debug",
        [
            "duration=2 steps",
            'evals={"test": {"split": "test", "batch_size": 6}}',
            "task.test_images=6",
        ],
    )
    train.train(config, str(folder))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two files of one name in two folders, of other sizes than the model's."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("a", (17, 23)), ("b", (10, 10))):
        (folder / name).mkdir()
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name / "photo.png")
    return folder


def test_masks_are_written_at_the_size_of_each_image(
    slot_run, photos, tmp_path, capsys
):
    out = tmp_path / "masks"
    folders = [str(photos / "a"), str(photos / "b")]
    main(["predict", f"--workdir={slot_run}", *folders, f"--out={out}", "--json"])
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["segments"] for result in results] == [
        str(out / "photo.png"),
        str(out / "photo-2.png"),
    ]
    for result, size in zip(results, [(17, 23), (10, 10)], strict=True):
        with Image.open(result["segments"]) as image:
            ids = np.asarray(image)
            assert image.mode == "P" and len(set(image.getpalette()[:12])) > 3
        assert ids.shape == size == (result["height"], result["width"])
        counts = np.bincount(ids.ravel(), minlength=256)
        assert counts[:4].tolist() == result["pixels"]
        # The model sees the central square, as in training.
        assert counts[255] == ids.size - min(size) ** 2 == ids.size - sum(counts[:4])


def test_predicted_masks_are_those_of_the_model_for_any_batch_size(slot_run, photos):
    module, variables, task = restore(slot_run)
    file = photos / "b" / "photo.png"
    pixels = np.asarray(Image.open(file))
    batch = {"images": jnp.asarray(pixels[None]), "index": jnp.zeros(1, jnp.int32)}
    key = jax.random.fold_in(jax.random.key(0), 0xE7A1)
    batch = task.prepare(batch, key, train=False)
    expected = module.apply(variables, **task.inputs(batch))["masks"][0].argmax(axis=0)
    given = [photos / "a" / "photo.png", file, pixels]
    for size in (1, 8):
        _, one, other = predict(slot_run, given, batch_size=size)
        # Another program may round a tie the other way, but not of many pixels.
        assert (one["segments"] == expected).mean() > 0.95
        np.testing.assert_array_equal(one["segments"], other["segments"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "segments images; give --out=FOLDER"),
        (["--embed=mean"], "--embed and --out=FILE.npz belong together"),
    ],
)
def test_masks_without_a_folder_are_refused(slot_run, photos, arguments, words):
    with pytest.raises(ValueError, match=words):
        main(["predict", f"--workdir={slot_run}", str(photos / "b"), *arguments])


def test_a_folder_for_masks_is_refused_where_there_are_none(copied, photos, tmp_path):
    with pytest.raises(ValueError, match="is for --embed, or for a run that segments"):
        main(
            ["predict", f"--workdir={copied}", str(photos / "b"), f"--out={tmp_path}/x"]
        )
    assert not (tmp_path / "x").exists()


def test_slots_of_the_user_s_images_are_drawn_with_other_slots_and_iterations(
    slot_run, photos, tmp_path
):
    settings = ["task.num_slots=5", "task.iterations=4"]
    main(
        [
            *("analyze", f"--workdir={slot_run}", f"--out={tmp_path}"),
            *(f"--set={setting}" for setting in settings),
            f"--images={photos / 'a'}",
        ]
    )
    with Image.open(tmp_path / "routing.png") as animation:
        assert animation.n_frames == 4
    with Image.open(tmp_path / "slots.png") as image:
        # image, reconstruction, segments and five slots; no true objects
        assert image.width == round(8 * figures.CELL[0] * 120)


def test_more_objects_and_iterations_are_a_table_with_the_numbers_of_evaluate(
    slot_run, tmp_path
):
    main(
        [
            *("analyze", f"--workdir={slot_run}", f"--out={tmp_path}"),
            *("--objects=1,2", "--iterations=2"),
        ]
    )
    table = json.loads((tmp_path / "generalization.json").read_text())
    assert table["objects"] == [1, 2] and table["slots"] == [3, 4]
    overrides = {"task.num_objects": 1, "task.num_slots": 3}
    found = [
        evaluate(slot_run, overrides=overrides | {"task.iterations": t})["test/fg_ari"]
        for t in (1, 2)
    ]
    # Other programs: some roundings of means near 1.
    np.testing.assert_allclose(table["values"][0], found, atol=1e-5)
    with Image.open(tmp_path / "generalization.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


@pytest.mark.parametrize(
    ("objects", "words"),
    [("2,x", "must be numbers"), ("0", "numbers from 1 on"), ("40", "cover")],
)
def test_objects_that_cannot_be_drawn_are_refused(slot_run, objects, words):
    with pytest.raises(ValueError, match=words):
        main(["analyze", f"--workdir={slot_run}", f"--objects={objects}"])


def test_objects_of_a_task_without_any_are_refused(copied):
    with pytest.raises(ValueError, match="Classify.*does not generate"):
        main(["analyze", f"--workdir={copied}", "--objects=2"])


def test_each_true_object_has_the_color_of_the_slot_that_covers_it():
    true = np.array([[0, 1, 1, 2, 2, 3]])
    segments = np.array([[0, 0, 2, 1, 1, 1]])
    matched = figures.match_colors(true, segments)
    assert matched[0, 0] == -1
    assert matched[0, 3] == 1  # object 2 has more of slot 1 than object 3
    assert len(set(matched[0, [1, 3, 5]])) == 3
    assert set(matched[0, [1, 5]]) <= {0, 2}
    three = figures.match_colors(np.array([[1, 2, 3]]), np.array([[0, 0, 0]]))
    assert sorted(three[0]) == [0, 2, 3] or sorted(three[0]) == [0, 1, 2]
    colors = color_segments(np.arange(-1, 20)[None])[0]
    assert len({tuple(color) for color in colors}) == 21
