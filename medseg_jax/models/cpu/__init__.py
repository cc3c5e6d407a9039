"""Convolutions of CPUs: oneDNN and half the products, in place of XLA's own."""

from jax.sharding import Mesh

from medseg_jax.models.cpu import onednn


def choose(mesh: Mesh) -> tuple[str, str]:
  """Returns who computes the convolutions of programs on `mesh`, and why.

  Returns:
    'onednn', with '', on one CPU; else 'xla', with the reason where one CPU
    might be expected to have oneDNN.
  """
  if mesh.devices.flat[0].platform != 'cpu':
    return 'xla', ''
  if mesh.size > 1:
    return 'xla', 'several devices share them'
  reason = onednn.why_not()
  return ('xla', reason) if reason else ('onednn', '')
