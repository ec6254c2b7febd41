r"""The control socket of a sandbox: how a connected descriptor gets out of its network namespace.

A unix stream socket on the host's side (directory mode 0700), served by PicoD. One exchange per
connection: the asker sends `DIAL <port>\n`; PicoD connects to 127.0.0.1:<port> inside (then to
::1) and answers one byte: `+` with the connected socket attached as SCM_RIGHTS, or `-` followed by
an errno name and `\n` (`-ECONNREFUSED\n`). Anything else closes the connection. Deadline: 5 s.
"""

DIAL = b"DIAL %d\n"
GRANTED = b"+"
REFUSED = b"-"
DEADLINE_S = 5.0
