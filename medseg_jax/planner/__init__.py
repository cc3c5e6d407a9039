"""The plan of a data set of volumes, from its fingerprint.

    plan = make_plan(fingerprint, dataset='Task04', num_classes=3,
                     channel_names=['MRI'])
    print(describe(plan))

A plan is a dict of what JSON can hold: what to resample to and how to
normalise, and for each of the configurations that apply ('3d_fullres', '2d',
'3d_lowres') patch, batch and network. Its `notes` say why. Users may edit it;
`check_plan` says whether the result makes sense. The rules are those of nnU-Net
(Isensee et al., Nature Methods 2021, and "nnU-Net revisited", 2024).
"""

from medseg_jax.planner.check import check_plan
from medseg_jax.planner.plan import make_plan, plan_rotation
from medseg_jax.planner.text import describe, to_json

__all__ = ['check_plan', 'describe', 'make_plan', 'plan_rotation', 'to_json']
