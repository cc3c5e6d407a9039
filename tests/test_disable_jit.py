"""A debugger can stop inside the step: nothing is compiled if JAX is told."""

import jax
import numpy as np
from small import load, shrink

from medseg_jax import step
from medseg_jax.programs import train


def test_training_and_evaluation_run_operation_by_operation(
  tmp_path, monkeypatch
):
  seen = []
  update = step.TrainStep.update

  def watch(self, state, gradient):
    seen.append(float(gradient.loss))  # a number, not a tracer
    return update(self, state, gradient)

  config = shrink(load('unet'), size=8, num_steps=2)
  config.batch_size = 2
  config.log_every, config.eval_every = 1, 0
  for split, count in [('train', 4), ('val', 0), ('test', 1)]:
    config.data.phantom[f'num_{split}'] = count
  config.mesh.data = 1
  # Every operation compiles for itself, which takes its time.
  config.loss.dice_loss = 0.0
  config.model.norm = 'instance'
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  monkeypatch.setattr(step.TrainStep, 'update', watch)
  with jax.disable_jit():
    summary = train.run(config, tmp_path)
  assert len(seen) == 2 and np.isfinite(seen).all()
  assert summary['num_cases'] == 1 and summary['step'] == 2
