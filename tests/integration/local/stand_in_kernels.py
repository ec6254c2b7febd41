"""A fork server of a few lines: each message is a program, which runs in a process of its own.

Runs in the zygote of an environment (Python 3.9, standard library), from the bundle. A message carries the
program's standard output.
"""

import array
import os
import socket
import sys


def serve(link):
    while True:
        code, ancillary, _, _ = link.recvmsg(1 << 16, socket.CMSG_SPACE(4))
        if not code:
            os._exit(0)
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                link.close()
                os.dup2(fds[0], 1)
                os.close(fds[0])
                try:
                    exec(code.decode(), {"__name__": "__main__"})
                except BaseException as exc:
                    print(repr(exc))
                sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)
        os.close(fds[0])
