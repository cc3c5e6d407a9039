"""Products of images `[B, *S, C]` with a matrix of few columns: the logits.

On a GPU a product of matrices in float32 has its operands copied first: turned
round where the compiler keeps images channels first, and with all the digits of
float32 where they had those of bfloat16. For few columns it is no work beside
reading the image, so there it is written out, column by column: the compiler
computes that where its operands are made or read. Elsewhere it is the product
of matrices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MOST = 6  # columns
_Pair = tuple[jax.Array, jax.Array]


@jax.custom_vjp
def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Returns `x @ matrix`, `[B, *S, C]` x `[C, F]`, computed in float32.

  Its gradients are reverse-mode only.
  """
  return lax.platform_dependent(x, matrix, cuda=_by_column, default=_at_once)


def _by_column(x: jax.Array, matrix: jax.Array) -> jax.Array:
  wide = x.astype(jnp.float32)
  columns = [jnp.sum(wide * column, -1) for column in matrix.T]
  # As one kernel, where some would be computed again where they are read.
  return jnp.stack(lax.optimization_barrier(columns), -1)


def _at_once(x: jax.Array, matrix: jax.Array) -> jax.Array:
  return x.astype(jnp.float32) @ matrix


def _forward(x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, _Pair]:
  return product(x, matrix), (x, matrix)


def _backward(saved: _Pair, cotangent: jax.Array) -> _Pair:
  return lax.platform_dependent(
    *saved,
    cotangent,
    cuda=_gradients_by_column,
    default=_gradients_at_once,
  )


def _gradients_by_column(
  x: jax.Array, matrix: jax.Array, cotangent: jax.Array
) -> _Pair:
  wide, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
  parts = jnp.split(cotangent, matrix.shape[-1], -1)
  gradient = jnp.zeros_like(wide)
  for part, column in zip(parts, matrix.T, strict=True):
    gradient += part * column
  columns = [jnp.sum(wide * part, axes) for part in parts]
  return gradient.astype(x.dtype), jnp.stack(columns, -1)


def _gradients_at_once(
  x: jax.Array, matrix: jax.Array, cotangent: jax.Array
) -> _Pair:
  of_x, of_matrix = jax.vjp(_at_once, x, matrix)[1](cotangent)
  return of_x, of_matrix


product.defvjp(_forward, _backward)


def narrow_dot(
  x: jax.Array, matrix: jax.Array, *_: Any, **__: Any
) -> jax.Array:
  """Returns what `lax.dot_general` does, which Flax calls so, of bfloat16 `x`.

  Flax has made it float32. As it was, it takes half the memory until the
  backward pass.
  """
  return product(x.astype(jnp.bfloat16), matrix)
