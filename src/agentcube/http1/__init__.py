"""HTTP/1.1 heads and body framing as pure functions on bytes. Standard library only, no I/O."""
