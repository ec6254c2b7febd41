"""The control plane in one process on virtual time: the product's own code, a seeded world around it.

docs/decisions/0026 says why and what it covers; `make simulate` runs it.
"""
