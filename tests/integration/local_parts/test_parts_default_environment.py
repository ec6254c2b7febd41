"""The environment every new session gets, in this user's cache: built once per machine."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from agentcube.drivers.local.environments import Environments

ANALYSIS = """
import io, json, matplotlib, numpy, pandas
matplotlib.use("Agg")
import matplotlib.pyplot as plot
frame = pandas.read_csv(io.StringIO("city,x\\na,1\\nb,3\\n"))
frame.plot(x="city", y="x"); picture = io.BytesIO(); plot.savefig(picture, format="png")
print(json.dumps({"mean": frame.x.mean(), "png": picture.getvalue()[:4].hex(), "sum": int(numpy.arange(5).sum())}))
"""


@pytest.mark.timeout(900)
def test_it_computes_and_draws(tmp_path: Path) -> None:
    env = Environments().ensure("default", print)
    fonts = tmp_path / "matplotlib"
    environ = {"PATH": os.defpath, "HOME": str(tmp_path), "MPLCONFIGDIR": str(fonts)}
    command = [env / "bin/python3", "-c", ANALYSIS]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"mean": 2.0, "png": "89504e47", "sum": 10}
    assert done.stderr == ""
    assert [path.name[:8] for path in fonts.iterdir()] == ["fontlist"]
