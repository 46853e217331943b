"""Programs of StableHLO and ONNX compute what the model does, for a batch of any size."""

import json
import sys

import jax
import jax.export
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from slot_models import tiny, tiny_variables
from variables import perturb

import attn_jax
from attn_jax.commands import export
from attn_jax.convert.inference import describe_row, make_inference
from attn_jax.convert.onnx import write_onnx
from attn_jax.convert.programs import write_stablehlo
from attn_jax.models import bags, hopfield
from attn_jax.models.bert import Bert, ClassHead
from attn_jax.models.vit import ViT
from attn_jax.tasks.bags import FeatureBags
from attn_jax.tasks.classify import Classify
from attn_jax.tasks.reconstruct import Reconstruct
from attn_jax.tasks.text_classify import TextClassify

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def unchecked():
    """Without checks of shapes, which do not know a batch of a size that is open."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def vit():
    model = ViT(
        num_classes=3, patch_size=4, width=12, depth=2, mlp_width=16, num_heads=2
    )
    task = Classify(data="none", num_classes=3, image_size=8, channels=3)
    return model, {"images": jnp.zeros((1, 8, 8, 3))}, task, describe_row(task)


def bert():
    sizes = dict(width=12, depth=2, mlp_width=16, num_heads=2, max_positions=7)
    model = Bert(11, **sizes, head=ClassHead(3))
    task = TextClassify(data="none", num_classes=3, vocab_size=11, sequence_length=7)
    return model, {"token_ids": jnp.zeros((1, 7), int)}, task, describe_row(task)


def bag():
    """A pooling that updates its states until they stop moving."""
    association = hopfield.Hopfield(num_heads=2, head_dim=4, max_updates=3, eps=1e-4)
    pooling = hopfield.HopfieldPooling(association, quantity=2)
    model = bags.BagClassifier(bags.FeatureEncoder((8,)), pooling)
    row = {"instances": ((5, 3), np.float32), "mask": ((5,), np.bool_)}
    given = {name: jnp.ones((1, *shape), dtype) for name, (shape, dtype) in row.items()}
    return model, given, FeatureBags(data="generated"), row


def slots():
    task = Reconstruct(data="tetrominoes")
    return tiny(), None, task, {"images": ((8, 6, 3), np.uint8)}


@pytest.fixture(
    scope="module", params=[vit, bert, bag, slots], ids=lambda f: f.__name__
)
def model(request):
    """(module, variables, inference) of an architecture, with no parameter at its start."""
    module, given, task, row = request.param()
    if given is None:
        variables = tiny_variables()
    else:
        init = jax.jit(module.init)(jax.random.key(0), **given)
        variables = perturb(init, scale=0.1)
    return module, variables, make_inference(module, variables, task, row)


def draw(inference, size):
    """Random inputs of a batch; of a mask the first of each row are True."""
    rng = np.random.default_rng(size)
    arrays = {}
    for name, shape in inference.shape_inputs(size).items():
        if shape.dtype == bool:
            known = rng.integers(1, shape.shape[-1], (size, 1))
            arrays[name] = np.arange(shape.shape[-1])[None] < known
        elif np.issubdtype(shape.dtype, np.integer):
            arrays[name] = rng.integers(0, 2, shape.shape, np.int32)
        else:
            arrays[name] = rng.uniform(-1, 1, shape.shape).astype(np.float32)
    return arrays


def check(inference, run, tolerance):
    for size in (1, 3):
        arrays = draw(inference, size)
        found, expected = run(**arrays), jax.jit(inference.call)(**arrays)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(
                found[name], array, rtol=0, atol=tolerance, err_msg=name
            )


def test_stablehlo_gives_the_outputs_of_the_model(model, tmp_path):
    _, _, inference = model
    file = tmp_path / "new" / "model.stablehlo"
    write_stablehlo(inference, file, {"labels": ["a", "b"]})
    loaded = jax.export.deserialize(bytearray(file.read_bytes()))
    # The same operations, compiled for another size of batch; sums may differ in order.
    check(inference, loaded.call, 1e-6)
    described = json.loads(file.with_suffix(".json").read_text())
    assert described["labels"] == ["a", "b"]
    for name, shape in inference.inputs.items():
        expected = {"shape": ["batch", *shape.shape], "dtype": str(shape.dtype)}
        assert described["inputs"][name] == expected
    assert described["outputs"].keys() == inference.shape_outputs().keys()


def test_onnx_gives_the_outputs_of_the_model(model, tmp_path):
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="the extra onnx installs onnxruntime and runs this test"
    )
    _, _, inference = model
    file = tmp_path / "model.onnx"
    write_onnx(inference, file, {})
    session = onnxruntime.InferenceSession(str(file))
    names = [output.name for output in session.get_outputs()]
    # Two implementations of a few layers in float32.
    check(
        inference,
        lambda **arrays: dict(zip(names, session.run(None, arrays), strict=True)),
        1e-5,
    )


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    pytest.importorskip("jax2onnx", reason="the extra onnx installs jax2onnx")
    module, _, task, row = slots()
    inference = make_inference(module, tiny_variables(), task, row)
    call = inference.call

    def factorize(**arrays):
        outputs = call(**arrays)
        return outputs | {"slots": jnp.linalg.eigh(outputs["slots"][:, :2, :2])[1]}

    inference = inference._replace(call=factorize)
    with pytest.raises(ValueError, match="cannot be written as ONNX: .*eigh"):
        write_onnx(inference, tmp_path / "model.onnx", {})


def test_without_the_extra_onnx_the_command_that_installs_it_is_said(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    module, _, task, row = slots()
    inference = make_inference(module, tiny_variables(), task, row)
    with pytest.raises(ValueError, match=r"pip install 'attn_jax\[onnx\]'"):
        write_onnx(inference, tmp_path / "model.onnx", {})


def test_slots_start_as_those_of_predict(tmp_path):
    module, _, task, row = slots()
    variables = tiny_variables()
    inference = make_inference(module, variables, task, row)
    images = draw(inference, 2)["images"]
    found = jax.jit(inference.call)(images=images)
    pixels = jnp.asarray(np.zeros((2, 8, 6, 3)), jnp.uint8)
    batch = {"images": pixels, "index": jnp.zeros(2, jnp.int32)}
    keys = task.prepare(batch, attn_jax.evaluation.make_key(0), train=False)
    expected = jax.jit(module.apply)(variables, images, sample_keys=keys["sample_keys"])
    np.testing.assert_allclose(found["masks"], expected["masks"], rtol=0, atol=1e-6)


def test_a_run_is_exported_below_its_folder_with_what_it_knows(copied, capsys):
    export.main([f"--workdir={copied}", "--to=stablehlo"])
    file = copied / "export" / "stablehlo" / "model.stablehlo"
    assert capsys.readouterr().out.splitlines()[-1] == str(file)
    described = json.loads(file.with_suffix(".json").read_text())
    assert described["labels"] == [str(digit) for digit in range(10)]
    module, variables, task = attn_jax.restore(copied)
    normalization = described["normalization"]
    mean, std = (np.array(normalization[name]) for name in ("mean", "std"))
    shape = described["inputs"]["images"]["shape"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape[1:]), np.uint8)
    loaded = jax.export.deserialize(bytearray(file.read_bytes()))
    images = ((pixels / 255 - mean) / std).astype(np.float32)
    found = loaded.call(images=images)["logits"]
    prepared = task.prepare({"images": jnp.asarray(pixels)}, None, train=False)
    expected = jax.jit(module.apply)(variables, prepared["images"])["logits"]
    # Normalized here in float64, there in float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to=timm"], "give --out=PATH, what to write"),
        (["--to=onnx", "--out=m.txt"], "m.txt must be FILE.onnx for onnx"),
        (["--to=onnx", "--out=m.onnx", "--image_size", "8"], "image_size is for hf and timm"),
        (["--to=hf", "--out=m", "--image_size", "8", "8", "8"], "one or two numbers, not 3"),
    ],
)  # fmt: skip
def test_where_or_what_cannot_be_written_is_said(finished, flags, message):
    with pytest.raises(ValueError, match=message):
        export.main([f"--from={finished[1]}", *flags])
