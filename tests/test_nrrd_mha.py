"""NRRD and MetaImage: what SimpleITK reads is read as it does, or refused."""

import bz2
import gzip
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
from data_cases import assert_all_in
from itk_cases import DIRECTIONS, SHAPE, assert_as_itk, made, save
from volume_cases import image_array

from medseg_jax.data.formats import nifti, volume_formats
from medseg_jax.runtime.errors import InputError


def refused(path, read=nifti.read_image):
  with pytest.raises(InputError) as error:
    read(path)
  line = str(error.value)
  assert '\n' not in line and path.name in line, line
  return line


def write_nrrd(path, data=None, **fields):
  """Writes a header of `fields`, where `_` stands for a space, and data."""
  values = image_array().astype('<i2').tobytes('F')
  lines = {
    'type': 'short', 'dimension': 3, 'space': 'left-posterior-superior',
    'sizes': '6 5 4', 'space_directions': '(1,0,0) (0,2,0) (0,0,3)',
    'space_origin': '(1,2,3)', 'endian': 'little', 'encoding': 'raw',
  } | fields  # fmt: skip
  text = ''.join(
    f'{key.replace("_", " ")}: {value}\n'
    for key, value in lines.items()
    if value is not None
  )
  content = values if data is None else data
  path.write_bytes(f'NRRD0004\n# a comment\n{text}\n'.encode() + content)
  return path


def write_mha(path, data=None, **fields):
  values = image_array().astype('<i2').tobytes('F')
  lines = {
    'ObjectType': 'Image', 'NDims': 3, 'DimSize': '6 5 4',
    'ElementType': 'MET_SHORT', 'ElementDataFile': 'LOCAL',
  } | fields  # fmt: skip
  lines['ElementDataFile'] = lines.pop('ElementDataFile')  # is the last one
  text = ''.join(f'{k} = {v}\n' for k, v in lines.items() if v is not None)
  path.write_bytes(text.encode() + (values if data is None else data))
  return path


@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('name', ['a.nrrd', 'a.nhdr', 'a.mha', 'a.mhd'])
@pytest.mark.parametrize('compress', [False, True])
def test_as_itk_reads_it(tmp_path, direction, name, compress):
  path = save(tmp_path / name, made(direction=direction), compress=compress)
  assert_as_itk(path)
  parts = [p for p in tmp_path.iterdir() if p != path]
  assert volume_formats.data_files([path]) == parts
  # The same as of NIfTI, also inside.
  same = save(tmp_path / 'a.nii.gz', made(direction=direction))
  one, other = nifti.read_image(path), nifti.read_image(same)
  np.testing.assert_array_equal(one.array, other.array)
  np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)


@pytest.mark.parametrize('suffix', ['.nrrd', '.mha'])
@pytest.mark.parametrize(
  'dtype', ['u1', 'i1', 'u2', 'i2', 'u4', 'i4', 'u8', 'i8', 'f4', 'f8']
)
def test_types(tmp_path, suffix, dtype):
  array = (image_array().T % 120).astype(dtype)
  assert_as_itk(save(tmp_path / f'a{suffix}', made(array)))


@pytest.mark.parametrize('suffix', ['.nrrd', '.mha', '.mhd'])
def test_components_are_channels(tmp_path, suffix):
  array = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype('f4')
  path = save(tmp_path / f'a{suffix}', made(array, vector=True))
  assert assert_as_itk(path).grid.channels == 3
  assert_all_in(refused(path, nifti.read_label), '3 channels', '6x5x4x3')


def test_headers_of_nrrd(tmp_path):
  path = tmp_path / 'a.nrrd'
  values = image_array()
  raw = values.astype('<i2').tobytes('F')
  text = ' '.join(map(str, values.ravel('F'))).encode()
  for i, fields in enumerate([
    {'space': 'right-anterior-superior'},
    {'space': 'left-anterior-superior'},
    {'space': 'LPS'}, {'space': 'RAS'}, {'space': 'LAS'},
    {'space': 'scanner-xyz'},
    {'space': None, 'space_dimension': 3},  # where the order matters, too
    {'endian': 'big', 'data': values.astype('>i2').tobytes('F')},
    {'encoding': 'gz', 'data': gzip.compress(raw)},
    {'encoding': 'gzip', 'byte_skip': 3, 'data': gzip.compress(b'abc' + raw)},
    {'encoding': 'ascii', 'data': text},
    {'encoding': 'ASCII', 'endian': None, 'data': text},
    {'byte_skip': 4, 'data': b'abcd' + raw},
    {'byte_skip': -1, 'data': b'abcdef' + raw},
    {'line_skip': 1, 'data': b'abcdef\n' + raw},
    {'space_origin': None},
    {'space_units': '"mm" "mm" "mm"', 'Measurement_Frame': 'damaged'},
    {'dimension': 4, 'sizes': '2 3 5 4', 'kinds': 'list domain domain domain',
     'space_directions': 'none (1,0,0) (0,2,0) (0,0,3)'},
    {'dimension': 4, 'sizes': '3 5 4 2', 'kinds': 'domain domain domain list',
     'space_directions': '(1,0,0) (0,2,0) (0,0,3) none'},
  ]):  # fmt: skip
    order = {'space': None, 'space_dimension': None}
    fields = order | {'space': 'left-posterior-superior'} | fields
    if i != 6:
      fields.pop('space_dimension')
    write_nrrd(path, **fields)
    if fields.get('space') is None:
      content = path.read_bytes().replace(b'space dimension: 3\n', b'')
      begin = b'# a comment\n'
      path.write_bytes(content.replace(begin, begin + b'space dimension: 3\n'))
    fields.pop('Measurement_Frame', None)
    if b'damaged' in path.read_bytes():  # to ITK, not to us
      nifti.read_image(path)
      continue
    volume = assert_as_itk(path)
    assert len(volume.grid.oddities) == (i in (5, 6)), fields
  bare = dict(space=None, space_directions=None, space_origin=None)
  for fields in (
    {}, {'spacings': '1 2 3'}, {'spacings': '1 2 3', 'axis_mins': '4 5 6'},
    {'spacings': 'nan 2 3'}, {'spacings': 'nan 2 3', 'axis_mins': '4 5 6'},
    {'spacings': '1 2 3', 'axis_mins': '4 5 6',
     'centerings': 'node node node'},
  ):  # fmt: skip
    assert not assert_as_itk(write_nrrd(path, **bare | fields)).grid.placed


def test_headers_of_metaimage(tmp_path):
  path = tmp_path / 'a.mha'
  values = image_array()
  raw, big = (values.astype(f'{order}i2').tobytes('F') for order in '<>')
  turned = '0 1 0 -1 0 0 0 0 1'
  for fields in (
    {}, {'ElementSize': '2 3 4'},
    {'ElementSize': '2 3 4', 'ElementSpacing': '1 1.5 2'},
    {'TransformMatrix': turned, 'Offset': '5 6 7', 'CenterOfRotation': '1 1 1'},
    {'Rotation': turned, 'Position': '5 6 7', 'AnatomicalOrientation': 'XYZ'},
    {'Orientation': turned, 'Origin': '5 6 7', 'ElementSpacing': '-1 2 3'},
    {'BinaryData': 'True', 'BinaryDataByteOrderMSB': 'True', 'data': big},
    {'ElementByteOrderMSB': 'True', 'data': big},
    {'ElementByteOrderMSB': 'True', 'BinaryDataByteOrderMSB': 'False'},
    {'HeaderSize': -1, 'data': b'abcd' + raw},
    {'ElementToIntensityFunctionSlope': 2},
    {'ElementType': 'MET_LONG', 'DimSize': '3 5 4'},
    {'ElementType': 'MET_SHORT_ARRAY', 'ElementNumberOfChannels': 2,
     'DimSize': '3 5 4'},
  ):  # fmt: skip
    volume = assert_as_itk(write_mha(path, **fields))
    assert volume.grid.placed == bool(
      {'Offset', 'Position', 'Origin'} & {*fields}
    )
  (tmp_path / 'b.raw').write_bytes(b'abcd' + raw)
  for size in (4, -1):
    header = tmp_path / 'b.mhd'
    write_mha(header, b'', HeaderSize=size, ElementDataFile='b.raw')
    assert_as_itk(header)
  # What begins as gzip does need not be gzip.
  array = np.full(SHAPE[::-1], 0x8B1F, '<u2')
  array[0, 0, 1:] = 7
  assert_as_itk(save(tmp_path / 'c.mhd', made(array)))
  # Several volumes in one file are channels, as they are of NIfTI.
  write_mha(path, NDims=4, DimSize='3 5 4 2')
  found = nifti.read_image(path).array
  image = nib.Nifti1Image(
    values.ravel('F').reshape((3, 5, 4, 2), order='F'),
    np.diag([-1, -1, 1, 1]),
  )
  image.to_filename(tmp_path / 'd.nii')
  expected = nifti.read_image(tmp_path / 'd.nii').array
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('name', ['a.nrrd', 'a.mha', 'a.nhdr', 'a.mhd'])
@pytest.mark.parametrize('compress', [False, True])
def test_damage_is_told_in_one_line(tmp_path, name, compress):
  path = save(tmp_path / name, compress=compress)
  place = (*volume_formats.data_files([path]), path)[0]
  whole = place.read_bytes()
  place.write_bytes(whole[:-50])
  assert_all_in(refused_of(path), place.name, 'truncated')
  if compress:
    place.write_bytes(whole[:-40] + bytes(20) + whole[-20:])
    assert_all_in(refused_of(path), place.name, 'cannot be read')
  if place != path:
    place.unlink()
    assert_all_in(refused(path), place.name, 'which is no file')
    place.write_bytes(whole)
  text = path.read_bytes()
  first, rest = text.split(b'\n', 1)
  for content, word in (
    (b'', 'an empty file'),
    (b'\x89PNG and more', 'begins with'),
    (text[:40], 'damaged'),
    (b'version https://git-lfs', 'Git LFS'),
    (first + b'\n' + bytes(range(128, 256)) + b'\n' + rest, 'damaged'),
    (text[:20] + b'x' * 2**21, 'longer than'),
  ):
    path.write_bytes(content)
    assert word in refused(path)
    assert volume_formats.data_files([path]) in ([], [place])


def refused_of(path):
  with pytest.raises(InputError) as error:
    nifti.read_image(path)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_what_is_not_read(tmp_path):
  raw = image_array().astype('<i2').tobytes('F')
  for fields, parts in (
    ({'encoding': 'bzip2', 'data': bz2.compress(raw)}, ['raw, gzip and ascii']),
    ({'encoding': 'hex', 'data': raw.hex().encode()}, ['raw, gzip and ascii']),
    ({'encoding': 'ascii', 'data': b'1 2 x'}, ['damaged']),
    ({'encoding': 'ascii', 'data': b'1 2 3'}, ['truncated']),
    ({'type': 'block'}, ["'block'", 'integers and real']),
    ({'endian': None}, ['little or big']),
    ({'dimension': 2, 'sizes': '6 5', 'space_directions': '(1,0,0) (0,2,0)'},
     ['a single slice', '6x5', '2-D images']),
    ({'sizes': '6 5 1'}, ['a single slice']),
    ({'sizes': '6 5'}, ['2 sizes of 3 axes']),
    ({'sizes': '6 5 -4'}, ['shape 6x5x-4']),
    ({'sizes': '600000 500000 400000'}, ['truncated']),
    ({'sizes': '6 5 99999999999999999999999999'}, ['truncated']),
    ({'space': 'left-posterior-superior-time'}, ['allowed are left-']),
    ({'space_units': '"um" "um" "um"'}, ["'um'", 'allowed is mm']),
    ({'space_directions': '(1,0,0) (2,0,0) (0,0,3)'}, ['no usable geometry']),
    ({'space_directions': '(1,0,0) (0,2,0) none'}, ['a single slice']),
    ({'space_directions': '(1,0) (0,2) (0,0)'}, ['damaged']),
    ({'space_origin': '(1,2)'}, ['damaged']),
    ({'space_origin': '(nan,2,3)'}, ['no usable geometry']),
    ({'byte_skip': -2}, ['byte skip -2']),
    ({'data_file': 'LIST\na.raw\nb.raw'}, ['several files']),
    ({'data_file': 'a%03d.raw 1 4 1'}, ['several files']),
    ({'data_file': 'gone.raw'}, ['gone.raw', 'no file']),
    ({'type': None}, ["no 'type'"]),
  ):  # fmt: skip
    path = write_nrrd(tmp_path / 'a.nrrd', **fields)
    assert_all_in(refused(path), *parts)
  for fields, parts in (
    ({'ElementDataFile': 'LIST\na.raw\nb.raw'}, ['several files']),
    ({'ElementDataFile': 'a%03d.raw 1 4 1'}, ['several files']),
    ({'ElementDataFile': 'gone.raw'}, ['gone.raw', 'no file']),
    ({'ElementDataFile': ''}, ['the name of one beside it']),
    ({'BinaryData': 'False'}, ['BinaryData = True']),
    ({'NDims': 2, 'DimSize': '6 5'}, ['a single slice', '2-D images']),
    ({'NDims': 'three'}, ["NDims is 'three'"]),
    ({'DimSize': '6 5'}, ["DimSize is '6 5', not 3 numbers"]),
    ({'DimSize': '6 5 0'}, ['shape 6x5x0']),
    ({'ElementType': 'MET_STRING'}, ['MET_STRING', 'allowed are MET_CHAR']),
    ({'ElementSpacing': '0 1 1'}, ['no usable geometry']),
    ({'TransformMatrix': '1 0 0 1 0 0 0 0 1'}, ['no usable geometry']),
    ({'DistanceUnits': 'um'}, ['allowed is mm']),
    ({'HeaderSize': 5}, ['HeaderSize is 5']),
    ({'ObjectType': 'Mesh'}, ["'Mesh'", 'allowed is Image']),
    ({'CompressedData': 'True'}, ['cannot be read']),
    ({'CompressedData': 'True', 'data': zlib.compress(b'12')}, ['truncated']),
  ):  # fmt: skip
    path = write_mha(tmp_path / 'a.mha', **fields)
    assert_all_in(refused(path), *parts)


@pytest.mark.parametrize('name', ['a.nrrd', 'a.mha'])
def test_damage_of_any_kind_is_an_input_error(tmp_path, name):
  rng = np.random.default_rng(0)
  path = save(tmp_path / name, compress=True)
  whole = path.read_bytes()
  read = 0
  for _ in range(300):
    content = bytearray(whole)
    for place in rng.integers(0, 520, rng.integers(1, 4)):
      content[place] = rng.choice([*b'-109 (),.\n:=aLTe%"', 0, 255])
    path.write_bytes(content)
    volume_formats.data_files([path])
    try:
      nifti.read_image(path)
      read += 1
    except InputError as error:
      assert '\n' not in str(error), str(error)
  assert 20 < read < 250  # comments and numbers


def test_pynrrd_is_asked_for(tmp_path, monkeypatch):
  path = write_nrrd(tmp_path / 'a.nrrd')
  monkeypatch.setitem(sys.modules, 'nrrd', None)
  assert_all_in(refused(path), 'pynrrd', 'medseg_jax[clinic]')
