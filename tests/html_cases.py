"""Cases that were scored, and their page, for the tests of `report.html`."""

import base64
import io
import json
import re

import numpy as np
from PIL import Image

from medseg_jax.metrics.case_scores import score_case
from medseg_jax.report import summary as report
from medseg_jax.report.html.case_views import CaseViews
from medseg_jax.report.html.page import write_page

CLASSES = ('background', 'liver </script>', 'tumour & "more"')


def volume(seed, shape=(12, 16, 20)):
  """Returns image `[*S, 1]`, label and a prediction that is a bit off."""
  rng = np.random.default_rng(seed)
  grid = np.indices(shape)
  centre = np.array(shape) / 2 + rng.uniform(-1, 1, 3)
  near = sum(((grid[i] - centre[i]) / (shape[i] / 4)) ** 2 for i in range(3))
  label = np.where(near < 0.2, 2, np.where(near < 1, 1, 0))
  image = 100 * label + rng.normal(0, 20, shape)
  return image[..., None], label, np.roll(label, 1 + seed % 2, axis=2)


def picture(seed, size=(40, 50), channels=1):
  """Returns the same of a 2-D image, uint8."""
  image, label, pred = volume(seed, (9, *size))
  grey = np.clip(image[4] + 40, 0, 255).astype(np.uint8)
  colour = np.concatenate([grey, grey // 2, 255 - grey], axis=-1)
  return colour if channels == 3 else grey, label[4], pred[4]


def page_of(cases, *, failed=None, spacing=(2.0, 1.0, 1.0), **more):
  """Returns the page, the summary and the records of cases by name.

  Args:
    cases: name -> image or None, label, prediction.
    failed: see `report.summarize`.
    spacing: of volumes.
    **more: of `write_page`.
  """
  records, views = [], CaseViews(len(cases))
  for name, (image, label, pred) in cases.items():
    own = spacing if label.ndim == 3 else (1.0, 1.0)
    scores = score_case(
      pred,
      label,
      classes=CLASSES,
      spacing=own,
      surface_tolerance=1.0 if label.ndim == 3 else None,
    )
    records.append({'case': name, **scores})
    views.add(name, image, label, pred, own)
  assert not views.reason
  summary = report.summarize(
    records, CLASSES, split='val', step=7, failed=failed
  )
  told = dict(title='a run: val', about=[('data', 'some')], notes=[]) | more
  page = write_page(
    summary=summary,
    records=records,
    classes=CLASSES,
    views=views.found,
    **told,
  )
  return page, summary, records


def data_of(page):
  """Returns what the page's script gets."""
  pattern = r'<script type="application/json" id="data">(.*?)</script>'
  return json.loads(re.search(pattern, page, re.S)[1])


def unpacked(address, shape, columns):
  """Returns the slices of a picture, by their places in it."""
  content = base64.b64decode(address.split(',')[1])
  whole = np.asarray(Image.open(io.BytesIO(content)))
  depth, rows, wide = shape
  return np.stack(
    [
      whole[
        z // columns * rows : (z // columns + 1) * rows,
        z % columns * wide : (z % columns + 1) * wide,
      ]
      for z in range(depth)
    ]
  )
