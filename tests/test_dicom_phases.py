"""Several volumes in one series, or in one folder: told apart, and chosen."""

import shutil

import numpy as np
import pytest
from data_cases import assert_one_line
from dicom_cases import values, write

from medseg_jax.data.formats.dicom import reading
from medseg_jax.data.sources import dicom_series, to_predict
from medseg_jax.programs import predict
from medseg_jax.runtime.errors import InputError


def series_in(folder):
  return reading.read_files(
    [p for p in folder.rglob('*') if p.is_file()]
  ).series


def test_a_phase_that_lacks_a_slice_costs_the_others_nothing(tmp_path):
  stored = values()
  write(tmp_path / 'a', stored, EchoTime=10.0)
  write(tmp_path / 'b', stored[::-1], EchoTime=20.0)[2].unlink()
  early, late = series_in(tmp_path)
  assert (early.phase, late.phase) == ('EchoTime 10', 'EchoTime 20')
  native = reading.to_native(reading.read_volume(early).array[..., 0], early)
  np.testing.assert_array_equal(native, stored - 1000)
  with pytest.raises(InputError, match='1 slice missing') as error:
    reading.read_volume(late)
  assert_one_line(error, '(-3.00, 4.00, 10.00)')


def test_acquisitions_that_overlap_by_a_slice_are_two(tmp_path):
  stored = values((8, 6, 7))
  write(tmp_path / 'a', stored[:5], AcquisitionNumber=1)
  write(tmp_path / 'b', stored[5:], AcquisitionNumber=2, origin=(-3, 4, 15))
  found = series_in(tmp_path)
  assert [len(series.frames) for series in found] == [5, 3]


def test_two_attributes_together_tell_volumes_apart(tmp_path):
  expected = {}
  for weight in (0.0, 1000.0):
    for time in (10.0, 100.0, 20.0):
      stored = values(seed=int(weight + time))
      write(
        tmp_path / f'{weight}_{time}', stored, DiffusionBValue=weight,
        EchoTime=time,
      )  # fmt: skip
      name = f'EchoTime {time:g} DiffusionBValue {weight:g}'
      expected[name] = stored - 1000
  found = {series.phase: series for series in series_in(tmp_path)}
  assert sorted(found) == sorted(expected)
  assert list(found)[:3] == [  # by size, not as words
    *(f'EchoTime 10 DiffusionBValue {weight}' for weight in (0, 1000)),
    'EchoTime 20 DiffusionBValue 0',
  ]
  for name, series in found.items():
    native = reading.to_native(
      reading.read_volume(series).array[..., 0], series
    )
    np.testing.assert_array_equal(native, expected[name])


def test_images_without_diffusion_weighting_may_say_nothing_of_it(tmp_path):
  stored = values()
  write(tmp_path / 'a', stored)
  write(tmp_path / 'b', stored[::-1], DiffusionBValue=1000.0)
  found = series_in(tmp_path)
  names = ['without DiffusionBValue', 'DiffusionBValue 1000']
  assert [series.phase for series in found] == names
  for series, expected in zip(found, (stored, stored[::-1]), strict=True):
    volume = reading.read_volume(series).array[..., 0]
    native = reading.to_native(volume, series)
    np.testing.assert_array_equal(native, expected - 1000)


def test_only_slices_that_may_be_copies_are_compared(tmp_path, monkeypatch):
  stored = values()
  write(tmp_path / 'a', stored, EchoTime=10.0)
  paths = write(tmp_path / 'b', stored[::-1], EchoTime=20.0)
  shutil.copy(paths[1], tmp_path / 'again')
  asked = []
  stored_of = reading._stored
  monkeypatch.setattr(
    reading, '_stored', lambda f: asked.append(f.path.name) or stored_of(f)
  )
  assert [len(series.frames) for series in series_in(tmp_path)] == [5, 5]
  assert sorted(asked) == sorted([paths[1].name, 'again'])


def test_both_files_of_one_position_are_named_whole(tmp_path):
  first = write(tmp_path / 'a', values())[0]
  other = write(tmp_path / 'b', values(seed=1))[0]
  [series] = series_in(tmp_path)
  with pytest.raises(InputError) as error:
    reading.read_volume(series)
  assert_one_line(error, f'{first}: {other} lies at the same position')


def test_a_choice_that_begins_like_another_is_that_alone(tmp_path):
  for weight in (100.0, 1000.0):
    write(tmp_path / f'{weight}', values(), DiffusionBValue=weight)
  [case] = to_predict.find(
    tmp_path, channels=1, series='DiffusionBValue 100'
  ).cases
  assert {path.parent.name for path in case.images} == {'100.0'}
  with pytest.raises(InputError, match='names 2 of 2 series'):
    to_predict.find(tmp_path, channels=1, series='DiffusionBValue 1')


def test_series_of_one_name_are_listed_with_what_chooses_them(tmp_path):
  for i in (1, 2):
    write(tmp_path / f'{i}', values(seed=i), SeriesInstanceUID=f'1.2.3.{i}')
  with pytest.raises(InputError) as error:
    to_predict.find(tmp_path, channels=1)
  assert_one_line(error, '7 made CT 7x6x5 1.2.3.1; 7 made CT 7x6x5 1.2.3.2;')
  [case] = to_predict.find(tmp_path, channels=1, series='1.2.3.2').cases
  assert {path.parent.name for path in case.images} == {'2'}


def test_a_slice_alone_and_a_series_beside_volumes_say_what_to_name(tmp_path):
  paths = write(tmp_path / 'scan', values())
  with pytest.raises(InputError, match='a single slice; allowed is') as error:
    to_predict.find(paths[0], channels=1)
  assert_one_line(error, str(paths[0]))
  (tmp_path / 'scan_label.nii.gz').write_bytes(b'')
  shutil.copy(paths[0], tmp_path / 'one.dcm')
  found = to_predict.find(tmp_path, channels=1)
  told = {failure.name: failure.reason for failure in found.failures}
  for name in ('one.dcm', 'scan/'):
    assert 'DICOM beside volumes of another format' in told[name]
    assert 'as --input of its own' in told[name]
  with pytest.raises(InputError, match='no series of two slices'):
    dicom_series.find(tmp_path / 'scan', '', {p.absolute() for p in paths[1:]})


def test_what_is_left_out_has_a_line_each(capsys):
  predict._tell_unused('study', ['a', 'b', 'c: a localizer', 'd: no slice'])
  assert capsys.readouterr().out.splitlines() == [
    'not used  in study: a, b',
    'not used  c: a localizer',
    'not used  d: no slice',
  ]
  predict._tell_unused('study', [f'{i}: none' for i in range(99)])
  lines = capsys.readouterr().out.splitlines()
  assert lines[-1] == 'not used  79 more files in study' and len(lines) == 21
