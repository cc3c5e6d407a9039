"""Masks of DICOM series: a folder in, a NIfTI file out."""

import hashlib
import json
import sys

import highdicom as hd
import nibabel
import numpy as np
import pydicom
import pytest
import trimesh
from conftest import write_volumes
from data_cases import assert_one_line
from dicom_cases import values, write
from small import write_untrained
from test_clinic import complete, read_mask
from test_volumes_loop import config_for

from medseg_jax import load_model
from medseg_jax.data.formats.dicom import label_objects, reading
from medseg_jax.data.sources import to_predict
from medseg_jax.experiment import (
  clinic_formats,
  prediction_jobs,
  trained_model,
)
from medseg_jax.programs import predict
from medseg_jax.runtime.errors import InputError


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return untrained(tmp_path_factory.mktemp('model'))


def untrained(root):
  """Writes a model of volumes with random weights; returns its folder."""
  data = write_volumes(root / 'data', 5)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(root / 'cache'))
    write_untrained(config_for(data), root / 'run')
  return root / 'run' / 'model'


def run(model, source, output, **options):
  config = trained_model.read_config(None, model, '')
  predict.run(
    config, None, model=model, input_path=source, output_dir=output, **options
  )


def hashes(folder):
  return {
    path: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)
    for path in folder.rglob('*')
    if path.is_file()
  }


def test_a_study_folder_becomes_a_mask_on_its_own_grid(model, tmp_path, capsys):
  stored, study = values((14, 15, 13)), tmp_path / 'study'
  c, s = np.cos(0.2), np.sin(0.2)
  write(
    study / 'deep' / 'series', stored, step=(0, -s * 1.2, c * 1.2),
    directions=(1, 0, 0, 0, c, s),
  )  # fmt: skip
  (study / 'notes.txt').write_text('no image')
  before = hashes(study)
  run(model, study, tmp_path / 'out')
  out = capsys.readouterr().out
  assert 'notes.txt: no DICOM file' in out
  mask = nibabel.load(tmp_path / 'out' / 'study.nii.gz')
  assert mask.shape == (13, 15, 14)
  [series] = reading.read_files(list(before)).series
  expected = np.diag([-1, -1, 1, 1]) @ series.affine
  np.testing.assert_allclose(mask.affine, expected, atol=1e-5)
  np.testing.assert_allclose(mask.get_qform(), expected, atol=1e-5)
  # The same voxels as a NIfTI file have the same mask.
  (tmp_path / 'nifti').mkdir()
  image = nibabel.Nifti1Image(stored.transpose(2, 1, 0) - 1000, expected)
  image.to_filename(tmp_path / 'nifti' / 'study.nii.gz')
  run(model, tmp_path / 'nifti', tmp_path / 'other')
  other = nibabel.load(tmp_path / 'other' / 'study.nii.gz')
  ours = mask.get_fdata()
  assert len(np.unique(ours)) > 1
  np.testing.assert_array_equal(ours, other.get_fdata())
  # A second run changes nothing, and says so.
  written = hashes(tmp_path / 'out')
  capsys.readouterr()
  run(model, study, tmp_path / 'out')
  assert 'kept      1 mask of an earlier run' in capsys.readouterr().out
  masks = {p: v for p, v in written.items() if p.name.endswith('.gz')}
  assert masks.items() <= hashes(tmp_path / 'out').items()
  assert hashes(study) == before
  label = load_model(model).predict(study).label
  counts = np.bincount(label.ravel(), minlength=3)
  expected = np.bincount(ours.astype(int).ravel(), minlength=3)
  np.testing.assert_array_equal(counts, expected)


def test_formats_of_a_study(model, tmp_path, capsys):
  study = tmp_path / 'study'
  paths = write(study, values((14, 15, 13)))
  with pytest.raises(InputError, match='FrameOfReferenceUID') as error:
    run(model, study, tmp_path / 'lacking', formats=('nifti', 'seg'))
  assert_one_line(error, 'not written in all formats: 1 of 1 image: ')
  assert [p.name for p in (tmp_path / 'lacking' / 'study').iterdir()] == [
    'mask.nii.gz'
  ]
  complete(paths)
  out = tmp_path / 'out'
  before = hashes(study)
  formats = ('nifti', 'seg', 'rtstruct', 'mesh', 'report')
  run(model, study, out, formats=formats)
  names = {path.name for path in (out / 'study').iterdir()}
  assert names == {
    *('mask.nii.gz', 'seg.dcm', 'rtstruct.dcm', 'measurements.dcm'),
    *('report.html', 'report.json', 'measurements.csv'),
    *('left.stl', 'right.stl', 'surfaces.ply'),
  }
  [series] = reading.read_files(paths).series
  mask = nibabel.load(out / 'study' / 'mask.nii.gz').get_fdata()
  native = mask.transpose(2, 1, 0).astype(int)
  assert len(np.unique(native)) > 1
  drawn = read_mask(out / 'study' / 'rtstruct.dcm', series, ('left', 'right'))
  np.testing.assert_array_equal(drawn, native)
  segments = hd.seg.segread(out / 'study' / 'seg.dcm')
  read = segments.get_pixels_by_source_instance(
    [frame.instance for frame in series.frames],
    segment_numbers=[1, 2],
    assert_missing_frames_are_empty=True,
  )
  np.testing.assert_array_equal(read, native[..., None] == [1, 2])
  assert 'study,left' in (out / 'volumes.csv').read_text()
  # A second run changes nothing, of the lists neither, and says so.
  written = hashes(out)
  assert {path.name for path in written} > {'volumes.csv', 'predictions.jsonl'}
  capsys.readouterr()
  run(model, study, out, formats=formats)
  assert 'kept      1 mask of an earlier run' in capsys.readouterr().out
  assert hashes(out) == written and hashes(study) == before
  # One that was deleted is made again; one format lies in the folder itself.
  (out / 'study' / 'seg.dcm').unlink()
  run(model, study, out, formats=formats)
  again = (out / 'study' / 'seg.dcm').read_bytes()
  path = out / 'study' / 'seg.dcm'
  assert hashlib.sha256(again).digest() == written[path][0]
  run(model, study, tmp_path / 'one', formats=('seg',))
  assert (tmp_path / 'one' / 'study.dcm').read_bytes() == again


def test_objects_refer_to_a_copy_of_a_series_that_has_no_names(
  model, tmp_path, capsys
):
  study, out = tmp_path / 'study', tmp_path / 'out'
  paths = write(study, values((14, 15, 13)))  # no frame of reference
  config = trained_model.read_config(None, model, '')
  config.clinic.update(
    repair_identity=True, labelmap=True, keyhole=True, targets=('right',)
  )
  before = hashes(study)

  def again(**options):
    formats = ('nifti', 'seg', 'rtstruct', 'report')
    predict.run(
      config, None, model=model, input_path=study, output_dir=out,
      formats=formats, **options,
    )  # fmt: skip

  again()
  folder = out / 'study'
  assert f'copy in {folder / "series"}' in capsys.readouterr().out
  copies = sorted((folder / 'series').iterdir())
  assert [path.name for path in copies] == [
    f'{i + 1:04d}.dcm' for i in range(14)
  ]
  [copy] = reading.read_files(copies).series
  mask = nibabel.load(folder / 'mask.nii.gz').get_fdata()
  native = mask.transpose(2, 1, 0).astype(int)
  for name in ('seg.dcm', 'rtstruct.dcm'):
    read = read_mask(folder / name, copy, ('left', 'right'))
    np.testing.assert_array_equal(read, native)
    [series] = label_objects.look(folder / name).series
    assert series == copy.first.series != '1.2.3.4'
  assert pydicom.dcmread(folder / 'seg.dcm').SegmentationType == 'LABELMAP'
  drawn = pydicom.dcmread(folder / 'rtstruct.dcm')
  kinds = [o.RTROIInterpretedType for o in drawn.RTROIObservationsSequence]
  assert kinds == ['ORGAN', 'GTV']
  # A second run changes nothing; what was deleted is the same again.
  written = hashes(folder)
  again()
  assert 'kept      1 mask of an earlier run' in capsys.readouterr().out
  assert hashes(folder) == written
  for path in (copies[3], folder / 'measurements.dcm'):
    path.unlink()
  again()
  assert {p: h for p, (h, _) in hashes(folder).items()} == {
    p: h for p, (h, _) in written.items()
  }
  assert hashes(study) == before and len(paths) == 14
  config.clinic.keyhole = False
  with pytest.raises(InputError, match='rtstruct.*another clinic.keyhole'):
    again()
  config.clinic.targets = ('rigth',)
  with pytest.raises(InputError, match="config.clinic.targets has 'rigth'"):
    again(overwrite=True)


def test_formats_that_cannot_be_are_one_line(model, tmp_path):
  data = write_volumes(tmp_path / 'data', 1) / 'imagesTr'
  with pytest.raises(InputError, match='is none') as error:
    run(model, data, tmp_path / 'out', formats=('seg',))
  assert_one_line(error, '--formats has seg')
  with pytest.raises(InputError, match="--formats has 'stl'") as error:
    clinic_formats.parse('nifti,stl')
  assert_one_line(error)
  assert clinic_formats.parse('seg, nifti,seg') == ('seg', 'nifti')


def test_a_patient_is_named_only_where_that_is_asked_for(
  model, tmp_path, capsys
):
  study = tmp_path / 'BODY^SOME_1970'
  complete(write(study, values((14, 15, 13))))
  config = trained_model.read_config(None, model, '')
  out = tmp_path / 'out'
  formats = ('nifti', 'mesh', 'report')
  run(model, study, out, formats=formats)
  [folder] = [p.parent for p in out.rglob('report.json')]
  assert folder.name.startswith('series_')
  assert f"the patient's: {folder.name} is used" in capsys.readouterr().out
  assert not [path for path in out.rglob('*') if 'BODY' in path.name]
  told = (
    b''.join(path.read_bytes() for path in folder.iterdir())
    + (out / 'volumes.csv').read_bytes()
  )
  assert b'some' not in told.lower().replace(b'something', b'')
  config.clinic.name_patient = True
  predict.run(
    config, None, model=model, input_path=study, output_dir=tmp_path / 'named',
    formats=formats,
  )  # fmt: skip
  report = (tmp_path / 'named' / folder.name / 'report.json').read_text()
  patient = json.loads(report)['patient']
  assert patient['name'] == 'Some^Body' and patient['study_date'] == '20200101'
  page = (tmp_path / 'named' / folder.name / 'report.html').read_text()
  assert 'Patient name Some^Body' in page


def test_mistakes_about_classes_are_told_before_the_work(model, tmp_path):
  data = write_volumes(tmp_path / 'data', 1) / 'imagesTr'
  config = trained_model.read_config(None, model, '')
  config.clinic.lesions = ('lefft',)
  with pytest.raises(InputError, match="config.clinic.lesions has 'lefft'"):
    prediction_jobs.plan(
      config, data, tmp_path / 'out', formats=('nifti', 'report')
    )


def test_surfaces_and_a_report_of_any_volume(model, tmp_path, capsys):
  data = write_volumes(tmp_path / 'data', 2) / 'imagesTr'
  out = tmp_path / 'out'
  formats = ('nifti', 'mesh', 'report')
  run(model, data, out, formats=formats)
  folder = out / 'case_00'
  assert {path.name for path in folder.iterdir()} == {
    *('mask.nii.gz', 'left.stl', 'right.stl', 'surfaces.ply'),
    *('report.html', 'report.json', 'measurements.csv'),
  }
  mask = nibabel.load(folder / 'mask.nii.gz')
  report = json.loads((folder / 'report.json').read_text())
  label = mask.get_fdata()
  for i, structure in enumerate(report['structures']):
    assert structure['voxels'] == (label == i + 1).sum()
    if not structure['voxels']:  # the network is untrained
      assert structure['centroid_lps_mm'] is None
      continue
    volume = trimesh.load_mesh(folder / f'{structure["name"]}.stl').volume
    assert volume / 1000 == pytest.approx(structure['volume_ml'], rel=0.01)
    places = nibabel.affines.apply_affine(
      mask.affine, np.argwhere(label == i + 1)
    )
    np.testing.assert_allclose(
      structure['centroid_lps_mm'], places.mean(0) * [-1, -1, 1], rtol=1e-4
    )
  rows = (folder / 'measurements.csv').read_text().splitlines()
  assert rows[1].startswith('case_00,left,,') and len(rows) == 3
  # A second run changes nothing; another table of codes makes its files anew.
  written = hashes(folder)
  capsys.readouterr()
  run(model, data, out, formats=formats)
  assert 'kept      2 masks' in capsys.readouterr().out
  assert hashes(folder) == written
  # Also where a name is none that UTF-8 has.
  (data / 'case_01.nii.gz').rename(data / 'caf\udce9.nii.gz')
  run(model, data, tmp_path / 'alone', formats=('report',))
  names = {path.name for path in (tmp_path / 'alone').iterdir()}
  assert names >= {'case_00.html', 'case_00.json', 'caf\udce9.csv'}
  (data / 'caf\udce9.nii.gz').rename(data / 'volumes.nii.gz')
  with pytest.raises(InputError, match='volumes.csv: the name of a list'):
    run(model, data, tmp_path / 'list', formats=('report',))
  (data / 'volumes.nii.gz').rename(data / 'case_01.nii.gz')
  config = trained_model.read_config(None, model, '')
  config.inference.probabilities = True
  with pytest.raises(InputError, match='another surfaces'):
    predict.run(
      config, None, model=model, input_path=data, output_dir=out,
      formats=formats,
    )  # fmt: skip
  predict.run(
    config, None, model=model, input_path=data, output_dir=tmp_path / 'soft',
    formats=formats,
  )  # fmt: skip
  differ = 0
  for structure in report['structures']:
    name = f'{structure["name"]}.stl'
    soft = tmp_path / 'soft' / 'case_00' / name
    if structure['voxels']:
      volume = trimesh.load_mesh(soft).volume / 1000
      assert volume == pytest.approx(structure['volume_ml'], rel=0.01)
    differ += soft.read_bytes() != (folder / name).read_bytes()
  assert differ
  config = trained_model.read_config(None, model, '')
  config.clinic.codes = (('left', '123', 'Left'),)
  with pytest.raises(InputError, match='report.*another clinic.codes'):
    predict.run(
      config, None, model=model, input_path=data, output_dir=out,
      formats=formats,
    )  # fmt: skip


def test_several_series_are_listed_and_one_is_chosen(model, tmp_path):
  study = tmp_path / 'study'
  for number, words in ((3, 'T1 sagittal'), (11, 'T1 axial')):
    write(
      study / words, values((14, 15, 13), seed=number), SeriesNumber=number,
      SeriesDescription=words, SeriesInstanceUID=f'1.2.3.{number}',
    )  # fmt: skip

  def found(series):
    return to_predict.find(study, channels=1, series=series)

  for asked in ('', 'T1', '12'):
    with pytest.raises(InputError) as error:
      found(asked)
    assert_one_line(
      error, '3 T1 sagittal CT 13x15x14; 11 T1 axial CT 13x15x14', '--series='
    )
  for asked in ('11', 'AXIAL', '1.2.3.11'):
    chosen = found(asked)
    assert [case.name for case in chosen.cases] == ['study']
    assert {p.parent.name for p in chosen.cases[0].images} == {'T1 axial'}
    assert any('3 T1 sagittal' in line for line in chosen.unused)
  assert [c.name for c in found('all').cases] == ['series_3', 'series_11']
  with pytest.raises(InputError, match='the model takes 2') as error:
    to_predict.find(study, channels=2)
  assert_one_line(error)


def test_damage_is_named_and_nifti_files_come_first(tmp_path):
  paths = write(tmp_path / 'a', values())
  paths[1].write_bytes(b'version https://git-lfs.github.com/spec/v1')
  found = to_predict.find(tmp_path / 'a', channels=1)
  [failure] = found.failures
  assert failure.name == paths[1].name and 'git-lfs' in failure.reason
  data = write_volumes(tmp_path / 'data', 1) / 'imagesTr'
  write(data / 'dicom', values())
  found = to_predict.find(data, channels=1)
  assert [case.name for case in found.cases] == ['case_00']
  with pytest.raises(InputError, match='holds no DICOM series') as error:
    to_predict.find(data, channels=1, series='3')
  assert_one_line(error)


def test_without_pydicom_one_line_says_what_to_install(tmp_path, monkeypatch):
  write(tmp_path, values())
  for name in [n for n in sys.modules if 'formats.dicom' in n]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, 'pydicom', None)
  with pytest.raises(InputError, match='pip install') as error:
    to_predict.find(tmp_path, channels=1)
  assert_one_line(error, 'medseg_jax[clinic]')
