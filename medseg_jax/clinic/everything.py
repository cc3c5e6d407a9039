"""All that writing a result takes, to be imported at one place, late."""

from medseg_jax.clinic import codes, identity, segmentation, structure_set
from medseg_jax.data.formats.dicom.reading import to_native

__all__ = ('codes', 'identity', 'segmentation', 'structure_set', 'to_native')
