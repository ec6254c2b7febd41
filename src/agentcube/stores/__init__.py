"""Stores remember sessions, templates and pools; each module is one implementation of ports.store."""
