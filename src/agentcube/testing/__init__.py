"""Fakes and contract suites, for our tests and for users'."""
