"""Plumbing that server processes share: logging, keys, HTTP problems, serve()."""
