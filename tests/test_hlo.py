"""The text of compiled programs, read; what they do, counted.

Small programs are compiled here, and lines as the compilers of TPUs and GPUs
write them stand here as they were written.
"""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from medseg_jax.benchmarking.flops import count_flops
from medseg_jax.hardware import collectives, costs, hlo
from medseg_jax.runtime.sharding import create_mesh


def shaped(*shape, dtype=jnp.float32, sharding=None):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def kernels_of(fn, *args, **options):
  text = jax.jit(fn, **options).lower(*args).compile().as_text()
  return costs.kernels(hlo.parse(text))


def total_of(text):
  return costs.total(costs.kernels(hlo.parse(text)))


# The text.


def test_an_instruction_of_a_tpu():
  line = (
    '  %convolution.105 = bf16[32,32,16,5,16]{4,2,3,1,0:T(8,128)(2,1)S(1)} '
    'convolution(%fusion.836, %fusion.503), window={size=3x3x3 '
    'pad=1_1x1_1x0_0}, dim_labels=01b2f_012io->01b2f, '
    'metadata={op_name="jit(f)/conv (one), x" stack_frame_id=81}'
  )
  found = hlo.parse_instruction(line)
  assert (found.name, found.opcode) == ('convolution.105', 'convolution')
  assert found.operands == ('fusion.836', 'fusion.503') and not found.is_root
  [shape] = found.shapes
  assert shape.dtype == 'bf16' and shape.dims == (32, 32, 16, 5, 16)
  assert shape.minor_to_major == (4, 2, 3, 1, 0)
  assert (shape.tile, shape.space) == ((8, 128), 1)
  # 16 channels take the 128 lanes, and 16 rows of a tile of 8.
  assert shape.num_bytes == 2 * 32 * 32 * 16 * 5 * 128
  assert found.attribute('dim_labels') == '01b2f_012io->01b2f'


def test_operands_with_shapes_tuples_and_comments():
  line = (
    '  ROOT %all-reduce.4 = (f32[2,3]{1,0}, /*index=1*/bf16[]{:T(128)}, '
    's32[4]) all-reduce(f32[2,3]{1,0} %a.1, bf16[] %b, s32[4] %c), '
    'replica_groups={{0,1},{2,3}}, to_apply=%add.17.clone'
  )
  found = hlo.parse_instruction(line)
  assert found.is_root and found.operands == ('a.1', 'b', 'c')
  assert [shape.dims for shape in found.shapes] == [(2, 3), (), (4,)]
  assert found.calls() == ('add.17.clone',)
  assert hlo.parse_instruction('}') is None
  assert hlo.parse_instruction('  1 "a file"') is None
  constant = hlo.parse_instruction('  %c = f32[2]{0} constant({1, 2})')
  assert constant.opcode == 'constant' and constant.shapes[0].dims == (2,)


@pytest.mark.parametrize(
  ('text', 'num_bytes'),
  [
    ('f32[10]', 40),
    ('pred[3,5]{1,0}', 15),
    ('f32[]', 4),
    ('f32[3,5]{1,0:T(8,128)}', 4 * 8 * 128),
    ('f32[3,5]{0,1:T(8,128)}', 4 * 8 * 128),
    ('f32[2,9,130]{2,1,0:T(8,128)}', 4 * 2 * 16 * 256),
    ('f32[2,9,130]{0,1,2:T(8,128)}', 4 * 128 * 16 * 130),
    ('bf16[300]{0:T(256)(128)(2,1)}', 2 * 512),
    ('token[]', 0),
  ],
)
def test_bytes_of_a_shape(text, num_bytes):
  assert sum(shape.num_bytes for shape in hlo.parse_shapes(text)) == num_bytes


def test_what_is_no_program_is_told():
  with pytest.raises(ValueError, match='no ENTRY'):
    hlo.parse('<html>')


# Work.


@pytest.mark.parametrize(
  ('size', 'taps', 'stride', 'padding'),
  [
    ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((9, 7), (3, 5), (2, 1), ((1, 1), (2, 2))),
    ((5, 6, 7), (3, 1, 3), (1, 2, 2), ((1, 1), (0, 0), (1, 1))),
  ],
)
def test_operations_are_those_of_the_program_as_it_was_written(
  size, taps, stride, padding
):
  axes = 'DHW'[-len(size) :]

  def conv(x, kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      stride,
      padding,
      dimension_numbers=(f'N{axes}C', f'{axes}IO', f'N{axes}C'),
    )

  def gradients(x, kernel):
    return jax.grad(lambda *args: (conv(*args) ** 2).sum(), (0, 1))(x, kernel)

  args = shaped(2, *size, 3), shaped(*taps, 3, 4)
  found = costs.total(kernels_of(gradients, *args))
  assert found.products == {
    'f32': {'count': 3, 'flops': count_flops(gradients, *args)}
  }
  assert found.flops == count_flops(gradients, *args)


def test_loops_count_as_often_as_they_turn():
  def loop(a):
    return lax.scan(lambda x, _: (jnp.tanh(x @ a), None), a, None, length=7)[0]

  found = costs.total(kernels_of(loop, shaped(16, 16)))
  assert found.flops == 7 * 2 * 16**3
  assert found.products['f32']['count'] == 7


def loop_of_a_tpu(limit, begin='%zero, %x, %seven'):
  return f"""HloModule m
%body (p: (s32[], f32[16], s32[])) -> (s32[], f32[16], s32[]) {{
  %p = (s32[]{{:T(128)}}, f32[16]{{0:T(128)}}, s32[]{{:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %v = f32[16]{{0:T(128)}} get-tuple-element(%p), index=1
  %n = s32[]{{:T(128)}} get-tuple-element(%p), index=2
  %sine = f32[16]{{0:T(128)}} sine(%v)
  ROOT %t = (s32[], f32[16], s32[]) tuple(%i, %sine, %n)
}}

%condition (q: (s32[], f32[16], s32[])) -> pred[] {{
  %five = s32[]{{:T(128)}} constant(5)
  %q = (s32[]{{:T(128)}}, f32[16]{{0:T(128)}}, s32[]{{:T(128)}}) parameter(0)
  %j = s32[]{{:T(128)}} get-tuple-element(%q), index=0
  %most = s32[]{{:T(128)}} get-tuple-element(%q), index=2
  ROOT %lt = pred[]{{:T(512)}} compare(%j, {limit}), direction=LT
}}

ENTRY %main (x: f32[16], many: s32[]) -> (s32[], f32[16], s32[]) {{
  %x = f32[16]{{0:T(128)}} parameter(0)
  %many = s32[]{{:T(128)}} parameter(1)
  %zero = s32[]{{:T(128)}} constant(0)
  %seven = s32[]{{:T(128)}} constant(7)
  %begin = (s32[], f32[16], s32[]) tuple({begin})
  ROOT %w = (s32[], f32[16], s32[]) while(%begin), condition=%condition, body=%body
}}
"""  # noqa: E501


def test_turns_of_loops_that_the_text_does_not_count():
  assert total_of(loop_of_a_tpu('%five')).kernels == 5
  assert total_of(loop_of_a_tpu('%most')).kernels == 7
  # Known only when it runs: once.
  assert total_of(loop_of_a_tpu('%most', '%zero, %x, %many')).kernels == 1


CUDNN = """HloModule jit_step, is_scheduled=true

%fused_add (param_0: f32[4,8], param_1: f32[4,8]) -> f32[4,8] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  %param_1 = f32[4,8]{1,0} parameter(1)
  ROOT %add.1 = f32[4,8]{1,0} add(%param_0, %param_1)
}

ENTRY %main (x: bf16[2,6,6,4], k: bf16[3,3,4,8], dy: bf16[2,6,6,8]) -> f32[4,8] {
  %x = bf16[2,6,6,4]{3,2,1,0} parameter(0)
  %k = bf16[3,3,4,8]{3,2,1,0} parameter(1)
  %dy = bf16[2,6,6,8]{3,2,1,0} parameter(2)
  %conv = (bf16[2,6,6,8]{3,2,1,0}, u8[100]{0}) custom-call(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward", backend_config={"a":{"b":[1,2]}}
  %dk = (bf16[3,3,4,8]{3,2,1,0}, u8[0]{0}) custom-call(%x, %dy), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %dx = (bf16[2,6,6,4]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convBackwardInput"
  %a = f32[4,16]{1,0} constant({...})
  %b = f32[16,8]{1,0} constant({...})
  %gemm = (f32[4,8]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[]}}}
  %product = f32[4,8]{1,0} get-tuple-element(%gemm), index=0
  ROOT %sum = f32[4,8]{1,0} fusion(%product, %product), kind=kLoop, calls=%fused_add
}
"""  # noqa: E501


def test_calls_of_nvidias_libraries():
  found = total_of(CUDNN)
  # Of 3 taps 16 of 18 along an axis of 6 lie within it.
  each = 2 * 2 * 4 * 8 * 16**2
  assert found.products == {
    'bf16': {'count': 3, 'flops': 3 * each},
    'f32': {'count': 1, 'flops': 2 * 4 * 8 * 16},
  }
  assert found.kernels == 5
  x, k, dy = 2 * 2 * 36 * 4, 2 * 9 * 4 * 8, 2 * 2 * 36 * 8
  of_convs = 3 * (x + k + dy) + 100
  of_gemm = 4 * (4 * 16 + 16 * 8 + 4 * 8) + 64
  # The sum reads one array twice, as its two operands.
  assert found.num_bytes == of_convs + of_gemm + 3 * 4 * 32


# Bytes.


def test_a_kernel_reads_and_writes_once():
  [kernel] = kernels_of(lambda x, y: jnp.sin(x) * y + 1, *[shaped(100, 10)] * 2)
  assert kernel.num_bytes == 3 * 4 * 1000
  assert (kernel.kind, kernel.times) == (costs.OTHER, 1)


def test_what_is_taken_of_a_large_array_counts_and_not_the_rest():
  large = shaped(100_000, 8)

  def take(data, start):
    return lax.dynamic_slice(data, (start, 0), (10, 8)) * 2

  found = costs.total(kernels_of(take, large, shaped(dtype=jnp.int32)))
  assert 2 * 4 * 80 <= found.num_bytes < 2 * 4 * 80 + 100

  def look_up(data, rows):
    return data.at[rows].get(mode='promise_in_bounds') * 2

  rows = shaped(5, dtype=jnp.int32)
  found = costs.total(kernels_of(look_up, large, rows))
  assert 2 * 4 * 40 <= found.num_bytes < 4 * 4 * 40 + 100

  def put(data, part):
    return lax.dynamic_update_slice(data, part, (3, 0))

  found = costs.total(kernels_of(put, large, shaped(10, 8), donate_argnums=0))
  assert 2 * 4 * 80 <= found.num_bytes < 3 * 4 * 80 + 100


def test_memory_of_the_chip_itself_is_no_traffic():
  found = total_of("""HloModule m
ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %copy-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %sine = f32[8,128]{1,0:T(8,128)S(1)} sine(%copy-done)
  ROOT %tanh = f32[8,128]{1,0:T(8,128)} tanh(%sine)
}
""")  # noqa: E501
  assert found.num_bytes == 2 * 4096  # in once and out once
  assert found.kernels == 2


# Layouts.

TURNING = """HloModule m
%fused (p: f32[30,20]) -> f32[20,30] {
  %p = f32[30,20]{1,0} parameter(0)
  %turned = f32[20,30]{1,0} transpose(%p), dimensions={1,0}
  ROOT %sine = f32[20,30]{1,0} sine(%turned)
}

ENTRY %main (x: f32[30,20]) -> f32[20,30] {
  %x = f32[30,20]{1,0} parameter(0)
  ROOT %f = f32[20,30]{1,0} fusion(%x), kind=kInput, calls=%fused
}
"""


def test_transposes_and_copies_are_told_apart_from_work():
  def turn(x):
    return x.T

  assert costs.total(kernels_of(turn, shaped(30, 20))).layout_changes == {
    'count': 1,
    'bytes': 2 * 4 * 600,
  }
  found = total_of(TURNING)
  assert found.layout_changes == {'count': 0, 'bytes': 0}
  assert found.turned == {'count': 1, 'bytes': 2400}
  text = jax.jit(turn).lower(shaped(30, 20)).compile().as_text()
  [kernel] = costs.kernels(hlo.parse(text), weights={600})
  assert kernel.kind == costs.OTHER  # of a weight


# Collectives.


def test_collectives_of_a_mesh():
  mesh = create_mesh(data=4, spatial=2)
  by_data = NamedSharding(mesh, PartitionSpec('data'))
  nowhere = NamedSharding(mesh, PartitionSpec())

  def mean(x):
    return x.mean(0)

  found = kernels_of(
    mean, shaped(8, 100, sharding=by_data), out_shardings=nowhere
  )
  [one] = [kernel for kernel in found if kernel.collective]
  assert one.collective == 'all-reduce'
  assert one.groups == ((0, 2, 4, 6), (1, 3, 5, 7))
  assert one.num_bytes == 400 and one.kind == costs.COLLECTIVE
  found = kernels_of(
    lambda x: x, shaped(8, 100, sharding=by_data), out_shardings=nowhere
  )
  [one] = [kernel for kernel in found if kernel.collective]
  assert (one.collective, one.num_bytes) == ('all-gather', 3200)


@pytest.mark.parametrize(
  ('text', 'groups'),
  [
    ('replica_groups={{0,1},{2,3}}, x', ((0, 1), (2, 3))),
    ('source_target_pairs={{0,1},{1,0}}', ((0, 1), (1, 0))),
    ('replica_groups=[2,2]<=[4], use', ((0, 1), (2, 3))),
    ('replica_groups=[2,2]<=[2,2]T(1,0), use', ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
    ('replica_groups={}', ()),
    ('_xla_megascale_target="{1,2}x{0:1}"', ((0, 2), (1, 3))),
  ],
)
def test_who_talks_to_whom(text, groups):
  assert collectives.groups_of(text) == groups


@pytest.mark.parametrize(
  ('groups', 'axes'),
  [
    (((0, 1, 2, 3), (4, 5, 6, 7)), ('spatial',)),
    (((0, 4), (1, 5), (2, 6), (3, 7)), ('data',)),
    (((0, 1), (1, 2, 3), (5,)), ('spatial',)),
    (((0, 1, 2, 3, 4, 5, 6, 7),), ('data', 'spatial')),
    ((), ('data', 'spatial')),
  ],
)
def test_axes_of_the_mesh_that_collectives_lie_along(groups, axes):
  assert collectives.axes_of(groups, {'data': 2, 'spatial': 4}) == axes


def test_collectives_that_start_and_end_count_once():
  found = total_of("""HloModule m
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%wrapped (p: f32[16]) -> f32[4] {
  %p = f32[16]{0} parameter(0)
  ROOT %rs = f32[4]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[16]) -> f32[64] {
  %x = f32[16]{0} parameter(0)
  %ar = f32[16]{0} all-reduce-start(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  %ard = f32[16]{0} all-reduce-done(%ar)
  %rss = ((f32[16]{0}), f32[4]{0}, s32[]) async-start(%ard), calls=%wrapped
  %rsd = f32[4]{0} async-done(%rss)
  %cp = (f32[16]{0}, f32[16]{0}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %cpd = f32[16]{0} collective-permute-done(%cp)
  %ag = (f32[16]{0}, f32[64]{0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %agd = f32[64]{0} all-gather-done(%ag)
}
""")  # noqa: E501
  assert found.collectives == {
    'all-reduce': {'count': 1, 'bytes': 64},
    'reduce-scatter': {'count': 1, 'bytes': 64},
    'collective-permute': {'count': 1, 'bytes': 64},
    'all-gather': {'count': 1, 'bytes': 256},
  }


def test_of_branches_the_dearest_counts():
  found = total_of("""HloModule m
%small (p: f32[16]) -> f32[16] {
  %p = f32[16]{0} parameter(0)
  ROOT %n = f32[16]{0} negate(%p)
}

%large (q: f32[16]) -> f32[16] {
  %q = f32[16]{0} parameter(0)
  %s = f32[16]{0} sine(%q)
  ROOT %t = f32[16]{0} tanh(%s)
}

ENTRY %main (i: s32[], x: f32[16]) -> f32[16] {
  %i = s32[] parameter(0)
  %x = f32[16]{0} parameter(1)
  ROOT %c = f32[16]{0} conditional(%i, %x, %x), branch_computations={%small, %large}
}
""")  # noqa: E501
  assert (found.kernels, found.num_bytes) == (2, 2 * 2 * 64)
