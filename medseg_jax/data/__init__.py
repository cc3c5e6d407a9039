"""Sources of cases, preprocessing, cache and sampling. NumPy only, no jax."""
