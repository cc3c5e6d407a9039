"""The phantoms as a TFDS data set. Import this module and TFDS knows them.

```
import tensorflow_datasets as tfds
import medseg_jax.data.sources.phantom_tfds

train = tfds.load('phantom/slices', split='train')
```

or `tfds build phantom/slices --imports=medseg_jax.data.sources.phantom_tfds`.

Splits 'train', 'validation' and 'test' hold exactly the cases of
`open_phantom` with the same arguments. Other sizes:
`tfds.load('phantom', builder_kwargs={'config': PhantomConfig(...)})`.
"""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medseg_jax.data.sources import phantom
from medseg_jax.data.sources import phantom_anatomy as anatomy


@dataclasses.dataclass
class PhantomConfig(tfds.core.BuilderConfig):
  """The arguments of `open_phantom`, under a name of their own.

  Attributes:
    shape: one to three axes, the last ones of (z, y, x).
    seed: names the data set.
    num_train: number of cases in the split 'train'.
    num_val: number of cases in the split 'validation'.
    num_test: number of cases in the split 'test'.
  """

  shape: tuple[int, ...] = (128, 128)
  seed: int = 0
  num_train: int = 400
  num_val: int = 50
  num_test: int = 100


class Phantom(tfds.core.GeneratorBasedBuilder):
  """Abdominal CT phantoms with liver, kidney and tumour; see `phantom.py`."""

  # TFDS 4.9.10 would look this up with a package that it does not require.
  code_path = epath.Path(__file__)
  VERSION = tfds.core.Version(f'{anatomy.VERSION}.0.0')
  BUILDER_CONFIGS = [
    PhantomConfig(name='slices', description='Axial slices, 128 x 128.'),
    PhantomConfig(
      name='volumes',
      description='Volumes, 64 x 64 x 64.',
      shape=(64, 64, 64),
      num_train=100,
      num_val=20,
      num_test=20,
    ),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    shape = tuple(self.builder_config.shape)
    return self.dataset_info_from_configs(
      description='Simulated CT of the abdomen with labelled organs.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Tensor(
            shape=(*shape, phantom.PhantomSource.channels),
            dtype=np.float32,
            encoding='zlib',
            doc='Hounsfield units.',
          ),
          'label': tfds.features.Tensor(
            shape=shape,
            dtype=np.uint8,
            encoding='zlib',
            doc='Index into the classes of the metadata.',
          ),
        }
      ),
      supervised_keys=('image', 'label'),
      metadata=tfds.core.MetadataDict(
        classes=list(anatomy.CLASSES),
        spacing=list(anatomy.spacing_of(shape)),
      ),
    )

  def _split_generators(self, dl_manager):
    config = self.builder_config
    sources = phantom.open_phantom(
      shape=config.shape,
      seed=config.seed,
      num_train=config.num_train,
      num_val=config.num_val,
      num_test=config.num_test,
    )
    return {
      'validation' if split == 'val' else split: self._generate_examples(source)
      for split, source in sources.items()
    }

  def _generate_examples(self, source):
    for i in range(len(source)):
      case = source[i]
      yield case.name, {'image': case.image, 'label': case.label}
