"""The default: a 2-D U-Net on CT-like phantoms, made on the spot.

The whole list of keys; the other configs change a few of them.
Two CPU cores: mean foreground Dice 0.957 in 2 min 32 s (2026-11-22).
"""

from ml_collections import ConfigDict, config_dict


def _any(value):
  """Returns a field that takes a value of another type too."""
  return config_dict.FieldReference(value, field_type=object)


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0  # of the weights, the order of the data, the augmentation
  config.num_steps = 500
  config.num_epochs = 0  # passes over the data, in place of num_steps
  config.batch_size = 8  # over all devices
  config.patch_size = (128, 128)  # 2 or 3 numbers, in pixels
  config.dtype = 'float32'  # of the network's inside; or 'bfloat16'
  config.ema_decay = 0.0  # of the weights' moving average; 0 for none

  config.mesh = ConfigDict()
  config.mesh.data = -1  # devices that share a batch; -1 for all there are
  config.mesh.spatial = 1  # devices that share the first axis of an image

  config.model = ConfigDict()
  config.model.name = 'unet'  # another network: see configs/tutorial.py
  config.model.depth = 4  # number of resolutions
  # The next four: one number for all resolutions, or a tuple with one each.
  config.model.features = _any(16)  # a number: of the first, doubling
  config.model.max_features = 512
  config.model.convs_per_stage = _any(2)
  config.model.kernel_sizes = _any(3)
  config.model.strides = _any(2)
  config.model.norm = 'batch'  # 'batch', 'instance', 'group'
  config.model.activation = 'relu'  # 'relu', 'leaky_relu', 'gelu', 'swish'
  config.model.dropout = 0.0  # share of the values
  config.model.down = 'max_pool'  # or 'stride'
  config.model.up = 'transpose'  # 'transpose', 'nearest', 'linear'
  config.model.residual = False
  config.model.attention = False
  config.model.deep_supervision = False

  # Name -> weight in the sum; see medseg_jax/losses.py for the formulas.
  config.loss = ConfigDict()
  config.loss.cross_entropy = 1.0
  config.loss.dice_loss = 1.0
  config.loss.jaccard_loss = 0.0
  config.loss.tversky_loss = 0.0
  config.loss.generalized_dice_loss = 0.0
  config.loss.focal_loss = 0.0
  # For networks with a sigmoid output, one for each foreground class.
  config.loss.sigmoid_cross_entropy = 0.0
  config.loss.sigmoid_dice_loss = 0.0
  config.loss.sigmoid_jaccard_loss = 0.0
  config.loss.sigmoid_tversky_loss = 0.0
  config.loss.sigmoid_generalized_dice_loss = 0.0
  config.loss.sigmoid_focal_loss = 0.0

  config.optimizer = ConfigDict()
  config.optimizer.name = 'adam'  # 'sgd', 'adam', 'adamw'
  config.optimizer.learning_rate = 4e-3  # the schedule's peak
  config.optimizer.momentum = 0.9  # of 'sgd'
  config.optimizer.nesterov = True  # of 'sgd'
  config.optimizer.weight_decay = 0.0
  config.optimizer.grad_clip_norm = 0.0  # largest norm; 0 for no limit
  config.schedule = ConfigDict()
  config.schedule.name = 'cosine'  # 'constant', 'cosine', 'poly'
  config.schedule.warmup_fraction = 0.05  # share of the steps
  config.schedule.power = 0.9  # of 'poly'

  config.data = ConfigDict()
  config.data.source = 'phantom'  # 'phantom', 'folder', 'tfds'
  config.data.path = ''  # the folder, or the name of the TFDS data set
  config.data.classes = ()  # names, background first; () to infer
  config.data.label_values = ()  # value of each class on disk; () to infer
  config.data.roi = ''  # folder beside images/ with regions to evaluate in
  # 'scale' (x / 255), 'zscore', 'window'; '' for what fits the source.
  config.data.normalize = ''
  config.data.window = ()  # lowest and highest intensity, for 'window'
  config.data.resize = ()  # size in pixels; () for native size and patches
  # Validation where the data has no val folder: one fold of several.
  config.data.fold = _any(0)  # or 'all': everything trains
  config.data.num_folds = 5
  config.data.fold_order = 'shuffled'  # or 'block', for neighbouring slices
  config.data.cache_dir = ''  # '' for the user's cache folder
  config.data.phantom = ConfigDict()
  config.data.phantom.shape = ()  # in pixels; () for the patch size
  config.data.phantom.seed = 0
  config.data.phantom.num_train = 400
  config.data.phantom.num_val = 32
  config.data.phantom.num_test = 64
  config.data.tfds = ConfigDict()
  config.data.tfds.data_dir = ''  # '' for TFDS's own
  config.data.tfds.image_key = 'image'
  config.data.tfds.mask_key = ''  # '' to infer

  # *_prob: probability for each example, 0 .. 1.
  config.augment = ConfigDict()
  config.augment.flip_prob = 0.0  # of each axis
  config.augment.rot90_prob = 0.0  # turns by 90, 180 or 270 degrees
  config.augment.warp_prob = 0.3  # rotation, scaling, elastic as one warp
  config.augment.rotation_degrees = 10.0  # largest angle to either side
  config.augment.scale_range = (0.9, 1.1)  # zoom factor
  config.augment.elastic_std = 0.0  # of the displacement, in pixels
  config.augment.elastic_spacing = 16.0  # of its control points, in pixels
  config.augment.brightness_prob = 0.2
  config.augment.brightness_std = 0.05  # in units of the standardised image
  config.augment.contrast_prob = 0.2
  config.augment.contrast_range = (0.85, 1.15)  # factor about the mean
  config.augment.gamma_prob = 0.0
  config.augment.gamma_range = (0.8, 1.25)  # exponent
  config.augment.noise_prob = 0.2
  config.augment.noise_std = 0.05  # largest, in units of the image
  config.augment.blur_prob = 0.0
  config.augment.blur_sigma = (0.5, 1.0)  # in pixels

  config.inference = ConfigDict()
  config.inference.patch_size = ()  # of the tiles; () for the patch size
  config.inference.overlap = 0.5  # of neighbouring tiles, 0 .. < 1
  config.inference.batch_size = 0  # tiles at once; 0 for the batch size
  config.inference.mirror = False  # average over mirrorings of every axis

  config.log_every = 50  # steps
  config.eval_every = 250  # on the validation split; 0 for only at the end
  config.checkpoint_every = 250
  config.checkpoint_keep = 2
  return config
