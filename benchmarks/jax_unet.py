"""The time that a training step and a forward pass of medseg_jax take.

  python benchmarks/jax_unet.py --workload=2d_cpu

Prints a line of JSON for a training step, its memory and a forward pass. With
--serve it answers lines of stdin: compare.py alternates it with torch_unet.py.
The step is that of `medseg_jax.programs.train` without augmentation, on one
batch that stays on the device.
"""

import functools

import jax
import numpy as np
import worker
from flax import traverse_util
from workloads import WORKLOADS

from medseg_jax.inference.network import create_predict
from medseg_jax.losses import create_loss
from medseg_jax.models import convolution, create_model
from medseg_jax.optim import create_optimizer, create_schedule
from medseg_jax.runtime import host_memory, process, sharding
from medseg_jax.state import create_state
from medseg_jax.step import TrainStep


class Programs:
  """The compiled step and forward pass of a workload, and a first state.

  Args:
    workload: of `WORKLOADS`.
    dtype: of the computation.
    mesh: of one device.
  """

  def __init__(self, workload, dtype, mesh):
    model = create_model(
      'unet',
      workload['num_classes'],
      dtype=dtype,
      convolutions=convolution.choose(mesh)[0],
      **workload['model'],
    )
    fields = dict(workload['optimizer'])
    schedule = create_schedule(
      learning_rate=fields.pop('learning_rate'), num_steps=1000
    )
    tx = create_optimizer(learning_rate=schedule, **fields)
    train_step = TrainStep(
      model=model,
      tx=tx,
      loss_fn=create_loss(
        {'cross_entropy': 1.0, 'dice_loss': 1.0},
        include_background=workload['include_background'],
      ),
      augment_fn=lambda key, batch: batch,
      schedule=schedule,
      seed=0,
    )
    self.create_state = functools.partial(
      create_state,
      model=model,
      tx=tx,
      key=jax.random.key(0),
      image_shape=(*workload['batch'], workload['channels']),
      mesh=mesh,
    )
    self.step = _compiled_once(
      lambda state, batch: train_step(state, batch),
      donate_argnums=0,
      out_shardings=sharding.replicated(mesh),
    )
    self.predict = _compiled_once(create_predict(model=model))


def _compiled_once(fn, **options):
  """Returns `fn` compiled by the first call, as training does it."""
  compiled = []

  def call(*arguments):
    if not compiled:
      compiled.append(jax.jit(fn, **options).lower(*arguments).compile())
      host_memory.return_freed()
    return compiled[0](*arguments)

  return call


def first_state(programs, mesh):
  """Returns a state whose norms do not start at 1 and 0.

  Else a network with norms in the wrong places could pass for the same.
  """
  rng = np.random.default_rng(1)

  def shifted(value):
    if value.ndim > 1:
      return value
    noise = 0.1 * rng.standard_normal(value.shape).astype(np.float32)
    return jax.device_put(np.asarray(value) + noise, sharding.replicated(mesh))

  state = programs.create_state()
  return state.replace(
    params=jax.tree.map(shifted, state.params),
    batch_stats=jax.tree.map(shifted, state.batch_stats),
  )


def flat_weights(state):
  """Returns parameters and statistics, 'params/encoder_0/...' to array."""
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  return traverse_util.flatten_dict(jax.device_get(variables), sep='/')


def main():
  args = worker.worker_arguments(__doc__)
  workload = WORKLOADS[args.workload]
  on_gpu = workload['device'] == 'gpu'
  process.set_up()
  if on_gpu != (jax.default_backend() != 'cpu'):  # a TPU will do
    raise SystemExit(
      f'{args.workload} is for a {workload["device"]}, and JAX runs on '
      f'{jax.default_backend()} here'
    )
  mesh = sharding.create_mesh(devices=jax.devices()[:1])
  layout = sharding.patches(mesh)
  programs = Programs(workload, workload['dtype'], mesh)
  state = first_state(programs, mesh)

  def to_devices(image, label):
    return {
      'image': sharding.to_devices(layout, image),
      'label': sharding.to_devices(layout, label),
    }

  batch = to_devices(*worker.random_batch(workload, workload['batch']))

  def run_steps(count):
    losses = []

    def once():
      nonlocal state
      state, metrics = programs.step(state, batch)
      losses.append(metrics['loss'])

    seconds = worker.timed(
      once, lambda: jax.block_until_ready(state), int(count), each=not on_gpu
    )
    return {'seconds': seconds, 'loss': float(losses[0])}

  def run_forward(count):
    logits = None

    def once():
      nonlocal logits
      logits = programs.predict(state.eval_variables, batch['image'])

    seconds = worker.timed(
      once, lambda: jax.block_until_ready(logits), int(count), each=not on_gpu
    )
    return {'seconds': seconds}

  def memory(_):
    if on_gpu:
      stats = jax.devices()[0].memory_stats()
      return {'peak_bytes': stats['peak_bytes_in_use']}
    return {'peak_bytes': worker.resident_peak()}

  def save_weights(path):
    np.savez(path, **flat_weights(state))
    return {}

  def check(path):
    """Writes weights, a batch and what they give in float32."""
    image, label = worker.random_batch(workload, workload['check_batch'])
    # On CPU these are the very programs that are timed.
    exact = (
      programs
      if workload['dtype'] == 'float32'
      else Programs(workload, 'float32', mesh)
    )
    copy = first_state(exact, mesh)
    weights = flat_weights(copy)
    small = to_devices(image, label)
    # A GPU would round the inputs of convolutions to TF32.
    with jax.default_matmul_precision('highest' if on_gpu else None):
      logits = exact.predict(copy.eval_variables, small['image'])
      logits = jax.device_get(logits)
      _, metrics = exact.step(copy, small)
    results = {name: metrics[name] for name in ('loss', 'grad_norm')}
    np.savez(
      path,
      image=image,
      label=label,
      logits=logits,
      **jax.device_get(results),
      **weights,
    )
    return {}

  commands = {
    'step': run_steps,
    'forward': run_forward,
    'memory': memory,
    'weights': save_weights,
    'check': check,
  }
  facts = {
    'versions': f'jax {jax.__version__}',
    'device': jax.devices()[0].device_kind,
  }
  with jax.set_mesh(mesh), process.not_kept(mesh):
    worker.serve(commands, facts, args.serve)


if __name__ == '__main__':
  host_memory.restart_with_huge_pages(__file__)
  main()
