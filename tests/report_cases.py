"""What cases score, from voxel counts, for the tests of the report."""

NAN = float('nan')


def class_numbers(tp, fp, fn):
  """The scores of one class from their definitions, NaN for 0 / 0."""

  def ratio(a, b):
    return a / b if b else NAN

  return {
    'dice': ratio(2 * tp, 2 * tp + fp + fn),
    'iou': ratio(tp, tp + fp + fn),
    'precision': ratio(tp, tp + fp),
    'recall': ratio(tp, tp + fn),
    'tp': tp,
    'fp': fp,
    'fn': fn,
  }


def case_record(name, pixel_accuracy, **classes):
  return {
    'case': name,
    'pixel_accuracy': pixel_accuracy,
    'classes': {c: class_numbers(*counts) for c, counts in classes.items()},
  }
