"""Long mixed use through a bad network: `make soak [OPERATIONS=10000] [SESSIONS=20] [SEED=n]`."""
