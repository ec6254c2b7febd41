"""A PicoD of a few lines, to look at the walls without PicoD: answers health and runs one command per call.

Runs in the zygote (Python 3.9, standard library), from the bundle.
"""

import array
import json
import os
import signal
import socket
import subprocess


def run(config):
    listener = socket.socket(fileno=config["listen_fd"])
    while True:
        connection, _ = listener.accept()
        with connection:
            head, _, body = connection.recv(1 << 20).partition(b"\r\n\r\n")
            target = head.split()[1]
            answer = {"sandbox_id": config["sandbox_id"], "bound": False}
            if target == b"/run":
                answer = _run(config, json.loads(body))
            elif target == b"/fork":
                answer = _fork(config, json.loads(body))
            data = json.dumps(answer).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)


def _run(config, argv):
    def become():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which zygotes ignore
        for fd in config["cgroup_fds"]:
            os.write(fd, b"0")
        if not config["single_uid"]:
            os.setgroups([])
            os.setresgid(config["gid"], config["gid"], config["gid"])
            os.setresuid(config["uid"], config["uid"], config["uid"])

    done = subprocess.run(
        argv, env=config["env"], cwd="/workspace", preexec_fn=become, capture_output=True, check=False
    )
    return {"exit_code": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}


def _fork(config, code):
    """What the program printed that the fork server runs."""
    out, its = os.pipe()
    link = socket.socket(fileno=os.dup(config["fork_server_fd"]))
    with link, os.fdopen(out) as printed:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [its]))
        link.sendmsg([code.encode()], [rights])
        os.close(its)
        return {"stdout": printed.read(), "pid": config["fork_server_pid"]}


def crash(config):
    raise RuntimeError("no")


def leave(config):
    os._exit(3)


def impostor(config):
    run({**config, "sandbox_id": "sb-another"})
