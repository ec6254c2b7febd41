"""Part of the SDK."""
