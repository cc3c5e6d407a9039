"""Post-processing of predicted label maps, learnt on held-out predictions.

There is one kind of step: of what a step is of, the voxels of some classes
together, the largest connected component is kept, and every other voxel of it
becomes background. nnU-Net's rules (Isensee et al. 2021, Nature Methods) say
which steps to keep: see `learn`. A step is a dict that JSON can hold:

  {'step': 'keep_largest_component', 'of': 'liver', 'classes': [1, 2]}

`classes` are class indices, of which 0 is the background; `of` is a name for
people. `apply` takes the steps in their order.

Voxels that share a face, an edge or a corner hang together (26 neighbours in
3-D, 8 in 2-D), and of several components of the largest size all are kept. So
does nnU-Net version 2: its `remove_connected_components.py` calls acvl_utils'
`remove_all_but_largest_component` without a connectivity, which
`skimage.measure.label` reads as the full one, and which keeps all components as
large as the largest. Sizes are numbers of voxels, on the grid of the label map.
"""

from medseg_jax.postprocessing.components import Step, apply, classes_of
from medseg_jax.postprocessing.learning import (
  Learnt,
  NestedGain,
  describe,
  learn,
  nested_gain,
)
from medseg_jax.postprocessing.pieces import Pieces, count_pieces

__all__ = [
  'Learnt',
  'NestedGain',
  'Pieces',
  'Step',
  'apply',
  'classes_of',
  'count_pieces',
  'describe',
  'learn',
  'nested_gain',
]
