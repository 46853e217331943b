"""Plans: names of topologies, what a compiled program does, and that no data is opened."""

import importlib.util
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from attn_jax import config as config_lib
from attn_jax import sharding
from attn_jax.commands import plan as plan_command
from attn_jax.data import pipeline
from attn_jax.plan import (
    compiling,
    hlo,
    inputs,
    measuring,
    report,
    roofline,
    search,
    topologies,
)
from attn_jax.run import prepare

pytestmark = pytest.mark.usefixtures("quick_compilation")

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is absent: pip install 'attn_jax[tpu]'",
)

LOOP = """HloModule step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %y = f32[] parameter(1)
}

%all-reduce-scatter.1 (p: f32[16,8]) -> f32[4,8] {
  %p = f32[16,8]{1,0} parameter(0)
  %all-reduce.1 = f32[16,8]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice.1 = f32[4,8]{1,0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={4,8}
}

%cond (s: (s32[], f32[16,8])) -> pred[] {
  %s = (s32[], f32[16,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (t: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %t = (s32[], /*index=1*/f32[16,8]{1,0}) parameter(0)
  %q = f32[16,8]{1,0} get-tuple-element(%t), index=1
  %gather = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%q), replica_groups=[2,2]<=[4]
  %scatter = f32[4,8]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %u = (s32[], f32[16,8]{1,0}) tuple(%t, %q)
}

ENTRY %main (a: f32[16,8]) -> f32[16,8] {
  %a = f32[16,8]{1,0} parameter(0)
  %w = (s32[], f32[16,8]{1,0}) while(%a), condition=%cond, body=%body
  %permute-start = (f32[16,8]{1,0}, f32[16,8]{1,0}, u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  ROOT %r = f32[16,8]{1,0} all-reduce(%a), replica_groups={{0,2},{1,3}}, to_apply=%add
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    program = hlo.Program(LOOP)
    found = [(c.kind, c.bytes, c.times) for c in program.collectives]
    assert found == [
        ("all-gather", 16 * 8 * 2, 5),
        ("reduce-scatter", 16 * 8 * 4, 5),
        ("collective-permute", 16 * 8 * 4, 1),
        ("all-reduce", 16 * 8 * 4, 1),
    ]
    assert program.unknown_loops == 0


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    text = LOOP.replace("constant(5)", "add(%i, %i)")
    program = hlo.Program(text)
    assert program.unknown_loops == 1
    assert program.collectives[0].times == 1
    noted = text.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert hlo.Program(noted).collectives[0].times == 7


def test_only_hbm_is_touched_and_fusions_count_by_their_borders():
    size = 16 * 8 * 4
    body = size + (size + size // 4)  # the gathered array is on the chip
    assert hlo.Program(LOOP).bytes_touched == 5 * body + 2 * size + 2 * size


@pytest.mark.parametrize("depth", [4, 16])
def test_a_loop_over_layers_touches_the_parameters_of_one_at_a_time(depth):
    def loss(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()

    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in [(depth, 64, 64), (8, 64)]]
    program = jax.jit(jax.grad(loss)).lower(*shapes).compile()
    layer = 4 * 64 * 64
    touched = hlo.Program(program.as_text()).bytes_touched / depth / layer
    # read and copied forwards and backwards, written and zeroed as a gradient; not times depth
    assert 3 < touched < 16


def test_a_copy_to_the_chip_reads_only_what_it_copies():
    def touched(type, opcode, rest):
        one = hlo.Instruction("x", type, opcode, rest)
        return hlo.count_touched(one, {"a": "f32[8,10]{1,0}", "b": "f32[10]{0:S(1)}"})

    assert (
        touched("((f32[8,10]), f32[2,10]{1,0:S(1)}, s32[])", "slice-start", "%a)") == 80
    )
    assert (
        touched("(f32[8,10]{1,0:S(1)}, f32[8,10], u32[])", "copy-start", "%a)") == 320
    )
    assert touched("f32[2,10]{1,0}", "slice", "%a), slice={[0:2], [0:10]}") == 160
    assert touched("f32[8,10]{1,0}", "dynamic-update-slice", "%a, %a)") == 640
    assert touched("f32[10]{0}", "copy", "%b)") == 40
    assert touched("f32[8,10]{1,0}", "copy-done", "%a)") == 0


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        (
            "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x",
            [[0, 2], [1, 3]],
        ),
        ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
        ("channel_id=1", []),
    ],
)
def test_groups_are_read_in_every_notation(text, groups):
    assert hlo.read_groups(text) == groups


def test_a_ring_sends_less_than_twice_the_array():
    def sent(kind, groups=(), slices=1, between=False):
        one = hlo.Collective(kind, 1000, list(groups), 1, between)
        return roofline.count_traffic(one, 8, slices)

    assert sent("all-reduce", [[0, 1, 2, 3]]) == 1500
    assert sent("all-gather", [[0, 1, 2, 3]]) == 750
    assert sent("reduce-scatter") == 875  # all of the slice
    assert sent("collective-permute", [[0, 1], [1, 0]]) == 1000
    assert sent("all-reduce", slices=2, between=True) == 1000
    assert sent("all-reduce", slices=4, between=True) == 1500
    assert sent("all-gather", slices=4, between=True) == 3000


def test_what_leaves_a_slice_is_sent_to_the_host():
    text = LOOP.replace(
        "  ROOT %r =",
        "  %send = (f32[1,8]{1,0}, u32[], token[]) send(%a, %a), is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}\n  ROOT %r =',
    )
    [found] = [c for c in hlo.Program(text).collectives if c.between_slices]
    assert (found.kind, found.bytes, found.times) == ("all-reduce", 32, 1)


def test_the_estimate_is_that_of_the_data_sheet():
    program = hlo.Program(LOOP)
    chip = topologies.Chip(1, flops=100.0, hbm=1e9, ici=1024.0, dcn=1.0, shape=2)
    found = roofline.estimate(
        program, chip, executed_flops=8000, model_flops=6000, devices=4
    )
    assert found.compute == 8000 / (4 * 100)
    # 5 x (half of 256 bytes, 3/4 of 512), a permute of 512, twice half of 512.
    assert found.ici == (5 * (128 + 384) + 512 + 512) / 1024
    assert found.dcn == 0 and found.bound == "compute"
    assert found.step == found.compute + found.ici
    assert found.mfu == pytest.approx(6000 / (found.step * 400), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("v5e:4x4", (1, "v5e", "4x4")),
        ("V5P:4x4x8", (1, "v5p", "4x4x8")),
        ("2*v6e:16x16", (2, "v6e", "16x16")),
    ],
)
def test_a_topology_is_slices_chip_and_shape(name, parts):
    assert topologies.parse_name(name) == parts


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v7e:4x4", "unknown chip 'v7e'; do you mean v6e or v5e"),
        ("xyz:4x4", "The chips are v5e, v5p, v6e, tpu7x"),
        ("v5e", "a slice of v5e has 2 sides; write v5e:4x4"),
        ("v5e:4x4x4", "a slice of v5e has 2 sides"),
        ("v5p:4x4", "write v5p:4x4x4"),
        ("v5e:0x4", "has 2 sides"),
        ("0*v5e:4x4", "has 2 sides"),
        ("v5e:4x-4", "has 2 sides"),
        ("h200:8", "GPUs that are not here cannot be planned for"),
    ],
)
def test_a_wrong_topology_is_named_with_its_remedy(name, words):
    with pytest.raises(ValueError, match="--topology") as error:
        topologies.parse_name(name)
    assert words in str(error.value)


def test_a_missing_compiler_is_named_with_the_line_for_pip(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'attn_jax\[tpu\]'"):
        topologies.open_topology("v5e:4x4")


def test_slices_split_data_or_else_fsdp():
    assert sharding.split_over_slices([4, 4, 2], 2) == [2, 1, 1]
    assert sharding.split_over_slices([1, 4, 2], 2) == [1, 2, 1]
    with pytest.raises(ValueError, match="2 slices, which must divide data or fsdp"):
        sharding.split_over_slices([1, 3, 2], 2)


def test_a_refusal_of_the_compiler_is_read():
    state = {
        "parameters": 2**30,
        "optimizer": 2**31,
        "average": 0,
        "batch": 0,
    }
    first = compiling.read_refusal(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (25.50G) exceeds available HBM (15.75G).",
        state,
    )
    assert first.activations == int(25.5 * 2**30) and first.total == int(28.5 * 2**30)
    assert first.usable == int(15.75 * 2**30) and "temporaries" in (first.error or "")
    second = compiling.read_refusal(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.50G of 15.75G hbm.",
        state,
    )
    assert second.total == int(25.5 * 2**30)
    assert compiling.read_refusal("RESOURCE_EXHAUSTED: vmem", state).usable is None


RECIPES = [
    "vit/digits:debug",
    "vit/augreg_i1k:debug",
    "vit/masked_patches:debug",
    "hopfield/digit_bags:debug",
    "slot_attention/clevr6:debug",
    "slot_attention/clevr_lite_set:debug",
    "bert/pretrain:debug",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_invented_record_has_the_shapes_of_the_data(recipe, cache):
    config = config_lib.load(recipe)
    task = config_lib.build(config.task)
    stand_in, _ = inputs.find_stand_in(config)
    assert isinstance(stand_in, inputs.OneRecord)
    invented = pipeline.batch_shapes(stand_in, task, 4)
    assert invented == pipeline.batch_shapes(task.source("train"), task, 4)


def test_packed_rows_of_text_have_their_shapes_too(cache):
    config = config_lib.load("bert/pretrain:debug", ["task.packed=3"])
    task = config_lib.build(config.task)
    stand_in, _ = inputs.find_stand_in(config)
    invented = pipeline.batch_shapes(stand_in, task, 4)
    assert invented == pipeline.batch_shapes(task.source("train"), task, 4)


def test_the_largest_bert_is_laid_out_without_data_or_memory():
    config = config_lib.load("bert/pretrain:large,512", ["mesh.fsdp=4"])
    before = len(jax.live_arrays())
    stand_in, note = inputs.find_stand_in(config)
    run = prepare(config, jax.devices()[:4], stand_in=stand_in)
    assert note == "one invented record of MaskedLM"
    assert run.batch_shapes["token_ids"].shape == (256, 512)
    assert compiling.count_parameters(run) == 336_226_108  # with both heads
    state = compiling.measure_state(run)
    assert state["optimizer"] == pytest.approx(2 * state["parameters"], rel=1e-6)
    assert len(jax.live_arrays()) - before < 10  # no parameter is among them


def test_a_task_that_needs_its_data_says_so():
    config = config_lib.load("bert/squad:v1", ["task.data=nowhere.json"])
    with pytest.raises(ValueError, match="Span cannot tell the shapes of a batch"):
        inputs.find_stand_in(config)


@pytest.fixture(scope="module")
def local():
    """A plan on two virtual devices, with the parameters split."""
    changes = {"mesh.data": 1, "mesh.fsdp": 2, "fsdp_min_elements": 1}
    config = runs.tiny(changes | {"ema_decay": 0.9})
    topology = topologies.describe_devices("here", jax.devices()[:2], None)
    return report.make_plan(config, topology)


def test_a_plan_counts_the_parts_of_the_state(local):
    memory, run = local.facts["memory"], local.run
    leaves = jax.tree.leaves(run.param_shapes)
    whole = 4 * sum(int(np.prod(leaf.shape)) for leaf in leaves)
    assert whole / 2 <= memory["parameters"] < whole
    assert memory["average"] == memory["parameters"]
    rows = sum(x.size * x.dtype.itemsize for x in run.batch_shapes.values())
    assert memory["batch"] == rows // 2
    parts = set(memory) - {"total", "limit", "usable", "error"}
    assert memory["total"] == sum(memory[name] for name in parts)
    assert local.facts["fits"] and memory["limit"] is None


def test_a_plan_names_collectives_rates_and_the_host(local):
    kinds = {row["kind"] for row in local.facts["collectives"]}
    assert "all-gather" in kinds and kinds & {"all-reduce", "reduce-scatter"}
    assert all(row["group"] == 2 for row in local.facts["collectives"])
    assert local.facts["flops"]["model"] == local.run.count_flops()
    host = local.facts["host"]
    assert host["rows"] == local.run.config.batch_size  # both devices have one host
    assert host["prefetch_bytes"] == 5 * host["rows"] * host["bytes_per_row"]
    text = "\n".join(report.describe("vit/digits", local.facts))
    assert "2 x cpu" in text and "all-gather" in text and "is not known" in text
    json.dumps(local.facts)


def test_a_plan_is_measured(local):
    found = measuring.measure(local)
    assert found is not None and found["seconds"] > 0
    assert found["memory"] is None  # of a CPU
    text = "\n".join(measuring.describe(local.facts | {"measured": found}))
    assert "ms a step" in text and "does not report it" in text
    beside = found | {"memory": 2 * local.facts["memory"]["total"]}
    assert "+100.0%" in "\n".join(
        measuring.describe(local.facts | {"measured": beside})
    )


def test_what_does_not_fit_is_said(local):
    facts = local.facts | {"fits": False}
    facts["memory"] = facts["memory"] | {"limit": 2**20, "error": "too large"}
    assert "DOES NOT FIT" in "\n".join(report.describe("r", facts))
    assert "does not fit" in report.compare([facts])[1]


def test_a_search_ranks_what_fits_and_tries_remat_only_where_it_must(monkeypatch):
    tried = []

    def make_plan(config, topology):
        size, remat = config["batch_size"], report.find_remat(config["model"])
        mesh = config["mesh"]
        tried.append((size, remat, mesh["fsdp"], mesh["tensor"]))
        if mesh["tensor"] == 2:
            raise ValueError("heads")
        fits = size < 32 or (size < 64 and remat)
        rate = size / (1.5 if remat else 1.0)
        facts = {
            "fits": fits,
            "batch": {"rows": size, "remat": remat},
            "mesh": mesh,
            "host": {"rows_per_second": rate},
        }
        return types.SimpleNamespace(facts=facts)

    monkeypatch.setattr(report, "make_plan", make_plan)
    topology = topologies.describe_devices("here", jax.devices()[:2], None)
    config = runs.tiny({"batch_size": 32})
    lines = []
    found = search.search(config, topology, say=lines.append)
    assert [size for size, _, fsdp, _ in tried if fsdp == 1] == [32, 32, 64, 64, 16]
    ranked = [(f["batch"]["rows"], f["batch"]["remat"], f["fits"]) for f in found]
    assert ranked[:2] == [(32, True, True), (32, True, True)]
    assert ranked[-1][2] is False
    assert any("heads" in line for line in lines)
    assert "--config.batch_size=32" in search.describe_best(found)[1]
    assert "none fits" in search.describe_best([found[-1]])[1]


def test_a_search_without_any_possible_plan_says_why(monkeypatch):
    def refuse(config, topology):
        raise ValueError("no mesh")

    monkeypatch.setattr(report, "make_plan", refuse)
    topology = topologies.describe_devices("here", jax.devices()[:2], None)
    with pytest.raises(ValueError, match="no combination is possible.*no mesh"):
        search.search(runs.tiny(), topology, say=lambda text: None)


@needs_libtpu
def test_a_debug_recipe_is_planned_for_a_tpu_that_is_not_here(capsys):
    plan_command.main(
        ["--config=vit/digits:debug", "--topology=v5e:2x2", "--config.mesh.fsdp=2"]
        + ["--topology=2*v5e:2x2", "--json"]
    )
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    one, two = out["plans"]
    assert one["topology"]["kind"] == "TPU v5 lite" and one["fits"]
    assert one["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert one["memory"]["limit"] == int(15.75 * 2**30)
    assert one["time"]["dcn"] == 0 and one["time"]["step"] > 0
    assert two["topology"]["slices"] == 2 and two["time"]["dcn"] > 0
    assert {row["link"] for row in two["collectives"]} >= {"dcn"}


@needs_libtpu
def test_a_mesh_that_a_topology_cannot_hold_is_refused():
    topology = topologies.open_topology("v5e:2x2")
    with pytest.raises(ValueError, match="v5e:2x2: config.mesh .*asks for 8 devices"):
        report.make_plan(runs.tiny({"mesh.data": 8}), topology)
    with pytest.raises(ValueError, match="there is no such slice"):
        topologies.open_topology("v5e:3x3")
