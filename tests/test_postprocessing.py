"""Which components are removed, and what is learnt, against whole arrays."""

import json
import math

import numpy as np
import pytest
from scipy import ndimage

from medseg_jax import postprocessing
from medseg_jax.metrics.case_scores import score_case
from medseg_jax.postprocessing import apply, count_pieces, learn, nested_gain

TWO = ('background', 'organ', 'tumour')
REGIONS = (('whole', (1, 2, 3)), ('core', (2, 3)), ('enhancing', (3,)))
FOUR = ('background', 'oedema', 'necrosis', 'enhancing')


def naive_largest(label, classes):
  """The rule, over the whole array, component by component."""
  mask = np.isin(label, classes)
  ids, count = ndimage.label(mask, np.ones((3,) * label.ndim))
  sizes = [(ids == i).sum() for i in range(1, count + 1)]
  label = label.copy()
  for i, size in enumerate(sizes, 1):
    if size < max(sizes):
      label[ids == i] = 0
  return label


def naive_dice(pred, label, groups):
  """Dice of each group of classes, NaN where it is in neither."""
  kept = label >= 0
  found = []
  for group in groups:
    p, t = (np.isin(x, group) & kept for x in (pred, label))
    total = p.sum() + t.sum()
    found.append(2 * (p & t).sum() / total if total else math.nan)
  return found


def naive_means(pairs, groups):
  table = np.array([naive_dice(*pair, groups) for pair in pairs])
  values = []
  for column in table.T:
    defined = [float(x) for x in column if not math.isnan(x)]
    values.append(sum(defined) / len(defined) if defined else None)
  defined = [x for x in values if x is not None]
  return values, sum(defined) / len(defined) if defined else None


def naive_learn(pairs, num_classes, groups):
  """The steps, by removing and scoring anew after every single one."""
  steps = []
  tried = [tuple(range(1, num_classes))] + (groups if len(groups) > 1 else [])
  for number, classes in enumerate(tried):
    new = [(naive_largest(pred, classes), label) for pred, label in pairs]
    old_values, old_mean = naive_means(pairs, groups)
    new_values, new_mean = naive_means(new, groups)
    if number == 0:
      keep = (
        old_mean is not None and new_mean is not None and new_mean > old_mean
      )
      for old, value in zip(old_values, new_values, strict=True):
        keep &= old is None or value is None or value >= old
    else:
      old, value = old_values[number - 1], new_values[number - 1]
      keep = old is not None and value is not None and value > old
    if keep:
      steps.append(classes)
      pairs = new
  return steps, pairs


def random_pairs(seed, shape, num_classes, count=4):
  """One class around the other, and boxes elsewhere, some of them right.

  Some voxels of the labels are ignored, some of no class, and some cases lack
  a class.
  """
  rng = np.random.default_rng(seed)
  wrong = rng.random()  # the share of boxes that are
  grid = np.stack(np.indices(shape), -1) / np.array(shape)
  pairs = []
  for _ in range(count):
    near = 0.35 - np.linalg.norm(grid - rng.uniform(0.35, 0.65), axis=-1)
    layers = near * num_classes / 0.35
    label = np.clip(np.ceil(layers), 0, num_classes - 1).astype(int)
    layers += rng.normal(0, 0.5, shape)
    pred = np.clip(np.ceil(layers), 0, num_classes - 1).astype(int)
    for _ in range(4):
      at = rng.integers(0, shape)
      size = rng.integers(1, 4, len(shape))
      box = tuple(map(slice, at, at + size))
      pred[box] = index = rng.integers(1, num_classes)
      if rng.random() > wrong:
        label[box] = index
    if rng.random() < 0.3:
      label[label == rng.integers(1, num_classes)] = 0
    label[rng.random(shape) < 0.05] = -1
    label[rng.random(shape) < 0.02] = num_classes + 3
    pairs.append((pred.astype(np.uint8), label.astype(np.int16)))
  return pairs


def pieces_of(pairs, num_classes):
  return [count_pieces(*pair, num_classes=num_classes) for pair in pairs]


def kept(learnt):
  return [tuple(step['classes']) for step in learnt.steps]


@pytest.mark.parametrize('shape', [(40,), (14, 17), (7, 8, 9)])
@pytest.mark.parametrize('seed', range(5))
def test_apply_removes_what_the_rule_over_whole_arrays_removes(shape, seed):
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 4, shape) * (rng.random(shape) < 0.5)
  label = label.astype(rng.choice([np.uint8, np.int16, np.int64]))
  before = label.copy()
  groups = [(1, 2, 3), (2,), (1, 3), (3,)]
  steps = [{'step': 'keep_largest_component', 'classes': list(g)}
           for g in groups]  # fmt: skip
  expected = label
  for group in groups:
    expected = naive_largest(expected, group)
  found = apply(label, steps)
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == label.dtype
  np.testing.assert_array_equal(label, before)  # a copy, whatever happens
  assert apply(label, []) is not label


def test_corners_hang_together_and_equal_sizes_all_stay():
  label = np.zeros((5, 6, 6), np.uint8)
  label[0, 0, 0] = label[1, 1, 1] = 1  # by a corner: a component of two
  label[3, 3, 3:5] = 1  # another of two
  label[3, 0, 5] = 1
  step = {'step': 'keep_largest_component', 'of': 'organ', 'classes': [1]}
  found = apply(label, [step])
  assert found[3, 0, 5] == 0 and found.sum() == 4
  # An empty mask, and one without voxels, stay as they are.
  assert not apply(np.zeros((3, 4), int), [step]).any()
  assert apply(np.zeros((0, 4), int), [step]).shape == (0, 4)


@pytest.mark.parametrize(
  'step',
  [
    {'step': 'smooth', 'classes': [1]},
    {'step': 'keep_largest_component', 'classes': []},
    {'step': 'keep_largest_component', 'classes': [0]},
    {'step': 'keep_largest_component', 'classes': '1'},
    {'step': 'keep_largest_component'},
    ['keep_largest_component'],
  ],
)
def test_no_step(step):
  with pytest.raises(ValueError, match='no step of post-processing'):
    apply(np.zeros((2, 2), int), [step])


@pytest.mark.parametrize('shape', [(30,), (24, 26), (9, 10, 11)])
@pytest.mark.parametrize('seed', range(12))
def test_classes_are_learnt_as_by_scoring_everything_anew(shape, seed):
  pairs = random_pairs(seed, shape, 3)
  learnt = learn(pieces_of(pairs, 3), classes=TWO)
  steps, after = naive_learn(pairs, 3, [(1,), (2,)])
  assert kept(learnt) == steps
  for scores, some in ((learnt.before, pairs), (learnt.after, after)):
    values, mean = naive_means(some, [(1,), (2,)])
    assert scores['mean'] == pytest.approx(mean, abs=1e-12)
    assert list(scores['classes'].values()) == pytest.approx(values, abs=1e-12)
  # What the pieces tell is what `apply` makes of the voxels.
  for (pred, _), (expected, _) in zip(pairs, after, strict=True):
    np.testing.assert_array_equal(apply(pred, learnt.steps), expected)


@pytest.mark.parametrize('shape', [(24, 26), (9, 10, 11)])
@pytest.mark.parametrize('seed', range(12))
def test_regions_are_learnt_as_by_scoring_everything_anew(shape, seed):
  pairs = random_pairs(seed, shape, 4)
  learnt = learn(pieces_of(pairs, 4), classes=FOUR, regions=REGIONS)
  groups = [group for _, group in REGIONS]
  steps, after = naive_learn(pairs, 4, groups)
  assert kept(learnt) == steps
  values, mean = naive_means(after, groups)
  assert learnt.after['mean'] == pytest.approx(mean, abs=1e-12)
  assert list(learnt.after['classes'].values()) == pytest.approx(values)
  for (pred, _), (expected, _) in zip(pairs, after, strict=True):
    np.testing.assert_array_equal(apply(pred, learnt.steps), expected)


@pytest.mark.parametrize('regions', [(), REGIONS])
def test_the_scores_are_those_of_an_evaluation(regions):
  pairs = random_pairs(7, (9, 10, 11), 4)
  learnt = learn(pieces_of(pairs, 4), classes=FOUR, regions=regions)
  records = [
    score_case(*pair, classes=FOUR, spacing=(1, 1, 1), regions=regions)
    for pair in pairs
  ]
  for name, value in learnt.before['classes'].items():
    dice = [record['classes'][name]['dice'] for record in records]
    assert value == pytest.approx(np.nanmean(dice), rel=1e-6)


def test_random_sets_keep_steps_of_each_kind_and_none():
  """So that the comparisons above compare something."""
  found = {
    step
    for seed in range(12)
    for step in kept(
      learn(pieces_of(random_pairs(seed, (24, 26), 3), 3), classes=TWO)
    )
    or [()]
  }
  assert found == {(), (1, 2), (1,), (2,)}


def row(*runs):
  """Returns int [1, n]: runs of (value, length)."""
  return np.concatenate([np.full(n, value) for value, n in runs])[None]


def test_a_speck_far_away_is_learnt_for_all_foreground():
  label = row((0, 2), (1, 6), (2, 4), (0, 6))
  pred = row((0, 2), (1, 6), (2, 4), (0, 3), (1, 2), (0, 1))
  learnt = learn(pieces_of([(pred, label)], 3), classes=TWO)
  assert kept(learnt) == [(1, 2)]  # nothing is left for the class to gain
  first, organ, tumour = learnt.candidates
  assert first['kept'] and not organ['kept'] and not tumour['kept']
  assert first['before']['classes'] == {'organ': 12 / 14, 'tumour': 1.0}
  assert first['after']['mean'] == 1.0 and first['voxels_removed'] == 2
  assert first['cases_changed'] == 1 and learnt.num_cases == 1
  assert organ['before'] == organ['after'] == learnt.after
  assert json.loads(json.dumps(learnt._asdict()))['steps'] == learnt.steps


def test_no_class_may_fall_for_the_union_though_the_mean_rises():
  # Without its second part organ gains much, and tumour loses all.
  label = row((1, 20), (0, 4), (2, 2), (0, 9))
  pred = row((1, 20), (0, 4), (2, 2), (0, 2), (1, 6), (0, 1))
  one = (pred, label)
  spoilt = row((1, 4), (0, 3), (1, 3)), row((1, 4), (0, 6))
  pairs = [one] + [spoilt] * 8
  (values, mean), (new_values, new_mean) = (
    naive_means([(f(p), t) for p, t in pairs], [(1,), (2,)])
    for f in (lambda p: p, lambda p: naive_largest(p, (1, 2)))
  )
  assert new_values[0] > values[0] and new_values[1] < values[1]
  learnt = learn(pieces_of(pairs, 3), classes=TWO)
  assert not learnt.candidates[0]['kept']
  assert kept(learnt) == [(1,)]  # which alone costs nobody anything
  # Where tumour has its own place in enough other cases the mean rises too.
  label, pred = (row((2, 9), (0, 9)), row((2, 9), (0, 3), (1, 6)))
  more = [*pairs, *[(pred, label)] * 3]
  first = learn(pieces_of(more, 3), classes=TWO).candidates[0]
  assert first['after']['mean'] > first['before']['mean']
  assert not first['kept']


def test_equal_dice_keeps_nothing():
  # One case gains by the step what the other loses by it.
  label = row((1, 3), (0, 5))
  gain = row((1, 3), (0, 2), (1, 2), (0, 1)), label
  loss = (
    row((1, 3), (0, 2), (1, 2), (0, 1)),
    row((1, 3), (0, 2), (1, 2), (0, 1)),
  )
  dice = [naive_dice(*pair, [(1,)])[0] for pair in (gain, loss)]
  assert dice == [0.75, 1.0]
  assert naive_dice(naive_largest(loss[0], (1,)), loss[1], [(1,)]) == [0.75]
  learnt = learn(pieces_of([gain, loss], 2), classes=TWO[:2])
  assert learnt.candidates[0]['cases_changed'] == 2
  assert learnt.candidates[0]['before'] == learnt.candidates[0]['after']
  assert learnt.steps == []
  # Nor where nothing changes, nor without cases, nor without foreground.
  assert learn(pieces_of([(label, label)], 2), classes=TWO[:2]).steps == []
  empty = np.zeros((4, 5), int)
  for cases in ([], pieces_of([(empty, empty)], 2)):
    learnt = learn(cases, classes=TWO[:2])
    assert learnt.steps == [] and learnt.after['mean'] is None


def test_cases_in_which_a_class_is_undefined_are_left_out():
  right = row((1, 4), (0, 3)), row((1, 4), (0, 3))
  nothing = row((0, 7)), row((0, 7))
  speck = row((1, 4), (0, 1), (1, 2)), row((1, 4), (0, 3))
  learnt = learn(pieces_of([right, nothing, speck], 2), classes=TWO[:2])
  assert learnt.before['mean'] == (1 + 8 / 10) / 2
  assert learnt.after['mean'] == 1.0 and len(learnt.steps) == 1
  # A false class that the step removes becomes undefined, and does not count.
  wrong = row((1, 4), (0, 1), (2, 2)), row((1, 4), (0, 3))
  learnt = learn(pieces_of([wrong], 3), classes=TWO)
  assert learnt.before == {'mean': 0.5, 'classes': {'organ': 1, 'tumour': 0}}
  assert learnt.after == {'mean': 1, 'classes': {'organ': 1, 'tumour': None}}
  assert kept(learnt) == [(1, 2)]


def test_one_class_has_one_candidate():
  speck = row((1, 4), (0, 1), (1, 2)), row((1, 4), (0, 3))
  learnt = learn(pieces_of([speck], 2), classes=TWO[:2])
  assert [tried['of'] for tried in learnt.candidates] == ['foreground']
  # Two classes in one region are one, too.
  learnt = learn(pieces_of([speck], 3), classes=TWO, regions=(('all', (1, 2)),))
  assert [tried['classes'] for tried in learnt.candidates] == [[1, 2]]


def test_each_class_is_tried_on_the_best_so_far_in_its_order():
  # Without core's small part whole is in two; then the smaller one goes.
  regions = (('core', (2,)), ('whole', (1, 2)))
  pred = row((2, 5), (1, 4), (2, 1), (1, 3), (0, 2))
  label = row((2, 5), (1, 4), (0, 6))
  pairs = [(pred, label)]
  learnt = learn(pieces_of(pairs, 3), classes=TWO, regions=regions)
  assert kept(learnt) == [(2,), (1, 2)]
  assert learnt.after['mean'] == 1.0
  turned = learn(pieces_of(pairs, 3), classes=TWO, regions=regions[::-1])
  assert kept(turned) == [(2,)]  # whole was in one piece when it was tried
  assert turned.after['mean'] < 1
  assert any('not kept' in x for x in postprocessing.describe(turned))


@pytest.mark.parametrize(
  ('classes', 'regions'), [(TWO, ()), (FOUR, REGIONS)], ids=['classes', '']
)
@pytest.mark.parametrize('seed', range(4))
def test_a_nested_estimate_is_that_of_doing_it_by_hand(classes, regions, seed):
  count = len(classes)
  folds = [
    random_pairs(10 * seed + k, (20, 22), count, count=1 + 2 * (k == 1))
    for k in range(3)
  ]
  groups = [g for _, g in regions] or [(i,) for i in range(1, count)]
  pooled, steps = [], []
  for k, fold in enumerate(folds):
    others = [pair for j, some in enumerate(folds) if j != k for pair in some]
    found, _ = naive_learn(others, count, groups)
    steps.append(found)
    for pred, label in fold:
      for group in found:
        pred = naive_largest(pred, group)
      pooled.append((pred, label))
  nested = nested_gain(
    [pieces_of(fold, count) for fold in folds], classes=classes, regions=regions
  )
  assert [[tuple(s['classes']) for s in of] for of in nested.steps] == steps
  flat = [pair for fold in folds for pair in fold]
  (_, before), (_, after) = (naive_means(p, groups) for p in (flat, pooled))
  assert nested.before['mean'] == pytest.approx(before, abs=1e-12)
  assert nested.after['mean'] == pytest.approx(after, abs=1e-12)
  assert nested.gain == pytest.approx(after - before, abs=1e-12)
  assert nested.num_cases == 5
  json.dumps(nested._asdict(), allow_nan=False)


def test_a_nested_estimate_may_be_a_loss_and_needs_two_folds():
  # In fold 0 the step is right, in fold 1 it is wrong.
  right = row((1, 4), (0, 1), (1, 2)), row((1, 4), (0, 3))
  wrong = (right[0], right[0])
  folds = [pieces_of([right], 2), pieces_of([wrong], 2)]
  nested = nested_gain(folds, classes=TWO[:2])
  assert nested.steps[0] == [] and len(nested.steps[1]) == 1
  assert nested.gain == pytest.approx((0.8 + 0.8) / 2 - (0.8 + 1) / 2)
  with pytest.raises(ValueError, match=r'two folds with cases.*\[1, 0\]'):
    nested_gain([folds[0], []], classes=TWO[:2])


def test_arrays_that_do_not_fit():
  with pytest.raises(ValueError, match='shape of pred'):
    count_pieces(np.zeros((2, 2), int), np.zeros((2, 3), int), num_classes=2)
  with pytest.raises(ValueError, match=r'pred must lie in 0..1, found 0..2'):
    count_pieces(np.array([0, 2]), np.array([0, 1]), num_classes=2)
  with pytest.raises(ValueError, match='region far has the classes'):
    learn([], classes=TWO, regions=(('far', (1, 5)),))
