"""What crosses a process boundary: names (standard library only) and bodies (pydantic). No I/O."""
