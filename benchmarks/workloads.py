"""What `compare.py` times: networks, batches, optimizers."""

# Fields of `medseg_jax.models.unet.UNet`, which both sides know.
_UNET_2D = {
  'depth': 5,
  'norm': 'batch',
  'activation': 'relu',
  'down': 'max_pool',
  'deep_supervision': False,
}
_UNET_3D = {  # as planned: medseg_jax/planner and configs/auto.py
  'features': 32,
  'max_features': 320,
  'norm': 'instance',
  'activation': 'leaky_relu',
  'down': 'stride',
  'deep_supervision': True,
}
_ADAM = {'name': 'adam', 'learning_rate': 1e-3}
_SGD = {
  'name': 'sgd',
  'learning_rate': 0.01,
  'momentum': 0.99,
  'nesterov': True,
  'weight_decay': 3e-5,
  'grad_clip_norm': 12.0,
}
_HIPPOCAMPUS = {
  'device': 'cpu',
  'dtype': 'float32',
  'batch': (2, 40, 56, 40),
  'check_batch': (2, 40, 56, 40),
  'channels': 1,
  'num_classes': 3,
  'include_background': False,
  'model': {**_UNET_3D, 'depth': 4},
  'optimizer': _SGD,
}
# `batch` is [B, *S]; `check_batch` that of the comparison of results, which is
# in float32 always.
WORKLOADS = {
  '2d_cpu': {
    'device': 'cpu',
    'dtype': 'float32',
    'batch': (4, 256, 256),
    'check_batch': (4, 256, 256),
    'channels': 3,
    'num_classes': 2,
    'include_background': True,
    'model': {**_UNET_2D, 'features': 32, 'max_features': 512},
    'optimizer': _ADAM,
  },
  '3d_cpu': _HIPPOCAMPUS,
  '2d_gpu': {
    'device': 'gpu',
    'dtype': 'bfloat16',
    'batch': (16, 512, 512),
    'check_batch': (2, 256, 256),
    'channels': 3,
    'num_classes': 2,
    'include_background': True,
    'model': {**_UNET_2D, 'features': 64, 'max_features': 1024},
    'optimizer': _ADAM,
  },
}
for _size in (2, 8):
  WORKLOADS[f'3d_gpu_b{_size}'] = {
    **_HIPPOCAMPUS,
    'device': 'gpu',
    'dtype': 'bfloat16',
    'batch': (_size, 128, 128, 128),
    'check_batch': (1, 64, 64, 64),
    'model': {**_UNET_3D, 'depth': 6},
  }

# The same in small, for a CPU, to see whether what times them works.
SMALL = '_small'
for _name, _workload in list(WORKLOADS.items()):
  if _workload['device'] == 'gpu':
    _rank = len(_workload['batch']) - 1
    WORKLOADS[_name + SMALL] = {
      **_workload,
      'device': 'cpu',
      'batch': (2, *(32,) * _rank),
      'check_batch': (1, *(32,) * _rank),
      'model': {**_workload['model'], 'depth': 2, 'features': 4},
    }

KINDS = ('step', 'forward')
