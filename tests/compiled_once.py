"""Programs that the runs of a test share: to compile takes most of their time.

For tests of what runs do, not of how they compile.
"""

import jax

from medseg_jax.experiment import compiled_steps, trained_model
from medseg_jax.step import TrainStep

_KEPT = {}


def share(monkeypatch):
  """Compiles the step and the prediction of a config once in this process.

  Another config compiles anew, and so do arrays that are of another shape or
  lie elsewhere, and steps that a test has made its own.
  """
  read_fn_of, predict_of = (
    compiled_steps._read_fn,
    trained_model.compile_predict,
  )

  def read_fn(config, *args, **named):
    made = read_fn_of(config, *args, **named)
    made.config = config.to_json_best_effort()
    return made

  def shared(compile_fn):
    def compile_once(train_step, read_fn, max_count, state, data, mesh):
      arguments = train_step, read_fn, max_count, state, data, mesh
      if type(train_step) is not TrainStep:
        return compile_fn(*arguments)
      key = compile_fn, read_fn.config, max_count, _kind((state, data)), mesh
      return _kept(key, compile_fn, arguments)

    return compile_once

  def compile_predict(config, model, mesh, variables, *options):
    key = config.to_json_best_effort(), mesh, _kind(variables), options
    return _kept(key, predict_of, (config, model, mesh, variables, *options))

  monkeypatch.setattr(compiled_steps, '_read_fn', read_fn)
  for name in ('_compile_whole', '_compile_parts'):
    monkeypatch.setattr(
      compiled_steps, name, shared(getattr(compiled_steps, name))
    )
  monkeypatch.setattr(trained_model, 'compile_predict', compile_predict)


def _kept(key, compile_fn, arguments):
  if key not in _KEPT:
    _KEPT[key] = compile_fn(*arguments)
  return _KEPT[key]


def _kind(tree):
  """Returns what of arrays a program is compiled for."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, tuple((x.shape, x.dtype, x.sharding) for x in leaves)
