"""The domain, pure: values and decisions, no I/O, no clock, no wire format."""
