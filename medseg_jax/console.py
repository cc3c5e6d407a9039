"""The command `medseg-jax`, which is `python -m medseg_jax.main`."""

from medseg_jax.runtime import startup


def main() -> int:
  """Runs the program by `sys.argv` and returns its exit status."""
  startup.prepare('medseg-jax')
  from medseg_jax import main as program  # takes time

  return program.main()
