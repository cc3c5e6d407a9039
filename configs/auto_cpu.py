"""The same as configs/auto.py, small enough for two CPU cores in an hour.

  python -m medseg_jax.main --config=configs/auto_cpu.py --config.data.path=DIR

The planned network with half the features, two patches a step, which grow, and
AdamW; 1/25 of the steps. `auto_cpu.py:2d` likewise. Hippocampus, all 260
volumes, each by the one of five folds that held it out, with
`--config.augment.flip_axes='(2,)'`: Dice 0.898 anterior, 0.881 posterior, in
21 min a fold, alone on two cores (2026-11-28).
"""

from configs import auto


def get_config(configuration=''):
  config = auto.get_config(configuration)
  config.num_steps = 10_000
  config.dtype = 'float32'
  config.batch_size = 2
  config.patch_growth = (0.5, 0.625, 0.75, 1.0)
  config.model.features = 16  # half of the plan's, and so at every stage
  config.ema_decay = 0.99
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 2e-3
  config.optimizer.weight_decay = 1e-3
  config.schedule.name = 'cosine'
  config.schedule.warmup_fraction = 0.03
  config.inference.batch_size = 1  # a core gains nothing from more
  config.log_every = 50
  config.eval_every = 2000
  config.checkpoint_every = 1000
  return config
