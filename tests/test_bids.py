"""BIDS data sets with masks among the derivatives."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from conftest import ROOT, ball
from data_cases import assert_all_in, assert_one_line

from medseg_jax import main
from medseg_jax.data.sources.bids import SUBJECT, open_bids
from medseg_jax.data.sources.volumes import open_volumes
from medseg_jax.runtime.errors import InputError, InputErrors

TABLE = (
  'index\tname\tcolor\n0\tUnknown\t#000\n1\tleft\t\n2\tright\t\n9\tnone\t\n'
)


def write(path, seed=0, *, mask=False):
  """Writes a volume of 14x15x13 voxels, or the mask of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  label = ball((14, 15, 13), seed=seed)
  noise = np.random.default_rng(seed).normal(100, 10, label.shape)
  array = label if mask else (noise + 60 * label).astype(np.float32)
  affine = np.diag([1.0, 1.0, 1.2, 1.0])
  nibabel.Nifti1Image(array, affine).to_filename(path)
  return path


def write_set(root, subjects=3, sessions=('',), derivative='manual'):
  """Writes T1w images and a dseg of each; returns the folder."""
  described = {'Name': 'Balls', 'BIDSVersion': '1.9.0'}
  (root / 'derivatives' / derivative).mkdir(parents=True)
  for folder in (root, root / 'derivatives' / derivative):
    (folder / 'dataset_description.json').write_text(json.dumps(described))
  seed = 0
  for subject in range(1, subjects + 1):
    for session in sessions:
      name = f'sub-{subject:02d}' + f'_{session}' * bool(session)
      anat = f'sub-{subject:02d}/{session}/anat/{name}'
      write(root / f'{anat}_T1w.nii.gz', seed)
      masks = root / 'derivatives' / derivative
      write(masks / f'{anat}_dseg.nii.gz', seed, mask=True)
      seed += 1
  return root


def source_of(root, **options):
  [(split, source)] = open_bids(root, **options).items()
  assert split == 'train'
  return source


def error_of(root, **options):
  with pytest.raises(InputError) as error:
    open_bids(root, **options)
  return error


def test_images_and_masks_of_sessions_are_cases(tmp_path):
  root = write_set(tmp_path, 2, ('ses-01', 'ses-02'))
  write(root / 'sub-03' / 'ses-01' / 'anat' / 'sub-03_ses-01_T1w.nii.gz')
  masks = root / 'derivatives' / 'manual'
  (masks / 'desc-manual_dseg.tsv').write_text('index\tname\n1\tother\n')
  (masks / 'dseg.tsv').write_text(TABLE)
  source = source_of(root)
  assert source.names == tuple(
    f'sub-0{i}_ses-0{j}' for i in (1, 2) for j in (1, 2)
  )
  assert source.classes == ('background', 'left', 'right')
  assert source.label_values == (0, 1, 2)
  assert source.channel_names == ('T1w',)
  (line,) = source.oddities
  assert_all_in(line, '1 image without a mask is left out (sub-03_ses-01_T1w')
  # The oracle is the same pair as a plain folder.
  plain = tmp_path / 'plain'
  for kind, path in (
    ('images', source.files[2].images[0]),
    ('labels', source.files[2].label),
  ):
    (plain / kind).mkdir(parents=True)
    shutil.copyfile(path, plain / kind / 'a.nii.gz')
  case, other = source[2], open_volumes(plain)['train'][0]
  np.testing.assert_array_equal(case.image, other.image)
  np.testing.assert_array_equal(case.label, other.label)
  assert case.spacing == other.spacing


def test_the_nearest_table_of_fitting_entities_names_the_classes(tmp_path):
  root = write_set(tmp_path, 2)
  masks = root / 'derivatives' / 'manual'
  near = masks / 'sub-01' / 'anat' / 'sub-01_dseg.tsv'
  (root / 'dseg.tsv').write_text(TABLE)
  near.write_text('index\tname\n2\tright\n1\tport\n')
  assert_one_line(error_of(root), "dseg.tsv: calls 1 'left'", "'port' in", near)
  near.write_text('index\tname\n1\tleft\n')
  assert source_of(root).classes == ('background', 'left', 'right')
  assert source_of(root, classes=('bg', 'a', 'b')).classes == ('bg', 'a', 'b')
  for text, part in (
    ('index\tname\n1\tleft\n1\tright\n', 'line 3: a second name of 1'),
    ('name\nleft\n', "line 2: index '', name 'left'"),
    ('index\tname\nx\tleft\n', "line 2: index 'x'"),
  ):
    near.write_text(text)
    assert_one_line(error_of(root), near, part, 'allowed')
  near.write_bytes(b'index\tname\n1\t\xff\n')
  assert_one_line(error_of(root), near, 'not text in UTF-8')
  near.write_text('index\tname\n1\tright\n')
  (root / 'dseg.tsv').write_text('index\tname\n2\tright\n')
  assert_one_line(error_of(root), root, "'right'")


def test_kinds_are_told_and_chosen(tmp_path):
  root = write_set(tmp_path, 2)
  for i in (1, 2):
    anat = f'sub-0{i}/anat/sub-0{i}'
    write(root / f'{anat}_FLAIR.nii.gz', 5 + i)
    write(root / f'sub-0{i}/func/sub-0{i}_task-rest_bold.nii.gz')
    write(
      root / f'derivatives/tool/{anat}_label-GM_mask.nii.gz',
      mask=True,
    )
  line = error_of(root)
  assert_one_line(
    line, '2 kinds of masks', 'config.data.bids.label',
    'manual/dseg, tool/label-GM_mask',
  )  # fmt: skip
  label = {'label': 'tool/label-GM_mask'}
  line = error_of(root, **label)
  assert_one_line(
    line, '2 kinds of images beside', 'config.data.bids.images', 'FLAIR, T1w'
  )
  source = source_of(root, images=('T1w', 'FLAIR'), **label)
  assert source.channel_names == ('T1w', 'FLAIR')
  first = [nibabel.load(path).get_fdata() for path in source.files[0].images]
  assert [path.name for path in source.files[0].images] == [
    'sub-01_T1w.nii.gz', 'sub-01_FLAIR.nii.gz',
  ]  # fmt: skip
  assert source[0].image.shape == (13, 15, 14, 2)
  np.testing.assert_allclose(
    source[0].image.sum((0, 1, 2)), [i.sum() for i in first], rtol=1e-5
  )
  (line,) = source.oddities
  assert_all_in(line, 'not used: bold, manual/dseg')
  for wish, parts in (
    ({'label': 'dseg'}, ["bids.label has 'dseg'", 'manual/dseg']),
    ({'images': ('T2w',)}, ["bids.images has 'T2w'", 'FLAIR, T1w']),
    ({'images': ('T1w', 'T1w')}, ['each kind once']),
  ):
    assert_one_line(error_of(root, **label | wish), *parts)
  (root / 'sub-02' / 'anat' / 'sub-02_FLAIR.nii.gz').unlink()
  line = error_of(root, images=('T1w', 'FLAIR'), **label)
  assert_one_line(line, 'sub-02_label-GM_mask', 'without its image FLAIR')


def test_a_mask_of_one_structure_has_its_name(tmp_path):
  # As ATLAS is handed out: images and masks both among the derivatives.
  folder = 'derivatives/ATLAS/sub-1/ses-1/anat'
  stem = 'sub-1_ses-1_space-MNI'
  write(tmp_path / folder / f'{stem}_T1w.nii.gz')
  path = tmp_path / folder / f'{stem}_label-L_desc-lesion_mask.nii.gz'
  image = nibabel.load(write(path, mask=True))
  array = np.uint8(255) * (np.asarray(image.dataobj) > 0)
  nibabel.Nifti1Image(array, image.affine).to_filename(path)
  source = source_of(tmp_path)
  assert source.names == ('sub-1_ses-1',)
  assert source.classes == ('background', 'L')
  assert source.label_values == (0, 255)
  assert source.channel_names == ('space-MNI_T1w',)


def test_a_mask_may_leave_out_how_the_image_was_taken(tmp_path):
  root = write_set(tmp_path, 2)
  anat = root / 'sub-01' / 'anat'
  (anat / 'sub-01_T1w.nii.gz').rename(anat / 'sub-01_acq-fast_T1w.nii.gz')
  assert source_of(root).names == ('sub-01_acq-fast', 'sub-02')
  write(anat / 'sub-01_acq-slow_T1w.nii.gz')
  line = error_of(root)
  assert_one_line(line, '2 images for one mask', 'allowed is one')
  source = source_of(root, strict=False)
  assert source.names == ('sub-02',) and len(source.problems) == 1
  masks = root / 'derivatives' / 'manual' / 'sub-01' / 'anat'
  (anat / 'sub-01_acq-slow_T1w.nii.gz').unlink()
  write(masks / 'sub-01_acq-fast_dseg.nii.gz', mask=True)
  assert_one_line(error_of(root), 'the second mask of the case sub-01_acq-fast')


def test_what_is_no_such_data_set(tmp_path):
  assert_one_line(error_of(tmp_path / 'none'), 'none', 'no such folder')
  assert_one_line(error_of(tmp_path), tmp_path, 'no volumes as BIDS names them')
  write(tmp_path / 'sub-1' / 'anat' / 'sub-1_T1w.nii.gz')
  write(tmp_path / 'sub-1' / 'anat' / 'notes.nii.gz')
  assert_one_line(error_of(tmp_path), 'no masks; found T1w; allowed')
  with pytest.raises(InputError) as error:
    open_volumes(tmp_path)
  assert_one_line(error, 'found sub-1', 'config.data.source=bids')
  masks = tmp_path / 'derivatives' / 'a'
  path = write(masks / 'sub-2' / 'anat' / 'sub-2_desc-x_mask.nii.gz', mask=True)
  line = error_of(tmp_path)
  assert_one_line(line, path, 'a mask without its image T1w')
  # As git-annex leaves files that nobody has fetched.
  image = tmp_path / 'sub-2' / 'anat' / 'sub-2_T1w.nii.gz'
  image.parent.mkdir(parents=True)
  image.symlink_to(tmp_path / '.git' / 'annex')
  source = source_of(tmp_path)
  with pytest.raises(InputError) as error:
    source[0]
  assert_one_line(error, image)
  path.unlink()
  path.symlink_to(tmp_path / '.git' / 'annex')
  with pytest.raises(InputErrors) as error:
    open_bids(tmp_path)
  assert_one_line(error, path)


def test_no_fold_parts_the_sessions_of_a_subject(tmp_path, capsys, monkeypatch):
  root = write_set(tmp_path / 'set', 5, ('ses-1', 'ses-2'))
  (root / 'derivatives' / 'manual' / 'dseg.tsv').write_text(TABLE)
  workdir = tmp_path / 'run'
  monkeypatch.chdir(ROOT)
  arguments = [
    'main', f'--workdir={workdir}', '--config=configs/auto_cpu.py',
    '--config.data.source=bids', f'--config.data.path={root}',
    '--config.data.bids.label=manual/dseg', '--config.data.bids.images=T1w',
    '--config.num_steps=2', '--config.batch_size=8', '--config.eval_every=0',
    '--config.patch_size=(16,16,16)', '--config.model.features=4',
    '--config.model.depth=2', '--config.inference.mirror=false',
  ]  # fmt: skip
  monkeypatch.setattr('sys.argv', arguments)
  assert main.main() == 0
  assert '10 cases in 5 groups' in capsys.readouterr().out
  for fold in json.loads((workdir / 'splits.json').read_text()):
    train, val = (
      {name.split('_')[0] for name in fold[part]} for part in ('train', 'val')
    )
    assert not train & val and len(val) == 1 and len(fold['val']) == 2
  summary = json.loads(
    (workdir / 'evaluation' / 'val' / 'summary.json').read_text()
  )
  assert list(summary['classes']) == ['background', 'left', 'right']
  written = json.loads((workdir / 'held_out.json').read_text())
  assert written['group'] == SUBJECT
  # The model finds the held-out cases again, and does without the group.
  monkeypatch.setattr(
    'sys.argv', [arguments[0], arguments[1]] + ['--mode=evaluate']
  )
  assert main.main() == 0
  assert 'val: 2 cases' in capsys.readouterr().out
