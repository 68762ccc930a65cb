"""Scientific Spaces in JAX: optimizers, scaling, low rank, codes, experts."""

__version__ = '0.1.0'
