"""What is read from dataset.json: the forms in use, and wrong ones."""

import json

import pytest
from data_cases import assert_one_line

from medseg_jax.data.sources.dataset_json import read_dataset_json
from medseg_jax.runtime.errors import InputError


def parse(tmp_path, content):
  path = tmp_path / 'dataset.json'
  text = content if isinstance(content, str) else json.dumps(content)
  path.write_text(text, encoding='utf-8')
  return read_dataset_json(path)


def test_decathlon(tmp_path):
  found = parse(
    tmp_path,
    {
      'name': 'Prostate', 'modality': {'1': 'ADC', '0': 'T2'},
      'labels': {'0': 'background', '2': 'TZ', '1': 'PZ'},
      'numTraining': 9, 'test': ['./imagesTs/b.nii.gz'],
      'training': [
        {'image': './imagesTr/a.nii.gz', 'label': './labelsTr/a.nii.gz'}
      ],
    },
  )  # fmt: skip
  assert found.channel_names == ('T2', 'ADC')
  assert found.classes == ('background', 'PZ', 'TZ')
  assert found.label_values == (0, 1, 2)
  assert found.training == (('./imagesTr/a.nii.gz', './labelsTr/a.nii.gz'),)
  assert found.regions == () and found.region_order == ()
  assert found.ignore_value is None


def test_nnunet_version_2(tmp_path):
  found = parse(
    tmp_path,
    {
      'channel_names': {'0': 'CT'}, 'file_ending': '.nii.gz',
      'labels': {'background': 0, 'spleen': 7, 'liver': '3', 'ignore': 8},
    },
  )  # fmt: skip
  assert found.channel_names == ('CT',)
  assert found.classes == ('background', 'liver', 'spleen')
  assert found.label_values == (0, 3, 7)
  assert found.ignore_value == 8
  assert found.training is None and found.regions == ()


def test_regions(tmp_path):
  found = parse(
    tmp_path,
    {
      'labels': {
        'background': 0, 'kidney': [1, 2, 3], 'masses': [2, 3], 'tumour': 2,
        'ignore': 4,
      },
      'regions_class_order': [1, 3, 2],
    },
  )  # fmt: skip
  assert found.label_values == (0, 1, 2, 3)
  assert found.classes == ('background', 'label_1', 'tumour', 'label_3')
  assert found.regions == (
    ('kidney', (1, 2, 3)), ('masses', (2, 3)), ('tumour', (2,)),
  )  # fmt: skip
  assert found.region_order == (1, 3, 2)
  assert found.ignore_value == 4
  assert found.channel_names == ()


def test_a_byte_order_mark_is_read_over(tmp_path):
  found = parse(tmp_path, '\ufeff{"labels": {"0": "bg", "1": "Läsion"}}')
  assert found.classes == ('bg', 'Läsion')


def test_hippocampus(real_data):
  folder = real_data / 'hippocampus' / 'Task04_Hippocampus'
  found = read_dataset_json(folder / 'dataset.json')
  assert found.channel_names == ('MRI',)
  assert found.classes == ('background', 'Anterior', 'Posterior')
  assert found.label_values == (0, 1, 2)
  assert len(found.training) == 260
  assert all((folder / entry.image).is_file() for entry in found.training)


REGIONS = {'background': 0, 'whole': [1, 2], 'core': [2]}


@pytest.mark.parametrize(
  ('content', 'parts'),
  [
    ('{"labels": {', ['not JSON', 'line 1']),
    ('', ['not JSON']),
    ([1, 2], ['holds no JSON object']),
    ({'name': 'Liver'}, ['no "labels"', 'found name', '"background": 0']),
    ({'labels': {}}, ['no "labels"']),
    ({'labels': ['background']}, ['no "labels"']),
    ({'labels': {'background': 0, 'organ': 'one'}}, ['"organ": "one"']),
    ({'labels': {'background': 0, 'organ': []}}, ['"organ": []']),
    ({'labels': {'background': 0, 'organ': None}}, ['"organ": null']),
    ({'labels': {'background': 0, 'organ': -1}}, ['"organ": -1']),
    ({'labels': {'0': 'background', '1': 7}}, ['"1": 7']),
    (
      {'labels': {'0': 'background', '1': 'a', '2': 'a'}},
      ["two ids of the name 'a'"],
    ),
    (
      {'labels': {'background': 0, 'a': 1, 'b': 1}},
      ["'a' and 'b' the id 1", 'one name for each'],
    ),
    ({'labels': {'liver': 1, 'spleen': 2}}, ['no id 0']),
    ({'labels': {'background': 0}}, ['the background only']),
    ({'labels': {'background': 0, 'ignore': 1}}, ['the background only']),
    (
      {'labels': {'background': 0, 'organ': 1, 'ignore': [2, 3]}},
      ['2 ids of "ignore"'],
    ),
    (
      {
        'labels': {'background': 0, 'organ': [1, 2], 'ignore': 2},
        'regions_class_order': [1],
      },
      ['id 2 of "ignore"', 'an id of its own'],
    ),
    ({'labels': REGIONS}, ['"regions_class_order" is missing', 'whole, core']),
    (
      {'labels': REGIONS, 'regions_class_order': [1]},
      ['"regions_class_order" is [1]', 'a list of 2 ids'],
    ),
    (
      {'labels': REGIONS, 'regions_class_order': [1, 5]},
      ['"regions_class_order" is [1, 5]'],
    ),
    (
      {'labels': REGIONS, 'regions_class_order': [1, 1]},
      ['"regions_class_order" is [1, 1]', 'no two the same'],
    ),
    (
      {'labels': {'background': 0, 'a': [1, 1]}, 'regions_class_order': [1]},
      ['"a": [1, 1]', 'each once'],
    ),
  ],
)
def test_wrong_files_are_errors(tmp_path, content, parts):
  with pytest.raises(InputError) as error:
    parse(tmp_path, content)
  assert_one_line(error, tmp_path / 'dataset.json', *parts)


@pytest.mark.parametrize(
  ('key', 'value', 'parts'),
  [
    ('file_ending', '.png', ['".png"', '.nii.gz', 'convert']),
    ('channel_names', {'1': 'T1'}, ['"channel_names" is {"1": "T1"}']),
    ('modality', 'MRI', ['"modality" is "MRI"', '{"0": "T1"']),
    ('training', [], ['"training" is empty']),
    ('training', ['a.nii.gz'], ['"training" has "a.nii.gz"']),
    ('training', [{'image': 'a.nii.gz'}], ['{"image": "a.nii.gz"}']),
  ],
)
def test_wrong_entries_are_errors(tmp_path, key, value, parts):
  content = {'labels': {'background': 0, 'organ': 1}, key: value}
  with pytest.raises(InputError) as error:
    parse(tmp_path, content)
  assert_one_line(error, tmp_path / 'dataset.json', *parts)


def test_a_file_that_is_no_text_or_not_there(tmp_path):
  path = tmp_path / 'dataset.json'
  with pytest.raises(InputError) as error:
    read_dataset_json(path)
  assert_one_line(error, path, 'cannot be read')
  path.write_bytes(b'\x1f\x8b\xff\xfe')
  with pytest.raises(InputError) as error:
    read_dataset_json(path)
  assert_one_line(error, path, 'not JSON')
