"""Collectives read from HLO text: small texts for each form, and real programs on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bagpiper_jax.errors import UserError
from bagpiper_jax.training.collectives import (
    Collective,
    bytes_by_axis,
    collectives,
    compile_with_dump,
)

MESH = {"replica": 2, "fsdp": 2, "tensor": 2}


def module(*lines, before="", devices=8):
    body = "\n".join(f"  {line}" for line in lines)
    return f"""HloModule jit_step, is_scheduled=true, num_partitions={devices}

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}
{before}
ENTRY %main (x: bf16[64,128]) -> bf16[64,128] {{
  %x = bf16[64,128]{{1,0:T(8,128)(2,1)}} parameter(0)
{body}
}}
"""


def function(name, *lines):
    """A computation with the argument and the result of a module."""
    body = "\n".join(f"  {line}" for line in ("%x = bf16[64,128]{1,0} parameter(0)", *lines))
    return f"\n%{name} (x: bf16[64,128]) -> bf16[64,128] {{\n{body}\n}}\n"


def reduce(groups):
    return module(
        f"ROOT %r = bf16[64,128]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={groups}, "
        "use_global_device_ids=true, to_apply=%add"
    )


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ["tensor"]),
        ("{{0,2},{1,3},{4,6},{5,7}}", ["fsdp"]),
        ("{{0,1,2,3},{4,5,6,7}}", ["fsdp", "tensor"]),
        ("{}", ["replica", "fsdp", "tensor"]),
        ("[4,2]<=[8]", ["tensor"]),
        ("[2,4]<=[8]", ["fsdp", "tensor"]),
        ("[4,2]<=[2,4]T(1,0)", ["replica"]),
        ("[4,2]<=[2,2,2]T(0,2,1)", ["fsdp"]),
        ("[2,4]<=[4,2]T(1,0)", ["replica", "fsdp"]),
        ("mesh['a'=2,'b'=4] {'b'}", ["fsdp", "tensor"]),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ["replica", "tensor"]),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", ["fsdp"]),
        ("mesh['a'=2,'b'=4] {'a','b':(2)2}", ["replica", "tensor"]),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", ["replica"]),
        ("mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'a'}", ["tensor"]),
    ],
)
def test_groups_of_devices(groups, axes):
    (op,) = collectives(reduce(groups), MESH)
    assert op == Collective("all-reduce", tuple(axes), 2 ** len(axes), 64 * 128 * 2)


def test_part_of_an_axis_on_a_large_mesh():
    text = reduce("mesh['axis_0'=8,'axis_1'=8,'axis_2'=16] {'axis_0':(2)4,'axis_1':(2)4}")
    mesh = {"replica": 8, "fsdp": 8, "tensor": 16}
    (op,) = collectives(text.replace("num_partitions=8", "num_partitions=1024"), mesh)
    assert (op.axes, op.group) == (("replica", "fsdp"), 16)


def test_groups_of_one_send_nothing():
    assert collectives(reduce("{{0},{1},{2},{3},{4},{5},{6},{7}}"), MESH) == []


SIZE = 64 * 128 * 2
FSDP = "replica_groups={{0,2},{1,3},{4,6},{5,7}}"
WIDE = "replica_groups=[2,4]<=[8]"
PAIRS = "source_target_pairs={{0,2},{2,0},{1,3},{3,1},{4,4}}"


@pytest.mark.parametrize(
    ("line", "group", "size", "sent"),
    [
        (f"bf16[256,128] all-gather(%x), {WIDE}, dimensions={{0}}", 4, 4 * SIZE, 3 * SIZE),
        (f"bf16[16,128] reduce-scatter(%x), {WIDE}, to_apply=%add", 4, SIZE // 4, 0.75 * SIZE),
        (f"bf16[64,128] all-reduce(%x), {WIDE}, to_apply=%add", 4, SIZE, 1.5 * SIZE),
        (f"bf16[64,128] all-to-all(%x), {WIDE}, dimensions={{1}}", 4, SIZE, 0.75 * SIZE),
        (f"bf16[64,128] collective-permute(%x), {PAIRS}", 2, SIZE, SIZE),
        # several arrays at once
        (f"(bf16[64,128], bf16[64,128]) all-reduce(%x, %x), {WIDE}", 4, 2 * SIZE, 3 * SIZE),
        (
            f"(bf16[128,128], /*index=1*/bf16[128,128]) all-gather(%x, /*index=1*/%x), {FSDP}",
            2,
            4 * SIZE,
            2 * SIZE,
        ),
        # asynchronous: the result holds operands and contexts too
        (f"(bf16[64,128], bf16[128,128]) all-gather-start(%x), {FSDP}", 2, 2 * SIZE, SIZE),
        (f"bf16[64,128] all-reduce-start(%x), {FSDP}, to_apply=%add", 2, SIZE, SIZE),
        (
            f"(bf16[64,128], bf16[64,128], u32[]) collective-permute-start(%x), {PAIRS}",
            2,
            SIZE,
            SIZE,
        ),
    ],
)
def test_kinds_and_sizes(line, group, size, sent):
    (op,) = collectives(module(f"ROOT %r = {line}"), MESH)
    assert f"{op.kind}(" in line or f"{op.kind}-start(" in line
    assert (op.group, op.bytes_per_device, op.count) == (group, size, 1)
    assert op.sent == sent
    assert bytes_by_axis([op, op]) == {op.axes: 2 * sent}


@pytest.mark.parametrize(
    ("type_", "size"),
    [("pred[8]", 8), ("s4[8]", 4), ("f8e4m3fn[2,4]", 8), ("f32[]", 4), ("c64[2,3]{1,0}", 48)],
)
def test_sizes_of_types(type_, size):
    text = module(
        f"%y = {type_} parameter(1)", f"ROOT %r = {type_} collective-permute(%y), {PAIRS}"
    )
    assert collectives(text, MESH)[0].bytes_per_device == size


def loop(name, test, step):
    """A loop from 0 in the second element of its state, with an all-reduce inside."""
    return f"""
%{name}_condition (p: (bf16[64,128], s32[])) -> pred[] {{
  %p = (bf16[64,128]{{1,0}}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=1
  %bound = s32[] constant(6)
  ROOT %test = pred[] compare({test}
}}

%{name}_body (p: (bf16[64,128], s32[])) -> (bf16[64,128], s32[]) {{
  %p = (bf16[64,128]{{1,0}}, s32[]) parameter(0)
  %h = bf16[64,128]{{1,0}} get-tuple-element(%p), index=0
  %i = s32[] get-tuple-element(%p), index=1
  %i.copy = s32[] copy(%i)
  %r = bf16[64,128]{{1,0}} all-reduce(%h), {FSDP}, to_apply=%add
  %step = s32[] constant({step})
  %next = s32[] add(%i.copy, %step)
  ROOT %state = (bf16[64,128]{{1,0}}, s32[]) tuple(%r, %next)
}}
"""


def run(name, start=0, attributes=""):
    return (
        f"%start = s32[] constant({start})",
        "%state = (bf16[64,128]{1,0}, s32[]) tuple(%x, %start)",
        f"%loop = (bf16[64,128]{{1,0}}, s32[]) while(%state), condition=%{name}_condition, "
        f"body=%{name}_body{attributes}",
        "ROOT %out = bf16[64,128]{1,0} get-tuple-element(%loop), index=0",
    )


@pytest.mark.parametrize(
    ("test", "start", "step", "count"),
    [
        ("%i, %bound), direction=LT", 0, 1, 6),
        ("%i, %bound), direction=LT", 0, 4, 2),
        ("%i, %bound), direction=LE", 0, 2, 4),
        ("%bound, %i), direction=GT", 1, 1, 5),
        ("%i, %bound), direction=NE", 2, 2, 2),
        ("%i, %bound), direction=GT", 10, -1, 4),
        ("%i, %bound), direction=GE", 10, -1, 5),
    ],
)
def test_loops_from_their_condition(test, start, step, count):
    text = module(*run("a", start), before=loop("a", test, step))
    assert [op.count for op in collectives(text, MESH)] == [count]


def test_loops_that_tell_their_count():
    known = ', backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0"}}'
    text = module(*run("a", attributes=known), before=loop("a", "%i, %i), direction=NE", 1))
    assert [op.count for op in collectives(text, MESH)] == [5]


def test_loops_that_do_not_tell():
    text = module(*run("a"), before=loop("a", "%i, %i), direction=NE", 1))
    with pytest.raises(ValueError, match="a_body"):
        collectives(text, MESH)
    # without collectives it does not matter
    assert collectives(text.replace(FSDP, "replica_groups=[8,1]<=[8]"), MESH) == []


def test_a_loop_in_a_loop():
    inner = loop("inner", "%i, %bound), direction=LT", 1)
    outer = loop("outer", "%i, %bound), direction=LT", 2).replace(
        f"all-reduce(%h), {FSDP}, to_apply=%add", "call(%h), to_apply=%inside"
    )
    text = module(*run("outer"), before=inner + function("inside", *run("inner")) + outer)
    assert [op.count for op in collectives(text, MESH)] == [3 * 6]


def test_of_branches_the_dearest_counts():
    sums = [f"%r{i} = bf16[64,128] all-reduce(%x), {FSDP}" for i in range(3)]
    end = "ROOT %c = bf16[64,128] copy(%x)"
    before = function("few", sums[0], end) + function("many", *sums, end) + function("none", end)
    for callees in (
        "branch_computations={%few, %many, %none}",
        "true_computation=%many, false_computation=%few",
    ):
        text = module(f"ROOT %r = bf16[64,128] conditional(%x), {callees}", before=before)
        assert [op.count for op in collectives(text, MESH)] == [3]


def test_a_fusion_that_scatters_a_sum():
    fused = f"""
%all-reduce-scatter.1 (input: bf16[64,128]) -> bf16[32,128] {{
  %input = bf16[64,128]{{1,0:T(8,128)(2,1)}} parameter(0)
  %all-reduce.5 = bf16[64,128]{{1,0}} all-reduce(%input), {FSDP}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %slice = bf16[32,128]{{1,0}} dynamic-slice(%all-reduce.5, %zero, %zero)
}}
"""
    line = "ROOT %f = bf16[32,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"
    (op,) = collectives(module(line, before=fused), MESH)
    assert op == Collective("reduce-scatter", ("fsdp",), 2, SIZE // 2)
    assert op.sent == SIZE / 2


def test_wrapped_asynchronous_operations_count_once():
    wrapped = f"""
%wrapped (p: bf16[64,128]) -> bf16[32,128] {{
  %p = bf16[64,128]{{1,0}} parameter(0)
  ROOT %r = bf16[32,128]{{1,0}} reduce-scatter(%p), {FSDP}, dimensions={{0}}, to_apply=%add
}}
"""
    start = "((bf16[64,128]), bf16[32,128], u32[])"
    lines = (
        f"%s = {start} async-start(%x), calls=%wrapped",
        f"%u = {start} async-update(%s), calls=%wrapped",
        "ROOT %d = bf16[32,128]{1,0} async-done(%u), calls=%wrapped",
    )
    assert [op.count for op in collectives(module(*lines, before=wrapped), MESH)] == [1]


@pytest.mark.parametrize(
    ("transfer", "target", "sent"),
    [
        ("ALL_REDUCE", '"{1,2}x{0:3}"', SIZE),
        ("ALL_GATHER", "{{100000,200000},{100001,200001}}", SIZE),
        ("REDUCE_SCATTER", '"{1,2}x{0:3}"', SIZE / 2),
        ("ONE_TO_ONE", "{{100000->200000},{200000->100000}}", SIZE),
    ],
)
def test_sends_between_slices(transfer, target, sent):
    attributes = (
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="runtime",'
        f'_xla_megascale_target={target},_xla_megascale_transfer_type="{transfer}"}}'
    )
    text = module(
        "%token = token[] after-all()",
        f"%s = (bf16[64,128], u32[], token[]) send(%x, %token), {attributes}",
        f"%r = (bf16[64,128], u32[], token[]) recv(%token), {attributes}",
        "ROOT %y = bf16[64,128] all-reduce(%x), replica_groups={}, to_apply=%add",
        devices=4,
    )
    ops = {op.across_slices: op for op in collectives(text, MESH, num_slices=2)}
    assert (ops[True].axes, ops[True].sent) == (("replica",), sent)
    assert (ops[False].axes, ops[False].sent) == (("fsdp", "tensor"), 1.5 * SIZE)


def test_slices_on_the_inner_axis():
    text = module(
        "%token = token[] after-all()",
        "ROOT %s = (bf16[64,128], u32[], token[]) send(%x, %token), frontend_attributes={"
        "_xla_megascale_target={{100000,200000},{300001,400001}},"
        '_xla_megascale_transfer_type="ALL_REDUCE"}',
        devices=2,
    )
    assert collectives(text, MESH, num_slices=4)[0].axes == ("fsdp",)


def test_wrong_meshes():
    text = reduce("{}")
    with pytest.raises(UserError, match="8 devices, the mesh has 4"):
        collectives(text, {"fsdp": 4})
    with pytest.raises(UserError, match="3 slices"):
        collectives(text, MESH, num_slices=3)
    with pytest.raises(ValueError, match="no entry"):
        collectives("HloModule nothing", MESH)


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:8]).reshape(*MESH.values()), tuple(MESH))


def shape(mesh, dims, spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))


def test_a_real_program(mesh):
    def step(x, w):
        def body(x, _):
            return jax.lax.psum(x, "fsdp") * 0.5, None

        x, _ = jax.lax.scan(body, x, None, length=5)
        w = jax.lax.all_gather(w, "tensor", tiled=True)
        own = jax.lax.psum_scatter(x, "replica", scatter_dimension=0, tiled=True)
        other = jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)])
        split = jax.lax.all_to_all(x, ("replica", "tensor"), 0, 1, tiled=True)
        return w, own, other, split

    everywhere = P(("replica", "fsdp", "tensor"))
    run = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(everywhere, P("tensor")),
        out_specs=(P(), everywhere, everywhere, everywhere),
        check_vma=False,
    )
    lowered = jax.jit(run).lower(
        shape(mesh, (64, 32), everywhere), shape(mesh, (16, 3), P("tensor"))
    )
    compiled, text = compile_with_dump(lowered)
    assert text == compiled.as_text()
    own = 8 * 32 * 4
    assert set(collectives(text, MESH)) == {
        Collective("all-reduce", ("fsdp",), 2, own, count=5),
        Collective("all-gather", ("tensor",), 2, 16 * 3 * 4),
        Collective("reduce-scatter", ("replica",), 2, own // 2),
        Collective("collective-permute", ("tensor",), 2, own),
        Collective("all-to-all", ("replica", "tensor"), 4, own),
    }


def test_layers_whose_weights_are_split():
    sizes = {"replica": 2, "fsdp": 4}
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), tuple(sizes))
    layers, width = 3, 16
    split, rows = P(None, "fsdp"), P(("replica", "fsdp"))

    def loss(w, x):
        def layer(x, w):
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, rows))
            return jnp.tanh(x @ w), None

        return (jax.lax.scan(layer, x, w)[0] ** 2).mean()

    gradient = jax.jit(jax.grad(loss), out_shardings=NamedSharding(mesh, split))
    lowered = gradient.lower(
        shape(mesh, (layers, width, width), split), shape(mesh, (64, width), rows)
    )
    ops = collectives(compile_with_dump(lowered)[1], sizes)
    weight = width * width * 4
    # gathered in the forward and the backward pass; on a CPU the sum is not scattered
    assert set(ops) == {
        Collective("all-gather", ("fsdp",), 4, weight, count=2 * layers),
        Collective("all-reduce", ("fsdp",), 4, weight, count=layers),
        Collective("all-reduce", ("replica",), 2, weight // 4, count=layers),
    }
    assert bytes_by_axis(ops) == {
        ("fsdp",): (2 + 2) * 0.75 * layers * weight,
        ("replica",): layers * weight / 4,
    }


@pytest.fixture
def topology(monkeypatch):
    """TPU topologies that need no TPU, only its compiler."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return lambda name, **kwargs: (
        topologies.get_topology_desc(platform="tpu", topology_name=name, **kwargs).devices
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "slices"), [("v5e:4x4", 1), ("v5e:2x4", 2)])
def test_a_program_for_tpus(topology, name, slices):
    devices = topology(name, **({"num_slices": slices} if slices > 1 else {}))
    sizes = {"replica": 2, "fsdp": 8}
    mesh = Mesh(np.array(devices).reshape(2, 8), tuple(sizes))

    def step(w):
        def body(w, _):
            grad = jax.lax.all_gather(w, "fsdp", tiled=True) * 2
            grad = jax.lax.psum_scatter(grad, "fsdp", tiled=True)
            return jax.lax.psum(grad, "replica"), None

        return jax.lax.scan(body, w, None, length=5)[0]

    spec = P(("replica", "fsdp"))
    run = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    compiled, text = compile_with_dump(jax.jit(run).lower(shape(mesh, (256, 1024, 128), spec)))
    own = 16 * 1024 * 128 * 4
    assert set(collectives(text, sizes, num_slices=slices)) == {
        Collective("all-gather", ("fsdp",), 8, 8 * own, count=5),
        Collective("reduce-scatter", ("fsdp",), 8, own, count=5),
        Collective("all-reduce", ("replica",), 2, own, count=5, across_slices=slices > 1),
    }
    assert compiled.memory_analysis().argument_size_in_bytes == own
