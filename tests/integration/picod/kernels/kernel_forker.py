"""Between the test and PicoD: forks the fork server, as process 1 of a sandbox does, and becomes PicoD.

Arguments: the Python that kernels are forked from, then PicoD's command, whose last argument is the
path of its configuration.
"""

import json
import os
import socket
import sys

SERVE = """\
import socket, sys
sys.path.insert(0, sys.argv[2])
from agentcube.kernelhost.forkserver import serve
serve(socket.socket(fileno=int(sys.argv[1])))
"""

python, *command = sys.argv[1:]
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pid = os.fork()
if pid == 0:
    os.setsid()
    theirs.set_inheritable(True)
    os.execv(python, [python, "-c", SERVE, str(theirs.fileno()), os.environ["PYTHONPATH"]])
theirs.close()
ours.set_inheritable(True)
with open(command[-1]) as file:
    config = json.load(file)
config.update(fork_server_fd=ours.fileno(), fork_server_pid=pid)
with open(command[-1], "w") as file:
    json.dump(config, file)
os.execv(command[0], command)
