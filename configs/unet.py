"""The default: a 2-D U-Net on CT-like phantoms, made on the spot.

The whole list of keys; the other configs change a few of them.
Two CPU cores: mean foreground Dice 0.970 in 1 min 32 s (2026-11-26).
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
  config.batch_splits = 1  # parts computed one after the other: less memory
  config.patch_size = (128, 128)  # 2 or 3 numbers, in voxels
  # Shares of it that training begins with, (0.5, 0.625, 0.75, 1.0) say: as many
  # steps of each, the schedule by the voxels seen. () for the whole throughout.
  config.patch_growth = ()
  config.dtype = 'float32'  # of the network's inside; or 'bfloat16'
  config.ema_decay = 0.0  # of the weights' moving average; 0 for none
  # A model to begin with, the folder model/ of a workdir or its zip: it decides
  # over model, plan and normalisation. '' for random weights.
  config.init_from = ''
  config.fine_tune = ConfigDict()  # with init_from
  config.fine_tune.learning_rate = 0.0  # 0 for the optimizer's
  config.fine_tune.warmup_fraction = _any(None)  # None for the schedule's

  # Without labels, as configs/pretrain.py does: the share of each patch that is
  # hidden, and that the network learns to restore; 0 for a training with them.
  config.pretrain = ConfigDict()
  config.pretrain.mask_share = 0.0

  config.mesh = ConfigDict()
  config.mesh.data = -1  # devices that share a batch; -1 for all there are
  config.mesh.spatial = 1  # devices that share the first axis of an image

  config.model = ConfigDict()
  config.model.name = 'unet'  # another network: see configs/tutorial.py
  config.model.depth = 4  # number of resolutions
  # The next four: one number for all resolutions, or a tuple with one each.
  config.model.features = _any(16)  # a number: of the first
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
  config.model.residual_blocks = _any(0)  # in the encoder; 0 for plain ones
  config.model.attention = False
  config.model.deep_supervision = False
  config.model.remat = False  # compute stages again in the backward pass

  # Name -> weight in the sum; see medseg_jax/losses/formulas.py.
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
  config.overlap = ConfigDict()  # how the losses of the Dice family count
  config.overlap.include_background = True
  config.overlap.batch = _any(None)  # sums over the whole batch; None: planned

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
  # Where the average of validation Dice has not risen for so many evaluations,
  # the end is brought forward; 0 to train for num_steps in any case. Cases that
  # end a training are no independent test of it.
  config.stop = ConfigDict()
  config.stop.patience = 0
  config.stop.anneal = 0.2  # of the steps made: the rest of the schedule

  config.data = ConfigDict()
  # 'phantom', 'folder', 'volumes', 'bids', 'dicom' (series with masks), 'tfds'
  config.data.source = 'phantom'
  config.data.path = ''  # the folder, or the name of the TFDS data set
  config.data.classes = ()  # names, background first; () to infer
  config.data.label_values = ()  # value of each class on disk; () to infer
  # Of masks that may number single objects: 'foreground', all are one class, or
  # 'classes', each number is one; '' to look.
  config.data.instances = ''
  # Of volumes: how far labels and channels may lie off the image, in voxels.
  config.data.grid_tolerance = 0.1
  # Of DICOM series: whether slices may be missing, which are filled in for the
  # network alone, and whether a CT that does not tell its Hounsfield units has
  # them as it is stored. Otherwise such series are refused.
  config.data.allow_gaps = False
  config.data.assume_hounsfield = False
  config.data.roi = ''  # folder beside images/ with regions to evaluate in
  # 'scale' (x / 255), 'zscore', 'window'; '' for what fits the source.
  config.data.normalize = ''
  config.data.window = ()  # lowest and highest intensity, for 'window'
  config.data.resize = ()  # size in pixels; () for native size and patches
  # Whether cases of a val and a test split that the data has of its own are
  # held out; otherwise they are not used, and the folds below are.
  config.data.own_splits = True
  # Validation where the data has no val folder: one fold of several, the same
  # for every seed. A splits.json in the workdir decides over their number and
  # order.
  config.data.fold = _any(0)  # or 'all': everything trains
  config.data.num_folds = 5
  config.data.fold_order = 'shuffled'  # or 'block', for neighbouring slices
  # What no split may part, all slices of a patient, say: a regular expression
  # on a case's name whose (group) names it, or a CSV file `case,group`.
  config.data.group = ''
  config.data.cache_dir = ''  # '' for the user's cache folder
  # The data set in device memory: 'auto' (where it fits one device, or up to 16
  # neighbours together), 'on', 'off'.
  config.data.device_cache = 'auto'
  # Share of each batch that is centred on a foreground voxel.
  config.data.foreground_share = 0.0
  # The next six are filled in from the data set and its plan: (name, classes)
  # of overlapping regions and the order in which they are written, the order of
  # the axes, whether to cut off empty margins, the spacing in mm, and (scheme,
  # low, high, mean, std) of channels.
  config.data.regions = ()
  config.data.region_order = ()
  config.data.axes = ()
  config.data.crop = False
  config.data.spacing = ()
  config.data.intensities = ()
  config.data.phantom = ConfigDict()
  config.data.phantom.shape = ()  # in pixels; () for the patch size
  config.data.phantom.seed = 0
  config.data.phantom.num_train = 400
  config.data.phantom.num_val = 32
  config.data.phantom.num_test = 64
  config.data.bids = ConfigDict()  # () and '' where there is one kind
  config.data.bids.images = ()  # of each channel, as T1w
  config.data.bids.label = ''  # as NAME/dseg, of derivatives/NAME
  config.data.tfds = ConfigDict()
  config.data.tfds.data_dir = ''  # '' for TFDS's own
  config.data.tfds.image_key = 'image'
  config.data.tfds.mask_key = ''  # '' to infer

  # For --mode=crossval, which trains every fold of config.data.num_folds.
  config.crossval = ConfigDict()
  # Of volumes, '2d,3d_fullres' or '3d_cascade' say; '' for config.plan's alone.
  config.crossval.configurations = ''
  # Of all folds together, '90m', '8h', '2d' say: where num_steps take longer,
  # each trains for fewer, as many as are measured to fit. '' for no limit.
  config.crossval.time_budget = ''

  # For --mode=learning_curve: shares of the training cases of config.data.fold.
  config.learning_curve = ConfigDict()
  config.learning_curve.shares = (0.125, 0.25, 0.5, 1.0)

  # For volumes: what is left open above and below (0, (), None) is planned from
  # the data by the rules of nnU-Net; see medseg_jax/planner.
  config.plan = ConfigDict()
  # A plan.json of another data set, to take over with the intensities in it;
  # '' to plan from the data.
  config.plan.path = ''
  config.plan.configuration = ''  # '3d_fullres', '3d_lowres', '2d'; '' for 3-D
  # 'plain', or 'residual_m', 'residual_l', 'residual_xl'.
  config.plan.preset = 'plain'
  config.plan.memory_gb = 0.0  # of the GPU planned for; 0 for the preset's own

  # *_prob: probability for each example, 0 .. 1.
  config.augment = ConfigDict()
  config.augment.flip_prob = 0.0  # of each of flip_axes
  # Axes of an image, of volumes (z, y, x), whatever the plan; () for all.
  config.augment.flip_axes = ()
  config.augment.rot90_prob = 0.0  # turns by 90, 180 or 270 degrees
  config.augment.warp_prob = 0.3  # rotation, scaling, elastic as one warp
  config.augment.rotation_prob = 1.0  # share of the warps that rotate
  config.augment.rotation_degrees = _any(10.0)  # largest angle to either side
  # Rotation and scale in the plane of the last two axes; None: planned.
  config.augment.in_plane = _any(None)
  config.augment.scale_prob = 1.0  # share of the warps that scale
  config.augment.scale_range = (0.9, 1.1)  # zoom factor
  config.augment.elastic_std = 0.0  # of the displacement, in pixels
  config.augment.elastic_spacing = 16.0  # of its control points, in pixels
  config.augment.brightness_prob = 0.2
  config.augment.brightness_std = 0.05  # in units of the standardised image
  config.augment.brightness_range = (1.0, 1.0)  # factor of the channel
  config.augment.contrast_prob = 0.2
  config.augment.contrast_range = (0.85, 1.15)  # factor about the mean
  config.augment.contrast_clip = False  # to the range that the channel had
  config.augment.gamma_prob = 0.0
  config.augment.gamma_range = (0.8, 1.25)  # exponent
  config.augment.gamma_invert_prob = 0.0  # on the negative of the image
  config.augment.gamma_keep_stats = False  # restore mean and deviation
  config.augment.noise_prob = 0.2
  config.augment.noise_std = 0.05  # largest, in units of the image
  config.augment.blur_prob = 0.0
  config.augment.blur_sigma = (0.5, 1.0)  # in pixels
  config.augment.blur_channel_prob = 1.0
  config.augment.low_resolution_prob = 0.0  # sampled down, and up again
  config.augment.low_resolution_zoom = (0.5, 1.0)
  config.augment.low_resolution_channel_prob = 1.0

  config.inference = ConfigDict()
  config.inference.patch_size = ()  # of the tiles; () for the patch size
  config.inference.overlap = 0.5  # of neighbouring tiles, 0 .. < 1
  # Tiles at once; 0 for the batch size, on a CPU for fewer of large ones.
  config.inference.batch_size = 0
  # Average over all mirrorings of the axes that training mirrored.
  config.inference.mirror = False
  config.inference.probabilities = False  # write those, too (volumes)
  # Write CASE_entropy, too, how unsure the probabilities are: 0 to 1, in NIfTI
  # as it is, in PNG times 255.
  config.inference.uncertainty = False
  # Likewise CASE_disagreement, how far an ensemble's members are apart.
  config.inference.disagreement = False

  # (class, SNOMED CT code, meaning) for DICOM; others are an organ or a lesion.
  config.clinic = ConfigDict()
  config.clinic.codes = ()
  # Classes whose parts are measured one by one; () for those named like it.
  config.clinic.lesions = ()
  config.clinic.name_patient = False  # in the report of a DICOM series
  # The DICOM Segmentation as a label map: smaller, but few viewers read it.
  config.clinic.labelmap = False
  config.clinic.targets = ()  # classes that are GTV in RTSTRUCT, not ORGAN
  # Holes in RTSTRUCT as part of the contours around them, not as further ones.
  config.clinic.keyhole = False
  # Of a series without the UIDs that DICOM objects refer to, write a copy that
  # has some, in the folder `series` of the case, and refer to that.
  config.clinic.repair_identity = False
  # Of --mode=followup. Volumes of one tumour, measured twice on CT, lie within
  # -35 % and +55 % of each other (doi:10.1186/s40644-015-0052-2): more has
  # grown, and as much the other way round has shrunk.
  config.clinic.followup = ConfigDict()
  config.clinic.followup.growth_percent = 55.0
  # Lesions that overlap with none are the same within twice the error of a
  # good registration, 2.3 to 2.6 mm (doi:10.1088/1361-6560/ac1457).
  config.clinic.followup.match_mm = 5.0

  # Of volumes, also mm and ml; see medseg_jax/report/summary.py.
  config.evaluation = ConfigDict()
  config.evaluation.surface_tolerance = 1.0  # mm, of surface Dice
  config.evaluation.lesions = False  # count components found and missed

  config.benchmark = ConfigDict()
  # Also look for the quickest batch size, and the largest that fits.
  config.benchmark.sweep_batch = False

  # Where metrics go beside the workdir: the project of Weights & Biases, the
  # experiment of MLflow; '' for nowhere. Addresses are in the environment.
  config.loggers = ConfigDict()
  config.loggers.wandb = ''
  config.loggers.mlflow = ''

  config.log_every = 50  # steps
  config.eval_every = 250  # on the validation split; 0 for only at the end
  config.checkpoint_every = 250
  config.checkpoint_keep = 2
  return config
