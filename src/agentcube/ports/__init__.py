"""The seams: what the planes need from drivers, stores, keys and each other, as Protocols."""
