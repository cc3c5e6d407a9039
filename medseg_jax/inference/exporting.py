"""A trained network as a file that other programs run: StableHLO and ONNX.

Both hold the weights and take a batch of tiles `[N, *tile, C]`, float32 and
preprocessed as for training, to logits `[N, *tile, K]`. `HOW_TO_CALL` tells
those who get such a file what to do with it.
"""

import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend import core

from medseg_jax.runtime.errors import InputError

PLATFORMS = ('cpu', 'cuda', 'tpu')

HOW_TO_CALL = """\
A trained segmentation network, with its weights, for other programs.

What goes in: a batch of tiles, float32, of shape [N, *tile, C]: N tiles (fill
up the last batch where the file is for a certain number); the spatial axes in
the order in which the program works on a case, of exactly the size of the tile;
C channels last. The tiles have to be preprocessed as in training: same
orientation, spacing and intensity normalisation, which the files do not hold.

What comes out: logits, float32, of shape [N, *tile, K], for K classes, the
background first. The label of a voxel is the class with the largest logit.

network.stablehlo, with nothing but JAX, on CPU, NVIDIA GPU or TPU:

    import jax
    import numpy as np

    with open('network.stablehlo', 'rb') as file:
      exported = jax.export.deserialize(file.read())
    print(exported.in_avals, exported.out_avals)
    logits = exported.call(image)
    labels = np.argmax(logits, -1)

Wrap it in jax.jit where it is called more than once: it is compiled anew for
each number of tiles. JAX promises to load such a file for six months after it
was written, counted in releases. Keep the folder of the model: that is the
archive, from which the network can be exported again.

network.onnx, with nothing but onnxruntime (or another runtime of ONNX):

    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession('network.onnx')
    (logits,) = session.run(['logits'], {'image': image})
    labels = np.argmax(logits, -1)

It computes in float32 whatever the network was trained in.
"""

# JAX writes it to check that N >= 1, and takes it out where N is known.
_CHECK_OF_SHAPES = 'shape_assertion'
_OPSET = 21
_MAX_BYTES = 2**31  # of an ONNX model
_DTYPES = {'bfloat16': jnp.float32}

PredictFn = Callable[[Any, jax.Array], jax.Array]


def to_stablehlo(
  predict_fn: PredictFn,
  variables: Any,
  tile_shape: Sequence[int],
  *,
  batch_size: int | None = None,
) -> bytes:
  """Returns the network as an artifact that `jax.export.deserialize` reads.

  For all of `PLATFORMS`, whichever of them this process runs on.

  Args:
    predict_fn: `(variables, image [N, *tile, C] float32) -> logits
      [N, *tile, K]`, as of `network.create_predict`.
    variables: the weights, a pytree of arrays.
    tile_shape: `(*tile, C)`, positive.
    batch_size: the N, positive; None for any N. With a number all shapes are
      known and there are no custom calls at all, which is for readers other
      than JAX. With None, JAX checks N by a custom call that it takes out
      again as it compiles.

  Raises:
    ValueError: where the program has other custom calls, which are bound to a
      platform or a release; the message names them.
  """
  weights = _on_host(variables)
  size = export.symbolic_shape('n')[0] if batch_size is None else batch_size
  exported = export.export(
    jax.jit(lambda image: predict_fn(weights, image)), platforms=PLATFORMS
  )(jax.ShapeDtypeStruct((size, *tile_shape), jnp.float32))
  allowed = set() if batch_size else {_CHECK_OF_SHAPES}
  if found := custom_calls(exported) - allowed:
    raise ValueError(
      f'the network makes the custom calls {", ".join(sorted(found))}, which '
      'not every platform has: no portable program can be written'
    )
  return bytes(exported.serialize())


def custom_calls(exported: export.Exported) -> set[str]:
  """Returns the names of the custom calls of a program."""
  # As text, the weights of a large network take gigabytes.
  if b'custom_call' not in exported.mlir_module_serialized:
    return set()
  text = exported.mlir_module()
  return set(re.findall(r'stablehlo\.custom_call @"?([^\s"(]+)', text))


def to_onnx(
  predict_fn: PredictFn, variables: Any, tile_shape: Sequence[int]
) -> bytes:
  """Returns the network as an ONNX model, input 'image', output 'logits'.

  For any number of tiles N. Computes in float32, also where the network does
  so in bfloat16, which few runtimes know.

  Args:
    predict_fn: `(variables, image [N, *tile, C] float32) -> logits
      [N, *tile, K]`, as of `network.create_predict`.
    variables: the weights, a pytree of arrays, below 2 GiB.
    tile_shape: `(*tile, C)`, positive.

  Raises:
    InputError: where jax2onnx is not installed or cannot write an operation;
      the message names it.
  """
  with _quiet():
    try:
      import jax2onnx
      import onnx_ir
      import onnx_ir.passes.common
    except ImportError as error:
      raise InputError(
        f'exporting to ONNX needs jax2onnx and onnxruntime ({error}): '
        "pip install 'medseg_jax[export]'"
      ) from error
  weights, tree = jax.tree.flatten(
    jax.tree.map(jnp.asarray, _on_host(variables))
  )
  tile = jax.ShapeDtypeStruct((1, *tile_shape), jnp.float32)
  # What is wrong with the network itself is said here.
  jax.eval_shape(predict_fn, variables, tile)

  def inlined(image: jax.Array) -> jax.Array:
    # Without jit, a scan is written out, too; jax2onnx writes neither that nor
    # a `custom_vjp` for every release of JAX. The weights are arguments, as
    # constants would be rounded to bfloat16 in tracing.
    with jax.disable_jit():
      traced = jax.make_jaxpr(
        lambda *args: predict_fn(jax.tree.unflatten(tree, args[:-1]), args[-1])
      )(*weights, jax.ShapeDtypeStruct(image.shape, image.dtype))
    return _evaluate(traced, [*weights, image])[0]

  try:
    with _quiet():
      model = jax2onnx.to_onnx(
        inlined,
        inputs=[('N', *tile_shape)],
        model_name='medseg_jax',
        opset=_OPSET,
        return_mode='ir',
        input_names=['image'],
        output_names=['logits'],
      )
      # Mirrored, the network is in it several times: its weights but once.
      onnx_ir.passes.common.DeduplicateInitializersPass(_MAX_BYTES)(model)
      return bytes(onnx_ir.to_proto(model).SerializeToString())
  except Exception as error:  # whichever: it has none of its own
    reason = (str(error).splitlines() or [''])[0]
    raise InputError(
      f'the network cannot be written as ONNX, because of {_operation(error)}: '
      f'{type(error).__name__}: {reason}'
    ) from error


def _on_host(variables: Any) -> Any:
  """Returns the arrays as NumPy's, bound to none of the devices they are on."""
  return jax.tree.map(np.asarray, variables)


def _evaluate(jaxpr: Any, args: Sequence[Any]) -> list[Any]:
  """Returns the results of a jaxpr, with the calls in it inlined, in float32.

  Args:
    jaxpr: a `Jaxpr`, or a closed one.
    args: what it is applied to.
  """
  body = getattr(jaxpr, 'jaxpr', jaxpr)
  constants = [_in_float32(value) for value in getattr(jaxpr, 'consts', ())]
  values = dict(
    zip((*body.constvars, *body.invars), (*constants, *args), strict=True)
  )

  def read(atom: Any) -> Any:
    if isinstance(atom, core.Literal):
      return _in_float32(atom.val)
    return values[atom]

  for eqn in body.eqns:
    operands = [read(atom) for atom in eqn.invars]
    inner = _called(eqn)
    if inner is not None:
      results = _evaluate(inner, operands)
    elif eqn.primitive.name == 'platform_index':  # what is for none by name
      results = [np.int32(eqn.params['platforms'].index(None))]
    elif eqn.primitive.name == 'cond' and isinstance(operands[0], np.generic):
      results = _evaluate(eqn.params['branches'][operands[0]], operands[1:])
    else:
      params = {
        key: _DTYPES.get(getattr(value, 'name', ''), value)
        for key, value in eqn.primitive.get_bind_params(eqn.params).items()
      }
      results = eqn.primitive.bind(*operands, **params)
      if not eqn.primitive.multiple_results:
        results = [results]
    values.update(zip(eqn.outvars, results, strict=True))
  return [read(atom) for atom in body.outvars]


def _called(eqn: core.JaxprEqn) -> Any:
  """Returns the jaxpr that the equation calls once as it is, or None."""
  if not eqn.primitive.name.startswith(
    ('custom_vjp_call', 'custom_jvp_call', 'remat', 'checkpoint', 'jit', 'pjit')
  ):
    return None
  return eqn.params.get('call_jaxpr', eqn.params.get('jaxpr'))


def _in_float32(value: Any) -> Any:
  """Returns `value`, as float32 where it is bfloat16."""
  name = getattr(getattr(value, 'dtype', None), 'name', '')
  return np.asarray(value, _DTYPES[name]) if name in _DTYPES else value


def _operation(error: BaseException) -> str:
  """Returns the operation that jax2onnx was at: `eqn` in its own frames."""
  name = 'an unknown operation'
  trace = error.__traceback__
  while trace is not None:
    primitive = getattr(trace.tb_frame.f_locals.get('eqn'), 'primitive', None)
    if primitive is not None:
      name = f'the operation {primitive.name!r}'
    trace = trace.tb_next
  return name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Drops what jax2onnx prints and logs on its way."""
  level = logging.root.manager.disable
  logging.disable(logging.CRITICAL)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.disable(level)
