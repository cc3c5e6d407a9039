"""The arithmetic work of a function: a count, the same on every backend."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval


def count_flops(fn: Callable, *args: Any) -> int:
  """Returns the floating-point operations of `fn(*args)`; nothing is run.

  Two for each multiply-add of the convolutions and matrix products, which are
  nearly all there is in a network and its gradient; everything else counts 0.
  The compiler's own count is no measure: it leaves out what a backend hands to
  another library. A product with the padding or with a zero that a stride puts
  in between does not count, so a convolution and each of its two gradients have
  the same work. What the result does not depend on does not count either, nor
  do other backends' branches of `lax.platform_dependent`: its default does. Of
  another conditional the dearest branch counts, of a loop whose length is only
  known at run time one turn.

  Args:
    fn: to be traced.
    args: arrays or their `jax.ShapeDtypeStruct`; of global shapes, so the work
      is that of all devices together.
  """
  closed = jax.make_jaxpr(fn)(*args)
  jaxpr, _ = partial_eval.dce_jaxpr(
    closed.jaxpr, [True] * len(closed.jaxpr.outvars)
  )
  return _count(jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
  return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'conv_general_dilated':
    return 2 * _conv_products(equation)
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
    return 2 * math.prod((*equation.outvars[0].aval.shape, *lengths))
  inner = [_count(jaxpr) for jaxpr in _jaxprs(params)]
  if name == 'cond':
    platforms = params.get('branches_platforms') or ()
    return inner[platforms.index(None)] if None in platforms else max(inner)
  return params.get('length', 1) * sum(inner) if name == 'scan' else sum(inner)


def _jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """Yields the programs among an equation's parameters."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item


def _conv_products(equation: core.JaxprEqn) -> int:
  """Returns the products of a convolution, without those with a filled in 0."""
  params = equation.params
  lhs, rhs = (v.aval.shape for v in equation.invars)
  out = equation.outvars[0].aval.shape
  lhs_spec, rhs_spec, out_spec = params['dimension_numbers']
  (_, _, *lhs_axes), (_, features_in, *rhs_axes) = lhs_spec, rhs_spec
  batch, features, *axes = out_spec
  count = out[batch] * out[features] * rhs[features_in]
  for i, (lhs_axis, rhs_axis, axis) in enumerate(
    zip(lhs_axes, rhs_axes, axes, strict=True)
  ):
    first = np.arange(out[axis]) * params['window_strides'][i]
    tap = np.arange(rhs[rhs_axis]) * params['rhs_dilation'][i]
    spread = params['lhs_dilation'][i]
    at = first[:, None] + tap - params['padding'][i][0]
    real = (at % spread == 0) & (at >= 0) & (at < lhs[lhs_axis] * spread)
    count *= int(real.sum())
  return count
