"""Drivers make sandboxes exist; each is a package of its own and ignorant of the others."""
