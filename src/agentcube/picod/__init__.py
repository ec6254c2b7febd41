"""PicoD: the daemon in a sandbox. Standard library only: it may run under the image's interpreter (3.9+)."""
