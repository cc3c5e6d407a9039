"""TFDS data sets that lack splits: what there is can be scored."""
# ruff: noqa: E402

import pytest
from small import load, shrink, write_untrained

pytest.importorskip('tensorflow_datasets')

from test_tfds import Pets, pet_index, prepare

from medseg_jax.data.sources.tfds import open_tfds
from medseg_jax.experiment import opening, scored_cases
from medseg_jax.runtime.errors import InputError
from medseg_jax.studies import crossval


def prepare_pets(path, monkeypatch, **splits):
  """Prepares pets, of each split the first and the number of its examples."""
  monkeypatch.setattr(
    Pets,
    '_split_generators',
    lambda self, _: {
      name: self._generate_examples(*examples)
      for name, examples in splits.items()
    },
  )
  prepare(Pets(data_dir=path))
  return str(path)


def test_a_test_split_alone_is_scored_but_does_not_train(tmp_path, monkeypatch):
  config = shrink(load('unet'))
  config.data.source, config.data.path = 'tfds', 'pets'
  config.data.label_values = (1, 2, 3)
  config.data.tfds.data_dir = prepare_pets(
    tmp_path / 'first', monkeypatch, train=(0, 5)
  )
  config = write_untrained(config, tmp_path / 'run')
  other = prepare_pets(tmp_path / 'other', monkeypatch, test=(50, 4))
  config.data.tfds.data_dir = other
  scored = scored_cases.choose(config, tmp_path / 'run')
  assert (scored.split, len(scored.source)) == ('test', 4)
  assert {pet_index(case) for case in scored.source} == {50, 51, 52, 53}
  with pytest.raises(InputError, match='no case to train on'):
    opening.open_run(config, tmp_path / 'again')
  (source,) = open_tfds('pets', data_dir=other).values()
  assert source.label_values == (1, 2, 3)  # of the masks that there are
  none = prepare_pets(tmp_path / 'none', monkeypatch, unlabelled=(0, 1))
  with pytest.raises(InputError, match='no examples in a split train or .*unl'):
    open_tfds('pets', data_dir=none)


def test_train_alone_is_cross_validated(tmp_path, monkeypatch, capsys):
  config = shrink(load('unet'), num_steps=2)
  config.data.source, config.data.path = 'tfds', 'pets'
  config.data.num_folds = 2
  config.data.tfds.data_dir = prepare_pets(
    tmp_path / 'data', monkeypatch, train=(0, 5), test=(50, 4)
  )
  result = crossval.run(config, tmp_path / 'run')
  assert result['num_cases'] == 5
  masks = (tmp_path / 'run').glob('2d/fold_*/held_out/*.png')
  assert sorted(path.stem for path in masks) == [f'pet_{i}' for i in range(5)]
  assert 'not used: the cases that the data itself holds out (4 test)' in (
    capsys.readouterr().out
  )
