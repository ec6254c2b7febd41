"""The cells of a small notebook: data in, tables and charts out, a mistake, and one cell that is interrupted."""

from __future__ import annotations

INTERRUPTED = "i am waiting"
"""What the cell that is interrupted says once it waits."""

CELLS = [
    "import pandas as pd\nimport numpy as np\nimport matplotlib.pyplot as plt",
    'penguins = pd.read_csv("penguins.csv")\npenguins.shape',
    "penguins.head()",
    "penguins.dtypes",
    "penguins.isna().sum()",
    "penguins = penguins.dropna()\nlen(penguins)",
    'print(penguins.species.unique().tolist())\nprint("islands:", penguins.island.nunique())',
    'mass = penguins.groupby("species").body_mass_g.mean()\nmass',
    'for name, grams in mass.items():\n    print(f"{name:<10}{grams:8.1f} g")',
    "penguins.describe().round(2)",
    # Chart 1.
    'plt.hist(penguins.body_mass_g, bins=20)\nplt.xlabel("body mass (g)");',
    '_ = penguins.pivot_table(index="island", columns="species", values="body_mass_g", aggfunc="count")\n_.fillna(0)',
    "def ratio(row):\n    return row.bill_length_mm / row.bill_depth_mm\n\npenguins.apply(ratio, axis=1).describe()",
    "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n\n"
    '    def __repr__(self):\n        return f"Point({self.x}, {self.y})"\n\n'
    '    def _repr_html_(self):\n        return f"<b>{self.x}</b>, <b>{self.y}</b>"\n\nPoint(3, 4)',
    "[Point(n, n * n) for n in range(3)]",
    '{"numbers": list(range(40)), "text": "x" * 100, "nested": {"a": (1, 2), "b": {3}}}',
    # Chart 2, with a value and text in the same cell.
    "fig, axes = plt.subplots(1, 2, figsize=(8, 3))\naxes[0].plot([1, 2, 3], [3, 1, 2])\n"
    'axes[1].bar(["a", "b"], [2, 5])\nfig.suptitle("two")\nprint("drawn")\nplt.show()\n"after"',
    "from IPython.display import HTML, Markdown, display\n"
    'display(HTML("<i>shown</i>"))\ndisplay(Markdown("**bold**"))\nprint("between")\ndisplay(42, "text")',
    'import sys\nprint("to stderr", file=sys.stderr)\nsys.stdout.write("no newline")',
    "import asyncio\nawait asyncio.sleep(0.01)\n'awaited'",
    "async def numbers():\n    for n in range(3):\n        await asyncio.sleep(0)\n        yield n\n\n"
    "[n async for n in numbers()]",
    "%who_ls int",
    "!echo from a shell",
    "files = !ls *.csv\nfiles",
    "x = 1\ny = 2\nx + y;",
    "np.arange(12).reshape(3, 4) ** 2",
    "np.set_printoptions(precision=3)\nnp.linspace(0, 1, 7)",
    "penguins.sample(3, random_state=1)",
    # The exception.
    "def share(part, whole):\n    return part / whole\n\nshare(1, len(penguins) - len(penguins))",
    "sorted(penguins.species.value_counts().items())",
    "import json\njson.loads('{\"a\": }')",
    "penguins.nothing",
    "if True:\nprint(1)",
    # The interrupt.
    f'import time\nprint("{INTERRUPTED}", flush=True)\ntime.sleep(600)\nprint("never")',
    '"still here", len(penguins), int(mass.Gentoo)',
    # Chart 3.
    'for name, group in penguins.groupby("species"):\n'
    "    plt.scatter(group.flipper_length_mm, group.body_mass_g, label=name, s=12)\nplt.legend();",
    "_ = 5\nIn[2], Out[2]",
    '" ".join(["the", "end"])',
]
