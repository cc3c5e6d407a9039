"""Convolution and matrix product of oneDNN, the library that jaxlib holds.

XLA compiles oneDNN into its CPU backend and calls it for itself only with
experimental flags, which the jaxlib of Python 3.11 ignores. The calls are the
same ones, `__onednn$convolution` and `__onednn$matmul`, made here directly:
3 to 10 times as fast as XLA's own convolutions where channels are few or axes
are three. They are not an interface that XLA promises to keep, so `why_not`
tries them once and compares with XLA's own result, and `usable` heeds what they
cannot do.
"""

import functools
import json
import math
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from medseg_jax.runtime import process

# The releases of jax that this was tried with: a call that a later one has
# changed might end the process, which no test at run time can catch.
_SINCE, _BEFORE = (0, 10), (0, 13)


def usable() -> bool:
  """Returns whether a program that is compiled now may make the calls.

  Not where JAX would keep it on disk (`jax_compilation_cache_dir`): in writing
  a program XLA takes these calls for others, and reads beyond their end. A
  `jax_persistent_cache_min_compile_time_secs` of infinity keeps nothing.
  """
  config = jax.config.values
  is_kept = (
    config['jax_enable_compilation_cache']
    and config['jax_compilation_cache_dir'] is not None
    and math.isfinite(config['jax_persistent_cache_min_compile_time_secs'])
  )
  return not is_kept and not why_not()


@functools.cache
def why_not() -> str:
  """Returns what keeps this process from the calls, in a few words, or ''."""
  if not _SINCE <= jax.__version_info__[:2] < _BEFORE:
    tried = f'{_SINCE[0]}.{_SINCE[1]} to {_BEFORE[0]}.{_BEFORE[1] - 1}'
    return f'oneDNN was tried with jax {tried}, not with {jax.__version__}'
  if platform.machine() not in ('x86_64', 'AMD64'):
    return f'oneDNN is not for {platform.machine()}'
  image = np.arange(2 * 5 * 4 * 3, dtype=np.float32).reshape(2, 5, 4, 3)
  kernel = np.arange(3 * 2 * 3 * 2, dtype=np.float32).reshape(3, 2, 3, 2)
  strides, padding = (2, 1), ((1, 1), (0, 1))

  def both(
    image: jax.Array, kernel: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    return (
      convolution(image, kernel, strides, padding),
      lax.conv_general_dilated(
        image,
        kernel,
        strides,
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      ),
      matmul(kernel[0, 0], kernel[0, 1]),
    )

  cpu = jax.local_devices(backend='cpu')[0]
  try:
    with (
      process.not_kept(Mesh(np.array([cpu]), ('one',))),
      jax.ensure_compile_time_eval(),
      jax.transfer_guard('allow'),
    ):
      found, expected, product = jax.device_get(
        jax.jit(both)(*jax.device_put((image, kernel), cpu))
      )
  except Exception:  # whatever it is, XLA's own convolution does not need it
    return f'jaxlib {jax.lib.__version__} lacks the calls of oneDNN'
  same = np.allclose(found, expected)
  if same and np.allclose(product, kernel[0, 0].T @ kernel[0, 1]):
    return ''
  return f'oneDNN of jaxlib {jax.lib.__version__} computes something else'


def convolution(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  *,
  swapped: bool = False,
) -> jax.Array:
  """Returns the convolution `[B, *S, C]` x `[*taps, C, F]`, on CPU, float32.

  If `swapped` the kernel is `[*taps, F, C]`.
  """
  rank = x.ndim - 2
  given, made = (rank + 1, rank) if swapped else (rank, rank + 1)
  axes = [str(axis) for axis in range(1, rank + 1)]
  image = {
    'data': {
      'batch_dim': '0',
      'feature_dim': str(rank + 1),
      'spatial_dims': axes,
    }
  }
  config = {
    'dims': str(rank + 2),
    'feature_groups': '1',
    'input': image,
    'output': image,
    'kernel': {
      'filter': {
        'input_feature_dim': str(given),
        'output_feature_dim': str(made),
        'shape': [str(n) for n in kernel.shape],
        'spatial_dims': [str(axis) for axis in range(rank)],
      }
    },
    'window': {
      'pad_left': [str(low) for low, _ in padding],
      'pad_right': [str(high) for _, high in padding],
      'strides': [str(stride) for stride in strides],
      'window_dilations': ['1'] * rank,
    },
  }
  size = [
    (n + sum(pad) - taps) // stride + 1
    for n, pad, taps, stride in zip(
      x.shape[1:-1], padding, kernel.shape, strides, strict=False
    )
  ]
  return _call(
    'convolution',
    {'onednn_conv_config': config},
    (x.shape[0], *size, kernel.shape[made]),
    x,
    kernel,
  )


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns `a.T @ b`, `[K, M]` x `[K, N]` -> `[M, N]`, on CPU, float32."""
  config = {'transpose_a': True, 'transpose_b': False}
  return _call(
    'matmul', {'onednn_matmul_config': config}, (a.shape[1], b.shape[1]), a, b
  )


def _call(
  name: str,
  config: dict[str, Any],
  shape: tuple[int, ...],
  *operands: jax.Array,
) -> jax.Array:
  return jax.ffi.ffi_call(
    f'__onednn${name}',
    jax.ShapeDtypeStruct(shape, operands[0].dtype),
    vmap_method='sequential',
    custom_call_api_version=2,
    legacy_backend_config=json.dumps(config),
  )(*operands)
