"""Convolutions of CPUs: oneDNN and half the products, in place of XLA's own."""
