"""Convolutions with half the products, against all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import check_convolution, conv_ref, image_of, one_cpu

from medseg_jax.models.cpu import convolution as on_cpu
from medseg_jax.models.cpu import winograd
from medseg_jax.runtime import process


@pytest.fixture(autouse=True)
def nothing_kept_on_disk():
  # XLA cannot write programs with calls of oneDNN to disk.
  with process.not_kept(one_cpu()):
    yield


def wherever_possible(shape, kernel, stride, rows):
  return kernel[0] == 3 and stride == 1


# Every number of rows beyond whole cells of four, with no, one and two cells.
@pytest.mark.parametrize('rows', [1, 4, 6, 7, 9])
@pytest.mark.parametrize(
  'rank, padding',
  [
    (1, (1, 1)),
    (2, (1, 1)),
    (2, (2, 0)),
    (3, (0, 2)),
    (3, (1, 1)),
  ],
)
def test_convolution_and_gradients_equal_lax(rows, rank, padding, monkeypatch):
  monkeypatch.setattr(winograd, 'pays', wherever_possible)
  check_convolution(
    (2, *(rows, 6, 5)[:rank], 3),
    (*(3, 3, 2)[:rank], 3, 4),
    (1, 1, 2)[:rank],
    (padding, (0, 1), (1, 0))[:rank],
  )


@pytest.mark.parametrize('padding', [(3, 3), (5, 4)])
def test_paddings_that_reach_far(padding, monkeypatch):
  monkeypatch.setattr(winograd, 'pays', wherever_possible)
  paddings = (padding, (1, 1))
  check_convolution((2, 9, 5, 3), (3, 3, 3, 4), (1, 1), paddings)
  # Of these only the gradient with respect to the image has three taps.
  check_convolution((2, 13, 5, 3), (5, 3, 3, 4), (2, 1), paddings)
  check_convolution((2, 13, 5, 3), (6, 3, 3, 4), (2, 1), paddings)


def test_nothing_is_split_where_there_are_no_rows():
  assert not winograd.pays((2, 2, 40, 40, 128), (3, 3, 3, 128, 128), 1, 0)


def test_errors_are_twice_those_of_all_products(monkeypatch):
  x, kernel = (
    np.maximum(image_of(2, 16, 15, 64), 0),
    image_of(3, 3, 64, 32, seed=1),
  )
  cotangent = image_of(2, 16, 15, 32, seed=2)
  settings = ((1, 1), ((1, 1), (1, 1)))

  def run(fn, *arrays):
    y, vjp = jax.vjp(lambda x, kernel: fn(x, kernel, *settings), *arrays[:2])
    return y, *vjp(arrays[2])

  with jax.enable_x64():
    wide = [np.asarray(a, np.float64) for a in (x, kernel, cotangent)]
    exact = jax.device_get(run(conv_ref, *map(jnp.asarray, wide)))
  errors = []
  for pays in (wherever_possible, lambda *_: False):
    monkeypatch.setattr(winograd, 'pays', pays)
    found = jax.device_get(run(on_cpu.convolve, x, kernel, cotangent))
    errors.append(
      [
        np.sqrt(np.mean((a - b) ** 2)) / np.abs(b).max()
        for a, b in zip(found, exact, strict=True)
      ]
    )
  for half, all_of_them in zip(*errors, strict=True):
    assert 1.1 * all_of_them < half < 2.5 * all_of_them < 1e-6


def test_the_sums_are_those_of_the_formula():
  # Three taps on six values, and four values on six: Lavin & Gray, section 4.
  signal, taps = image_of(1, 6, 1)[..., 0], image_of(3, 1, 1)[..., 0]
  parts = [
    v[0] * u[0]
    for v, u in zip(
      winograd.split(signal[..., None], 0, 4),
      winograd.split_kernel(taps[..., None]),
      strict=True,
    )
  ]
  y = winograd.join([p[None] for p in parts], 4)
  np.testing.assert_allclose(
    y.ravel(), np.correlate(signal.ravel(), taps.ravel()), atol=1e-5
  )
  values = image_of(1, 4, 1, seed=2)
  products = jnp.stack(
    [
      v[0] * z[0]
      for v, z in zip(
        winograd.split(signal[..., None], 0, 4),
        winograd.split_cotangent(values),
        strict=True,
      )
    ]
  )
  np.testing.assert_allclose(
    winograd.join_kernel(products).ravel(),
    np.correlate(signal.ravel(), values.ravel()),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  'shape, kernel, stride, rows, expected',
  [
    ((2, 40, 56, 40, 64), (3, 3, 3, 64, 32), 1, 40, True),
    ((4, 64, 64, 128), (3, 3, 128, 128), 1, 64, True),
    ((4, 256, 256, 32), (3, 3, 32, 32), 1, 256, False),  # memory is the limit
    ((2, 40, 56, 40, 64), (3, 3, 3, 64, 32), 2, 20, False),
    ((2, 40, 56, 40, 64), (1, 3, 3, 64, 32), 1, 40, False),
    (
      (2, 5, 28, 28, 256),
      (3, 3, 3, 256, 256),
      1,
      5,
      False,
    ),  # 3 of 8 for nothing
    ((1, 4, 4, 512), (3, 3, 512, 512), 1, 4, False),  # the kernel is the most
  ],
)
def test_it_is_used_where_it_was_faster(shape, kernel, stride, rows, expected):
  assert winograd.pays(shape, kernel, stride, rows) == expected


def test_half_the_products_are_left_in_all_three():
  x, kernel = image_of(1, 32, 32, 128), image_of(3, 3, 128, 64)

  def run(x, kernel):
    y, vjp = jax.vjp(
      lambda x, kernel: on_cpu.convolve(x, kernel, (1, 1), ((1, 1), (1, 1))),
      x,
      kernel,
    )
    return vjp(y)

  lowered = jax.jit(run).lower(x, kernel)
  text = lowered.as_text()
  assert text.count('__onednn$convolution') == 2 * winograd.SUMS
  # Of the kernel's gradient: a loop over six with a loop over blocks in it.
  assert text.count('stablehlo.while') == 2


def test_slices_with_one_tap_across_them_are_images():
  padding = ((0, 0), (1, 1), (1, 1))
  check_convolution((2, 4, 8, 6, 3), (1, 3, 3, 3, 4), (1, 1, 1), padding)
  x, kernel = image_of(1, 2, 32, 32, 128), image_of(1, 3, 3, 128, 64)
  text = (
    jax.jit(on_cpu.convolve, static_argnums=(2, 3))
    .lower(x, kernel, (1, 1, 1), padding)
    .as_text()
  )
  assert text.count('__onednn$convolution') == winograd.SUMS
