"""What is said to and by a session's PicoD: bodies, events and calls, for documents and for tests.

PicoD checks what it is asked by itself, with the standard library; nothing here runs on a request's way.
"""
