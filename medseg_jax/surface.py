"""Surface distances, under the name that the public interface promises."""

from medseg_jax.metrics.surface import (
  average_surface_distance,
  hausdorff_distance,
  surface_dice,
  surface_metrics,
)

__all__ = [
  'average_surface_distance',
  'hausdorff_distance',
  'surface_dice',
  'surface_metrics',
]
