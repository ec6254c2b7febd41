"""Runs cells in plain IPython and says what came of each. Run with an interpreter that has IPython, not imported.

Standard input: JSON with `cells` and `interrupted`, the line after which a cell gets SIGINT.
Standard output: a JSON list with an outcome for each cell, as tests/e2e/test_notebook.py compares them.
"""

import base64
import io
import json
import os
import re
import signal
import sys
import tempfile
import threading

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Teller(io.StringIO):
    """A standard stream that is kept, and at a certain line asks for the interrupt."""

    def __init__(self, stop_at):
        super().__init__()
        self.stop_at = stop_at

    def write(self, text):
        if self.stop_at and self.stop_at in text:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return super().write(text)


def main():
    asked = json.load(sys.stdin)
    os.environ["IPYTHONDIR"] = tempfile.mkdtemp()
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"

    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets import Type

    events = []

    class Hook(DisplayHook):
        def write_output_prompt(self):
            pass

        def write_format_data(self, format_dict, md_dict=None):
            events.append({"kind": "value", "data": packed(format_dict)})

        def finish_displayhook(self):
            self._is_active = False

    class Publisher(DisplayPublisher):
        def publish(self, data, metadata=None, **others):
            events.append({"kind": "display", "data": packed(data)})

    class Shell(InteractiveShell):
        displayhook_class = Type(Hook)
        display_pub_class = Type(Publisher)

        def _showtraceback(self, etype, evalue, stb):
            lines = [line for part in stb for line in ANSI.sub("", part).split("\n")]
            events.append({"kind": "error", "name": etype.__name__, "value": str(evalue), "traceback": lines})

        def system(self, command):
            with os.popen(command) as program:
                print(program.read(), end="")

    def packed(data):
        return {
            mime: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for mime, value in data.items()
        }

    shell = Shell.instance(colors="NoColor")
    shell.enable_gui = lambda gui=None: None
    shell.run_line_magic("matplotlib", "inline")
    outcomes = []
    real = sys.stdout, sys.stderr
    for cell in asked["cells"]:
        sys.stdout, sys.stderr = Teller(asked["interrupted"]), Teller(None)
        try:
            result = shell.run_cell(cell, store_history=True)
            out, err = sys.stdout.getvalue(), sys.stderr.getvalue()
        finally:
            sys.stdout, sys.stderr = real
        outcomes.append(
            {"stdout": out, "stderr": err, "events": list(events), "execution_count": result.execution_count}
        )
        events.clear()
    json.dump(outcomes, sys.stdout)


main()
