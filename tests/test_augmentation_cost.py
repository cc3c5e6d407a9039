"""What of a compiled program is the augmentation, by its scope."""

import jax
import jax.numpy as jnp

from medseg_jax.hardware import costs, hlo, table


def test_kernels_are_told_by_their_scope():
  found = costs.kernels(
    hlo.parse("""HloModule m
%fused (p: f32[16]) -> f32[16] {
  %p = f32[16]{0} parameter(0)
  ROOT %n = f32[16]{0} negate(%p), metadata={op_name="jit(step)/augment/neg"}
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %x = f32[16]{0} parameter(0), metadata={op_name="x"}
  %a = f32[16]{0} fusion(%x), kind=kLoop, calls=%fused
  %b = f32[16]{0} sine(%a), metadata={op_name="jit(step)/augment/while/body/sin" stack_frame_id=3}
  %c = f32[16]{0} tanh(%b), metadata={op_name="jit(step)/jvp(augmented)/tanh"}
  ROOT %d = f32[16]{0} copy(%c)
}
""")  # noqa: E501
  )
  scopes = [kernel.scope.split('/')[-1] for kernel in found]
  assert scopes == ['neg', 'sin', 'tanh', '']
  within = costs.within(found, 'augment')
  assert [kernel.name for kernel in within] == ['a', 'b']
  assert costs.total(within).num_bytes == 2 * 2 * 64


def test_a_scope_of_a_compiled_program():
  def step(x, weights):
    with jax.named_scope('augment'):
      y = jax.lax.map(lambda row: jnp.sort(jnp.sin(row)), x)
    return y @ weights

  arguments = jnp.zeros((4, 256)), jnp.zeros((256, 256))
  text = jax.jit(step).lower(*arguments).compile().as_text()
  found = costs.kernels(hlo.parse(text))
  within = costs.within(found, 'augment')
  assert {kernel.times for kernel in within if kernel.size == 256} == {4}
  assert costs.total(within).flops == 0
  # Read and written at least once, and not the weights.
  num_bytes = costs.total(within).num_bytes
  assert 2 * 4 * 4 * 256 <= num_bytes < 4 * 256 * 256
  assert costs.total(found).flops == 2 * 4 * 256 * 256


def test_the_table_has_a_line_on_it():
  program = {
    'fits': True,
    'memory_bytes': 2**30,
    'memory_bytes_of': {},
    'flops': 10**12,
    'bytes': 2**30,
    'kernels': 100,
    'convolutions': {},
    'layout_changes': {'count': 0, 'bytes': 0},
    'fused_layout_changes': {'count': 0, 'bytes': 0},
    'collectives': {},
    'least_ms': 20.0,
    'least_share': {'others': 1.0},
    'bandwidth_share': 1.0,
    'augmentation': {
      'kernels': 1234,
      'bytes': 2**29,
      'least_ms': 1.5,
      'least_share': 0.075,
    },
  }
  words = '\n'.join(table._program(program, 2**34))
  assert '1.5 ms, 7.5%, 0.50 GiB, 1,234 kernels' in words
  program['augmentation']['kernels'] = 0
  assert 'augmentation' not in '\n'.join(table._program(program, 2**34))
