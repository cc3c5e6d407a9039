"""An ensemble is scored on nothing that any of its members trained on."""

import pytest
from ensemble_cases import member, write, write_untrained_models

from medseg_jax.experiment import held_out, scored_cases, trained_model
from medseg_jax.programs import evaluate
from medseg_jax.runtime.errors import InputError


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
  """Returns the models of two configurations, which see other tiles."""
  return write_untrained_models(tmp_path_factory.mktemp('untrained'))


def record(held, trained):
  return held_out.Record(
    source='volumes',
    path='/data',
    fold='0',
    held_out={s: {n: f'#{n}' for n in names} for s, names in held.items()},
    trained={f'#{n}': n for n in trained},
    copies={},
    group='',
    groups={},
  )


def test_what_trained_one_member_has_trained_the_ensemble():
  both = held_out.union([
    record({'val': 'ab', 'test': 'xy'}, 'cd'),
    record({'val': 'bc', 'test': 'xb'}, 'ad'),
  ])  # fmt: skip
  assert set(both.trained.values()) == set('acd')
  assert both.held_out == {'val': {'b': '#b'}, 'test': {'x': '#x', 'y': '#y'}}
  folds = held_out.union([record({'val': 'a'}, 'b'), record({'val': 'b'}, 'a')])
  assert folds.held_out == {} and set(folds.trained.values()) == set('ab')


def test_only_what_trained_no_member_is_scored(untrained, tmp_path):
  cases = held_out.of_model(untrained['small'])
  test = list(cases.held_out['test'].items())

  def moved(some):
    """Returns a change: of the test cases, `some` have trained."""

    def change(description):
      found = description['training']['cases']
      for name, value in some:
        del found['held_out']['test'][name]
        found['trained'][value] = name

    return change

  def without_val(some):
    def change(description):
      moved(some)(description)
      found = description['training']['cases']
      val = found['held_out'].pop('val')
      found['trained'] |= {value: name for name, value in val.items()}

    return change

  one = member(untrained['small'], tmp_path / 'one', change=moved(test[:2]))
  two = member(
    untrained['small'], tmp_path / 'two', fold=1, change=without_val(test[2:3])
  )
  both = write(tmp_path / 'both', {'2d': [one, two]})
  config = trained_model.read_config(None, both, '')
  config.data.fold = cases.fold
  record = held_out.of_model(both)
  assert list(record.held_out) == ['test']
  assert record.held_out['test'] == dict(test[3:])
  with pytest.raises(InputError, match='trained this model'):
    evaluate.run(config, tmp_path / 'results', model=both, split='test')
  rest = member(
    untrained['small'], tmp_path / 'rest', fold=2, change=without_val(test[2:])
  )
  every = write(tmp_path / 'every', {'2d': [one, rest]})
  with pytest.raises(InputError, match='5 of 5 cases to be scored trained'):
    evaluate.run(config, tmp_path / 'results', model=every)
  # Where there are folds and no split of its own, no case is left.
  with pytest.raises(InputError, match='each has trained the model or, of an'):
    scored_cases._choose_split({'train': None}, '', config, True)
