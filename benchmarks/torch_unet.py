"""The U-Net of medseg_jax in PyTorch, and the time it takes.

  python benchmarks/torch_unet.py --workload=2d_cpu

Prints a line of JSON for a training step, its memory and a forward pass. With
--serve it answers lines of stdin: compare.py alternates it with jax_unet.py.
Written as for speed: channels last, fused optimizer; on a GPU torch.compile,
autocast to bfloat16, cuDNN's choice by trial.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
import worker
from torch import nn
from workloads import WORKLOADS

ACTIVATIONS = {
  'relu': functools.partial(F.relu, inplace=True),
  'leaky_relu': functools.partial(
    F.leaky_relu, negative_slope=0.01, inplace=True
  ),
}
# By the number of spatial axes.
CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class InstanceNorm(nn.Module):
  """Instance normalisation with a factor and an offset for each channel.

  Args:
    features: channels.
    formula: 'module' is what nn.InstanceNorm does, which leaves channels-last;
      'group' is group normalisation with a channel a group, the fastest on CPU;
      'written' is written out, for torch.compile to fuse, with float32
      statistics and without a change of layout.
  """

  def __init__(self, features: int, formula: str):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(features))
    self.bias = nn.Parameter(torch.zeros(features))
    self.formula = formula

  def forward(self, x):
    if self.formula == 'module':
      return F.instance_norm(x, weight=self.weight, bias=self.bias)
    if self.formula == 'group':
      return F.group_norm(x, len(self.weight), self.weight, self.bias)
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    wide = x.float()
    variance, mean = torch.var_mean(
      wide, tuple(range(2, x.ndim)), correction=0, keepdim=True
    )
    scale = torch.rsqrt(variance + 1e-5) * self.weight.view(shape)
    return ((wide - mean) * scale + self.bias.view(shape)).to(x.dtype)


class Stage(nn.Module):
  """Two convolutions, each followed by norm and activation."""

  def __init__(self, rank, channels, features, stride, norm, activation):
    super().__init__()
    for i in range(2):
      conv = CONV[rank](
        features if i else channels,
        features,
        kernel_size=3,
        padding=1,
        stride=1 if i else stride,
        bias=False,
      )
      self.add_module(f'conv_{i}', conv)
      self.add_module(f'norm_{i}', norm(features))
    self.activation = ACTIVATIONS[activation]

  def forward(self, x):
    x = self.activation(self.norm_0(self.conv_0(x)))
    return self.activation(self.norm_1(self.conv_1(x)))


class UNet(nn.Module):
  """The network of medseg_jax.models.unet.UNet, submodules named alike.

  Args:
    rank: number of spatial axes, 2 or 3.
    channels: of the image.
    num_classes: channels of the logits.
    features: channels of the first stage, doubled at each further one up to
      `max_features`.
    depth: number of resolutions; each axis is halved between them.
    norm: 'batch' or 'instance'.
    activation: 'relu' or 'leaky_relu'.
    down: 'max_pool' or 'stride'.
    deep_supervision: in training returns the logits of every decoder stage,
      full resolution first.
    instance_norm: how instance normalisation is computed, see `InstanceNorm`.
  """

  def __init__(
    self,
    *,
    rank,
    channels,
    num_classes,
    features,
    max_features,
    depth,
    norm,
    activation,
    down,
    deep_supervision,
    instance_norm,
  ):
    super().__init__()
    sizes = [min(features * 2**i, max_features) for i in range(depth)]
    make_norm = {
      'batch': BATCH_NORM[rank],
      'instance': functools.partial(InstanceNorm, formula=instance_norm),
    }[norm]
    make = functools.partial(Stage, rank, norm=make_norm, activation=activation)
    for i, size in enumerate(sizes):
      stride = 2 if i and down == 'stride' else 1
      before = sizes[i - 1] if i else channels
      self.add_module(f'encoder_{i}', make(before, size, stride))
    for i, size in enumerate(sizes[:-1]):
      self.add_module(f'up_{i}', TRANSPOSED[rank](sizes[i + 1], size, 2, 2))
      self.add_module(f'decoder_{i}', make(2 * size, size, 1))
      if deep_supervision or not i:
        self.add_module(f'head_{i}', CONV[rank](size, num_classes, 1))
    self.depth = depth
    self.pool = getattr(F, f'max_pool{rank}d') if down == 'max_pool' else None
    self.deep_supervision = deep_supervision

  def forward(self, x):
    """Returns float32 logits [B, K, *S], or a list of those in training."""
    skips = []
    for i in range(self.depth):
      if i and self.pool:
        x = self.pool(x, 2)
      x = self.get_submodule(f'encoder_{i}')(x)
      skips.append(x)
    logits = []
    for i in reversed(range(self.depth - 1)):
      x = torch.cat([skips[i], self.get_submodule(f'up_{i}')(x)], 1)
      x = self.get_submodule(f'decoder_{i}')(x)
      if not i or self.deep_supervision and self.training:
        with torch.autocast(x.device.type, enabled=False):
          logits.append(self.get_submodule(f'head_{i}')(x.float()))
    several = self.deep_supervision and self.training
    return logits[::-1] if several else logits[-1]


def dice_loss(logits, labels, include_background, smooth=1e-5):
  """Returns the mean Dice loss of softmax over examples and classes."""
  probs = logits.softmax(1)
  truth = torch.zeros_like(probs, dtype=torch.bool)
  truth.scatter_(1, labels.unsqueeze(1), True)
  if not include_background:
    probs, truth = probs[:, 1:], truth[:, 1:]
  axes = tuple(range(2, logits.ndim))
  both = (probs * truth).sum(axes)
  total = probs.sum(axes) + truth.sum(axes)
  return (1 - (2 * both + smooth) / (total + smooth)).mean()


def loss_of(logits, labels, include_background):
  """Returns cross-entropy plus Dice, weighted over the levels.

  The levels weigh 1, 1/2, ..., the lowest of several 0, scaled to the sum 1;
  labels of a lower level are every second, fourth, ... voxel.
  """
  levels = logits if isinstance(logits, list) else [logits]
  shares = [0.5**k for k in range(max(len(levels) - 1, 1))]
  loss = 0.0
  for k, (share, level) in enumerate(zip(shares, levels, strict=False)):
    step = slice((2**k - 1) // 2, None, 2**k)
    target = labels[:, *(step for _ in labels.shape[1:])]
    value = F.cross_entropy(level, target)
    value = value + dice_loss(level, target, include_background)
    loss = loss + share / sum(shares) * value
  return loss


def create_model(workload, instance_norm):
  rank = len(workload['batch']) - 1
  if instance_norm == 'auto':
    instance_norm = 'group' if workload['device'] == 'cpu' else 'written'
  model = UNet(
    rank=rank,
    channels=workload['channels'],
    num_classes=workload['num_classes'],
    instance_norm=instance_norm,
    **workload['model'],
  )
  device = 'cuda' if workload['device'] == 'gpu' else 'cpu'
  return model.to(device).to(memory_format=CHANNELS_LAST[rank])


def create_optimizer(params, fields):
  """Returns the optimizer, and the largest norm of the gradient or 0."""
  fields = dict(fields)
  name, limit = fields.pop('name'), fields.pop('grad_clip_norm', 0.0)
  fields['lr'] = fields.pop('learning_rate')
  make = {'adam': torch.optim.Adam, 'sgd': torch.optim.SGD}[name]
  return make(params, fused=True, **fields), limit


def to_batch(image, label, model):
  """Returns the batch on the model's device, from arrays channels last."""
  device = next(model.parameters()).device
  image = torch.from_numpy(image).movedim(-1, 1).to(device)
  return (
    image.contiguous(memory_format=CHANNELS_LAST[image.ndim - 2]),
    torch.from_numpy(label).long().to(device),
  )


def load(model, path):
  """Gives `model` the weights of medseg_jax; returns all of the file."""
  with np.load(path) as file:
    saved = dict(file)
  weights = {k: v for k, v in saved.items() if '/' in k}
  names = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
  }
  state = {}
  for name, value in weights.items():
    _, *path, last = name.split('/')
    value = torch.from_numpy(value)
    if last == 'kernel':
      # [*taps, in, out] to [out, in, *taps]; transposed: [in, out, *taps].
      transposed = path[0].startswith('up_')
      value = value.movedim((-2, -1), (0, 1) if transposed else (1, 0))
      # A 1x1 convolution is a matrix in medseg_jax.
      rank = 2 if model.pool is F.max_pool2d else 3
      value = value.reshape(*value.shape, *(1,) * (rank + 2 - value.ndim))
    state['.'.join([*path, names[last]])] = value
  missing, unexpected = model.load_state_dict(state, strict=False)
  missing = [x for x in missing if not x.endswith('num_batches_tracked')]
  if missing or unexpected:
    raise ValueError(f'weights missing: {missing}, unexpected: {unexpected}')
  return saved


def main():
  args = worker.worker_arguments(
    __doc__,
    compile=('auto', 'off', 'default', 'max-autotune-no-cudagraphs'),
    instance_norm=('auto', 'module', 'group', 'written'),
  )
  workload = WORKLOADS[args.workload]
  on_gpu = workload['device'] == 'gpu'
  device = 'cpu'
  if on_gpu:
    if not torch.cuda.is_available():
      raise SystemExit('PyTorch finds no GPU here')
    device = torch.cuda.get_device_name()
    torch.backends.cudnn.benchmark = True
  else:
    torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  model = create_model(workload, args.instance_norm)
  optimizer, limit = create_optimizer(model.parameters(), workload['optimizer'])
  mode = args.compile
  if mode == 'auto':
    mode = 'default' if on_gpu else 'off'
  maybe_compiled = (
    (lambda fn: fn)
    if mode == 'off'
    else functools.partial(torch.compile, mode=mode, dynamic=False)
  )
  precision = functools.partial(
    torch.autocast,
    'cuda' if on_gpu else 'cpu',
    torch.bfloat16,
    enabled=workload['dtype'] == 'bfloat16',
  )

  def mean_loss(image, label):
    return loss_of(model(image), label, workload['include_background'])

  compiled_loss, compiled_model = map(maybe_compiled, (mean_loss, model))
  image, label = to_batch(
    *worker.random_batch(workload, workload['batch']), model
  )
  wait = torch.cuda.synchronize if on_gpu else lambda: None

  def step():
    optimizer.zero_grad(set_to_none=True)
    with precision():
      loss = compiled_loss(image, label)
    loss.backward()
    if limit:
      nn.utils.clip_grad_norm_(model.parameters(), limit)
    optimizer.step()
    return loss

  def forward():
    with torch.no_grad(), precision():
      return compiled_model(image)

  def run_steps(count):
    model.train()
    losses = []
    seconds = worker.timed(
      lambda: losses.append(step().detach()), wait, int(count), each=not on_gpu
    )
    return {'seconds': seconds, 'loss': float(losses[0])}

  def run_forward(count):
    model.eval()
    seconds = worker.timed(forward, wait, int(count), each=not on_gpu)
    return {'seconds': seconds}

  def memory(_):
    if on_gpu:
      return {'peak_bytes': torch.cuda.max_memory_allocated()}
    return {'peak_bytes': worker.resident_peak()}

  def load_weights(path):
    load(model, path)
    return {}

  commands = {
    'step': run_steps,
    'forward': run_forward,
    'memory': memory,
    'weights': load_weights,
    'check': lambda path: check(path, model, workload),
  }
  facts = {
    'versions': f'torch {torch.__version__}, compile {mode}',
    'device': device,
  }
  worker.serve(commands, facts, args.serve)


def check(path, model, workload):
  """Returns how far results are from those that jax_unet.py wrote to `path`.

  With the weights from there, in float32, not compiled.
  """
  saved = load(model, path)
  image, label = to_batch(saved['image'], saved['label'], model)
  torch.backends.cudnn.allow_tf32 = False
  model.eval()
  with torch.no_grad():
    logits = model(image).movedim(1, -1).cpu().numpy()
  model.train()
  model.zero_grad(set_to_none=True)
  loss = loss_of(model(image), label, workload['include_background'])
  loss.backward()
  grads = [p.grad for p in model.parameters() if p.grad is not None]
  grad_norm = nn.utils.get_total_norm(grads).item()
  parameters = sum(p.numel() for p in model.parameters())
  expected = sum(v.size for k, v in saved.items() if k.startswith('params/'))
  if parameters != expected:
    raise ValueError(f'{parameters} parameters here, {expected} in {path}')
  return {
    'parameters': parameters,
    'logits': float(
      np.abs(logits - saved['logits']).max() / np.abs(saved['logits']).max()
    ),
    'loss': abs(loss.item() / float(saved['loss']) - 1),
    'grad_norm': abs(grad_norm / float(saved['grad_norm']) - 1),
  }


if __name__ == '__main__':
  main()
