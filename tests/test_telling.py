"""Several processes read cases of their own; one tells what is odd of all."""

import logging
import shutil

import many
import nibabel
import numpy as np
from conftest import write_volumes

from medseg_jax.runtime import telling


def test_what_is_odd_about_a_case_is_told_once_whoever_reads_it(tmp_path):
  data = write_volumes(tmp_path / 'data', 6)
  (data / 'dataset.json').unlink()
  paths = sorted((data / 'labelsTr').iterdir())
  for path in paths:  # so those of both processes
    label = nibabel.load(path)
    array = np.asarray(label.dataobj).copy()
    array[0, 0, 0] = 9
    nibabel.Nifti1Image(array, label.affine).to_filename(path)
  prepare = (
    '--mode=prepare',
    '--config=configs/auto_cpu.py',
    f'--config.data.path={data}',
    '--config.data.label_values=(0, 1, 2)',
  )
  for surveyed in (True, False):  # by process 0 alone, which makes the plan
    first, second = many.run(tmp_path / 'run', *prepare, processes=2)
    assert ('plan      written' in first) == surveyed and second == ''
    lines = [x for x in first.splitlines() if 'label ids of no class: 9' in x]
    assert len(lines) == len(paths)
    for path in paths:
      assert sum(f'{path}: label ids' in line for line in lines) == 1
    for case in [*(tmp_path / 'user_cache').rglob('case.json')]:
      shutil.rmtree(case.parent)  # the hashes of their voxels stay


def test_a_process_alone_tells_all_and_one_of_several_each_line_once(
  monkeypatch, caplog
):
  for name in ('told', 'kept'):
    monkeypatch.setattr(telling._Process, name, None)

  def told():
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines

  with caplog.at_level(logging.WARNING):
    telling.note('a')
    telling.warn('a')
    telling.warn('a')
    assert told() == ['a', 'a'] and telling.take() == []

    telling.be_one_of_several(tells=False)
    for line in ('50 % a', 'b', 'c', 'd'):
      telling.warn(line)
    assert told() == []
    kept = telling.take()
    assert kept == ['50 % a', 'b', 'c', 'd'] and telling.take() == []

    telling.be_one_of_several(tells=True)
    telling.note('b')
    telling.warn('c')
    telling.tell(kept)
    assert told() == ['c', '50 % a', 'd'] and telling.take() == []
