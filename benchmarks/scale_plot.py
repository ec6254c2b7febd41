"""The plot of docs/explanation/scale.md: cores that are busy, by arrivals. Plain SVG, no library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

WHERE = Path(__file__).parents[1] / "docs/explanation/scale.svg"
LINES = (
    ("manager_cores", "managers", "#1b6ca8"),
    ("router_cores", "Routers", "#c8553d"),
    ("redis_cores", "Redis (one core at most)", "#3a7d44"),
)
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 360, 56, 24, 190, 48


def draw(rows: Sequence[dict[str, Any]], sessions: int) -> None:
    """Write the plot of rows with `arrivals` and the cores of each part."""
    most = max(row[name] for row in rows for name, _, _ in LINES) * 1.08
    last = rows[-1]["arrivals"]

    def x(arrivals: float) -> float:
        return LEFT + arrivals / last * (WIDTH - LEFT - RIGHT)

    def y(cores: float) -> float:
        return HEIGHT - BOTTOM - cores / most * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f"<title>Busy cores by new sessions per second, {sessions:,} sessions</title>",
    ]
    step = next(s for s in (1, 2, 5, 10, 20, 50) if most / s <= 8)
    for cores in range(0, int(most) + 1, step):
        parts.append(f'<path d="M{LEFT} {y(cores):.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(cores) + 4:.1f}" text-anchor="end">{cores}</text>')
    for row in rows:
        at = x(row["arrivals"])
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{row["arrivals"]:,}</text>'
        )
    parts.append(f'<path d="M{LEFT} {y(1):.1f}H{WIDTH - RIGHT}" stroke="#3a7d44" stroke-dasharray="4 3"/>')
    for name, label, colour in LINES:
        points = " ".join(f"{x(row['arrivals']):.1f},{y(row[name]):.1f}" for row in rows)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(row["arrivals"]):.1f}" cy="{y(row[name]):.1f}" r="3" fill="{colour}"/>'
            for row in rows
        ]
        end = rows[-1][name]
        parts.append(
            f'<text x="{WIDTH - RIGHT + 10}" y="{y(end) + 4:.1f}" fill="{colour}">{label}: {end:.1f}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">new sessions per second, and as many ended</text>'
    )
    parts.append(f'<text x="{LEFT - 40}" y="14">busy cores, {sessions:,} sessions</text>')
    parts.append("</svg>\n")
    WHERE.write_text("\n".join(parts))
