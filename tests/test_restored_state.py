"""The state that a training goes on from, and the averages in it."""

import jax
import numpy as np
import optax
import pytest

from medseg_jax.experiment import members, trained_model
from medseg_jax.experiment.restored_state import restore_state
from medseg_jax.losses import create_loss
from medseg_jax.models import create_model
from medseg_jax.runtime.checkpoint import LATEST, Checkpoints
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.sharding import create_mesh
from medseg_jax.state import abstract_state, abstract_variables, create_state
from medseg_jax.step import TrainStep

DECAY = 0.6


@pytest.fixture(scope='module', params=['batch', 'instance'])
def trained(request):
  """Returns arguments of a state, and the states of the steps 0 to 3."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'device_count', lambda: 1)
    mesh = create_mesh()
  model = create_model(
    'unet', num_classes=2, features=2, depth=1, norm=request.param
  )
  tx = optax.sgd(0.1, momentum=0.9)
  arguments = dict(
    model=model, tx=tx, image_shape=(1, 8, 8, 1), mesh=mesh, ema=True
  )
  step = TrainStep(
    model=model,
    tx=tx,
    loss_fn=create_loss({'cross_entropy': 1.0}),
    augment_fn=lambda key, batch: batch,
    schedule=optax.constant_schedule(0.1),
    seed=0,
    ema_decay=DECAY,
  )
  step, rng = jax.jit(step), np.random.default_rng(0)
  states = [create_state(key=jax.random.key(0), **arguments)]
  for _ in range(3):
    batch = {
      'image': rng.normal(2, 3, (2, 8, 8, 1)).astype(np.float16),
      'label': rng.integers(0, 2, (2, 8, 8)).astype(np.int16),
    }
    states.append(step(states[-1], batch)[0])
  return arguments, states


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_weights_and_statistics_are_averaged_alike(trained):
  _, (state, *states) = trained
  average = state.params, state.batch_stats
  for number, state in enumerate(states):
    decay = min(DECAY, (1 + number) / (10 + number))
    average = jax.tree.map(
      lambda old, new, decay=decay: decay * old + (1 - decay) * new,
      average,
      (state.params, state.batch_stats),
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      (state.ema_params, state.ema_batch_stats),
      average,
    )
  expected = {'params': state.ema_params}
  if state.batch_stats:
    expected['batch_stats'] = state.ema_batch_stats
  assert state.eval_variables == expected


def test_what_predicts_has_the_parts_of_the_network(trained):
  # Of a norm without running statistics as well: programs are compiled for the
  # one and called with the other.
  arguments, states = trained
  names = 'model', 'image_shape', 'mesh'
  expected = abstract_variables(**{name: arguments[name] for name in names})
  for state in (states[-1], states[-1].replace(ema_params=None)):
    found = state.eval_variables
    assert jax.tree.structure(found) == jax.tree.structure(expected)


def save(folder, state):
  checkpoints = Checkpoints(folder, writes=True)
  checkpoints.save(LATEST, int(state.step), state, {})
  checkpoints.wait()
  return checkpoints


def test_it_is_restored_whole(trained, tmp_path):
  arguments, (*_, state) = trained
  checkpoints = save(tmp_path, state)
  abstract = abstract_state(**arguments)
  restored, _ = restore_state(checkpoints, abstract)
  assert_equal(restored, state)
  assert jax.tree.structure(restored) == jax.tree.structure(abstract)
  checkpoints.close()


def test_a_checkpoint_from_before_the_average_of_statistics_is_read(
  trained, tmp_path, monkeypatch
):
  arguments, (*_, state) = trained
  checkpoints = save(tmp_path, state.replace(ema_batch_stats=None))
  abstract = abstract_state(**arguments)
  restored, _ = restore_state(checkpoints, abstract)
  assert_equal(restored, state.replace(ema_batch_stats=state.batch_stats))
  assert jax.tree.structure(restored) == jax.tree.structure(abstract)
  # Another buffer: one that is donated twice is an error.
  for a, b in zip(
    jax.tree.leaves(restored.batch_stats),
    jax.tree.leaves(restored.ema_batch_stats),
    strict=True,
  ):
    assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
  # It predicts with what it has, too.
  variables = {k: v for k, v in arguments.items() if k not in ('tx', 'ema')}
  monkeypatch.setattr(
    members,
    'abstract_variables_of',
    lambda config, mesh: abstract_variables(**variables),
  )
  found, step = trained_model.restore_variables(checkpoints, LATEST, None)
  assert step == 3
  assert_equal(found['params'], state.ema_params)
  assert_equal(found.get('batch_stats', {}), state.batch_stats)
  checkpoints.close()


def test_what_predicts_are_both_averages(trained, tmp_path, monkeypatch):
  arguments, (*_, state) = trained
  checkpoints = save(tmp_path, state)
  variables = {k: v for k, v in arguments.items() if k not in ('tx', 'ema')}
  monkeypatch.setattr(
    members,
    'abstract_variables_of',
    lambda config, mesh: abstract_variables(**variables),
  )
  found, _ = trained_model.restore_variables(checkpoints, LATEST, None)
  assert_equal(found['params'], state.ema_params)
  assert_equal(found.get('batch_stats', {}), state.ema_batch_stats)
  checkpoints.close()


def test_a_state_without_averages_is_of_another_run(trained, tmp_path):
  arguments, (*_, state) = trained
  checkpoints = save(tmp_path, state)
  abstract = abstract_state(**(arguments | {'ema': False}))
  with pytest.raises(InputError, match='of another model: ema_'):
    restore_state(checkpoints, abstract)
  checkpoints.close()
