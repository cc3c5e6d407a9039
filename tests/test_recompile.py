"""Nothing compiles any more once every part of the loop has had its turn."""

import jax
import pytest
from small import load, shrink

from medseg_jax.programs import train
from medseg_jax.runtime.metric_writer import MetricWriter

COMPILED = '/jax/core/compile/backend_compile_duration'


@pytest.mark.parametrize('device_cache', ['on', 'off'])
def test_the_loop_compiles_each_program_once(
  device_cache, tmp_path, monkeypatch
):
  events = []  # 'compiled', or (step, split) of what was logged
  scalars = MetricWriter.scalars

  def log(self, step, split, values):
    events.append((step, split))
    scalars(self, step, split, values)

  def listen(event, seconds, **_):
    if event == COMPILED:
      events.append('compiled')

  monkeypatch.setattr(MetricWriter, 'scalars', log)
  config = shrink(load('unet'), num_steps=6, augmented=True)
  config.data.device_cache = device_cache
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    train.run(config, tmp_path)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert events[0] == 'compiled'
  first, second = events.index((1, 'train')), events.index((2, 'train'))
  assert second == first + 1
  # The first evaluation and the first saving have programs of their own.
  assert events[events.index((3, 'train')) : events.index((6, 'val'))] == [
    (3, 'train'),
    (4, 'train'),
    (4, 'val'),
    (5, 'train'),
    (6, 'train'),
  ]
