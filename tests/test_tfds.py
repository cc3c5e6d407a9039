"""TFDS: the phantom builder, and cases out of any prepared data set."""
# ruff: noqa: E402

import numpy as np
import pytest
from data_cases import put_another_in_its_place
from small import load, shrink

tfds = pytest.importorskip('tensorflow_datasets')

from etils import epath

from medseg_jax.data.sources import phantom, phantom_tfds
from medseg_jax.data.sources import phantom_anatomy as anatomy
from medseg_jax.data.sources import tfds as tfds_source
from medseg_jax.experiment import held_out, opening
from medseg_jax.runtime.errors import InputError

TINY = {'num_train': 5, 'num_val': 2, 'num_test': 3}


class Pets(tfds.core.GeneratorBasedBuilder):
  """Like Oxford-IIIT Pet: masks of 1, 2, 3; 'label' is a class of the image."""

  code_path = epath.Path(__file__)
  VERSION = tfds.core.Version('1.2.0')
  FIRST = 0

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(None, None, 3)),
          'label': tfds.features.ClassLabel(names=['cat', 'dog']),
          'file_name': tfds.features.Text(),
          'segmentation_mask': tfds.features.Image(
            shape=(None, None, 1), use_colormap=True
          ),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(self.FIRST, 21),
      'test': self._generate_examples(100, 3),
    }

  def _generate_examples(self, start, num_examples):
    for i in range(start, start + num_examples):
      image, mask = pet(i)
      yield (
        i,
        {
          'image': image,
          'label': i % 2,
          'file_name': f'pet_{i}.jpg',
          'segmentation_mask': mask[..., None],
        },
      )


class Scans(tfds.core.GeneratorBasedBuilder):
  """Image without a channel axis and mask with one, as tensors, two volumes."""

  code_path = epath.Path(__file__)
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'scan': tfds.features.Tensor(shape=(4, 6, 5), dtype=np.int16),
          'lesion': tfds.features.Tensor(shape=(4, 6, 5, 1), dtype=np.float32),
          'broken': tfds.features.Tensor(shape=(4, 6, 5), dtype=np.float32),
          'wide': tfds.features.Tensor(shape=(4, 6, 7), dtype=np.uint8),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(2):
      scan = np.arange(120, dtype=np.int16).reshape(4, 6, 5) - 60 + i
      lesion = (scan > 0).astype(np.float32)
      yield (
        i,
        {
          'scan': scan,
          'lesion': lesion[..., None],
          'broken': lesion / 2,
          'wide': np.zeros((4, 6, 7), np.uint8),
        },
      )


def pet(index):
  """Returns image `[H, W, 3]` and mask `[H, W]` of 1, 2, 3; sizes differ."""
  rng = np.random.default_rng(index)
  size = (6 + index % 4, 7)
  image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
  return image, rng.integers(1, 4, size, dtype=np.uint8)


def prepare(builder, num_shards=None):
  config = tfds.download.DownloadConfig(
    num_shards=num_shards, try_download_gcs=False
  )
  builder.download_and_prepare(download_config=config)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Returns a folder with prepared data sets, the pets in three shards."""
  path = tmp_path_factory.mktemp('tfds')
  for name, shape in (('flat', (20, 24)), ('deep', (6, 10, 8))):
    config = phantom_tfds.PhantomConfig(name=name, shape=shape, seed=4, **TINY)
    prepare(phantom_tfds.Phantom(config=config, data_dir=path))
  prepare(Pets(data_dir=path), 3)
  prepare(Scans(data_dir=path))
  return str(path)


def pet_index(case):
  return int(case.name.removeprefix('pet_'))


@pytest.mark.parametrize(
  ('name', 'shape'), [('flat', (20, 24)), ('deep', (6, 10, 8))]
)
def test_phantom_builder_yields_the_bits_of_generate(data_dir, name, shape):
  for split, ours in (('train', 'train'), ('validation', 'val')):
    dataset = tfds.load(f'phantom/{name}', split=split, data_dir=data_dir)
    loaded = {
      (example['image'].tobytes(), example['label'].tobytes())
      for example in tfds.as_numpy(dataset)
    }
    start = phantom.SPLIT_START[ours]
    made = [
      anatomy.generate(4, start + i, shape) for i in range(TINY[f'num_{ours}'])
    ]
    assert loaded == {(image.tobytes(), lab.tobytes()) for image, lab in made}


def test_phantom_builder_describes_itself():
  info = tfds.builder('phantom').info
  assert info.full_name == f'phantom/slices/{anatomy.VERSION}.0.0'
  assert info.metadata['classes'] == list(anatomy.CLASSES)
  assert info.features['image'].shape == (128, 128, 1)
  assert info.features['label'].dtype == np.uint8
  assert set(phantom_tfds.Phantom.builder_configs) == {'slices', 'volumes'}


def test_phantom_through_the_source_is_the_phantom(data_dir):
  sources = tfds_source.open_tfds('phantom/deep', data_dir=data_dir)
  assert {k: len(v) for k, v in sources.items()} == {
    'train': 5, 'val': 2, 'test': 3
  }  # fmt: skip
  ours = phantom.open_phantom(shape=(6, 10, 8), seed=4, **TINY)
  for split, source in sources.items():
    assert source.classes == anatomy.CLASSES
    assert source.label_values == (0, 1, 2, 3)
    assert source.channels == 1
    expected = {case.image.tobytes(): case.label for case in ours[split]}
    for case in source:
      label = expected.pop(case.image.tobytes())
      np.testing.assert_array_equal(case.label, label)
      assert case.spacing == (1.0, 1.0, 1.0)
    assert not expected


def test_masks_of_images_map_to_classes_in_the_order_given(data_dir):
  sources = tfds_source.open_tfds(
    'pets',
    data_dir=data_dir,
    classes=('background', 'pet', 'border'),
    label_values=(2, 1, 3),
  )
  assert sources['test'].channels == 3
  case = sources['test'][0]
  image, mask = pet(pet_index(case))
  np.testing.assert_array_equal(case.image, image)
  np.testing.assert_array_equal(case.label, np.array([9, 1, 0, 2])[mask])


def test_label_values_are_inferred_from_the_masks(data_dir):
  source = tfds_source.open_tfds('pets:1.2.0', data_dir=data_dir)['train']
  assert source.label_values == (1, 2, 3)
  assert source.classes == ('background', 'class_1', 'class_2')


def test_names_are_those_of_the_files_in_their_order(data_dir):
  sources = tfds_source.open_tfds('pets', data_dir=data_dir)
  assert [len(sources[k]) for k in ('train', 'test')] == [21, 3]
  order = tfds.load(
    'pets', split='train', data_dir=data_dir,
    read_config=tfds.ReadConfig(interleave_cycle_length=1),
  )  # fmt: skip
  texts = [e['file_name'].decode() for e in tfds.as_numpy(order)]
  assert [f'{name}.jpg' for name in sources['train'].names] == texts


def test_a_part_keeps_the_order_of_the_files(data_dir):
  train = tfds_source.open_tfds('pets', data_dir=data_dir)['train']
  part = train.subset(sorted(train.names)[:7])
  assert set(part.names) == set(sorted(train.names)[:7])
  places = [train.names.index(name) for name in part.names]
  assert places == sorted(places)
  image, _ = pet(pet_index(part[3]))
  np.testing.assert_array_equal(part[3].image, image)


def test_a_run_knows_the_fold_that_it_held_out(data_dir, tmp_path):
  config = shrink(load('unet'))
  config.data.source, config.data.path = 'tfds', 'pets'
  config.data.tfds.data_dir = str(data_dir)
  config.data.label_values = (1, 2, 3)
  first = opening.open_run(config, tmp_path / 'a')
  held = first.sources['val'].names
  assert [len(first.sources[k]) for k in ('train', 'val', 'test')] == [16, 5, 3]
  assert not set(held) & set(first.sources['train'].names)
  record = held_out.record_of(first.config, first.digests)
  assert opening.open_run(config, tmp_path / 'a').digests == first.digests
  config.data.fold = 1
  second = opening.open_run(config, tmp_path / 'a')
  assert not set(held) & set(second.sources['val'].names)
  with pytest.raises(InputError, match='trained this model'):
    held_out.check_resuming(record, second.digests, tmp_path)


def test_any_order_of_reading_gives_the_same_cases(data_dir):
  source = tfds_source.open_tfds('pets', data_dir=data_dir)['train']
  assert source._builder.info.splits['train'].num_shards == 3
  in_order = list(source)
  assert [case.name for case in in_order] == list(source.names)
  for case in in_order:
    image, mask = pet(pet_index(case))
    np.testing.assert_array_equal(case.image, image)
    np.testing.assert_array_equal(case.label, mask - 1)
  for i in (18, 2, 3, 5, 5, 0, -1):
    assert source[i].name == source.names[i]
    np.testing.assert_array_equal(source[i].image, in_order[i].image)
  with pytest.raises(IndexError):
    source[21]


def test_ascending_order_opens_the_files_once(data_dir, monkeypatch):
  opened = []
  read_split = tfds_source._read_split

  def counting(*args):
    opened.append(args)
    return read_split(*args)

  source = tfds_source.open_tfds('pets', data_dir=data_dir)['train']
  monkeypatch.setattr(tfds_source, '_read_split', counting)
  for i in (0, 1, 2, 4, 9, 10):
    assert source[i].name == source.names[i]
  assert len(opened) == 1
  assert source[3].name == source.names[3]
  assert len(opened) == 2


def test_array_record_files_read_alike(tmp_path):
  builder = Pets(data_dir=tmp_path, file_format='array_record')
  prepare(builder)
  source = tfds_source.open_tfds('pets', data_dir=tmp_path)['train']
  assert source.label_values == (1, 2, 3)
  for i in (7, 0, 1):
    image, mask = pet(pet_index(source[i]))
    np.testing.assert_array_equal(source[i].image, image)
    np.testing.assert_array_equal(source[i].label, mask - 1)


def test_tensors_of_other_names_and_ranks(data_dir):
  sources = tfds_source.open_tfds(
    'scans', data_dir=data_dir, image_key='scan', mask_key='lesion'
  )
  assert list(sources) == ['train']
  source = sources['train']
  assert source.names == ('train_000000', 'train_000001')
  assert source.channels == 1
  assert source.classes == ('background', 'foreground')
  case = source[0]
  assert case.image.shape == (4, 6, 5, 1) and case.image.dtype == np.int16
  np.testing.assert_array_equal(case.label, case.image[..., 0] > 0)


def test_case_key_changes_with_the_data_and_its_labels(
  data_dir, tmp_path, monkeypatch
):
  def keys(folder, **kwargs):
    source = tfds_source.open_tfds('pets', data_dir=folder, **kwargs)['train']
    return {n: source.case_key(i) for i, n in enumerate(source.names)}

  monkeypatch.setattr(Pets, 'FIRST', 50)
  prepare(Pets(data_dir=tmp_path))
  first = keys(data_dir)
  assert keys(data_dir) == first
  assert len(set(first.values())) == len(first) > 1
  for other in (keys(tmp_path), keys(data_dir, label_values=(2, 1, 3))):
    assert not set(other.values()) & set(first.values())
  # A case is the same in every fold.
  source = tfds_source.open_tfds('pets', data_dir=data_dir)['train']
  part = source.subset(source.names[3:9])
  assert [part.case_key(i) for i in range(6)] == [first[n] for n in part.names]
  (shard,) = tmp_path.glob('pets/*/pets-train.*')
  before = set(keys(tmp_path).values())
  source = tfds_source.open_tfds('pets', data_dir=tmp_path)['train']
  put_another_in_its_place(shard)
  assert source.case_key(0) not in before


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('nothing_here', {}, 'nothing_here.*tfds build nothing_here'),
    ('oxford_iiit_pet', {}, 'not prepared; run `tfds build oxford_iiit_pet'),
    ('pets:9.9.9', {}, r"'pets:9\.9\.9'.*allowed"),
    ('pets', {'image_key': 'photo'}, "'photo'.*segmentation_mask Image"),
    ('pets', {'mask_key': 'label'}, "'label'.*found.*label ClassLabel"),
    ('pets', {'classes': ('a', 'b')}, 'of 2 classes.*3 label values'),
    ('scans', {'image_key': 'scan'}, "'segmentation_mask' or 'label'.*lesion"),
    ('scans', {'image_key': 'scan', 'mask_key': 'broken'}, r'label 0\.5'),
    ('scans', {'image_key': 'scan', 'mask_key': 'wide'}, r'\(4, 6, 7\) do not'),
  ],
)
def test_what_does_not_fit_is_named_in_one_line(
  data_dir, name, arguments, message
):
  with pytest.raises(InputError, match=message) as error:
    tfds_source.open_tfds(name, data_dir=data_dir, **arguments)
  assert '\n' not in str(error.value)


def test_value_of_no_class_is_named_with_its_case(data_dir):
  source = tfds_source.open_tfds(
    'pets', data_dir=data_dir, label_values=(1, 2)
  )['train']
  with pytest.raises(
    InputError, match=f'{source.names[0]}: label values of no class: 3'
  ):
    source[0]


def test_a_stray_pixel_in_masks_is_no_class(tmp_path, monkeypatch, caplog):
  def with_a_speck(index):
    image = np.full((40, 40, 3), index, np.uint8)
    mask = np.ones((40, 40), np.uint8)
    mask[5:20, 5:20] = 3
    mask[0, 0] = 9 if index == 4 else 1
    return image, mask

  monkeypatch.setitem(globals(), 'pet', with_a_speck)
  prepare(Pets(data_dir=tmp_path))
  for given in ((), (1, 3)):
    source = tfds_source.open_tfds(
      'pets', data_dir=tmp_path, label_values=given
    )['train']
    assert source.label_values == (1, 3)
    with caplog.at_level('WARNING'):
      cases = {case.image[0, 0, 0]: case for case in source}
    assert cases[4].label[0, 0] == 1  # the nearest
    assert 'pet_4: snapped to the nearest of (1, 3): 9 (1 pixel' in caplog.text


def test_a_case_of_other_channels_is_the_odd_one(data_dir):
  source = tfds_source.open_tfds('pets', data_dir=data_dir)['train']
  source.channels = 1
  with pytest.raises(InputError, match='3 channels; allowed is 1, as most'):
    source[0]
