"""`make simulate`: seed after seed, each a whole run; the first that finds something is printed and ends it."""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.simulation.world import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, and tell its trace if it fails")
    parser.add_argument("--seeds", type=int, default=0, help="how many fresh seeds to run")
    parser.add_argument("--seconds", type=float, default=0.0, help="begin no run after that long")
    parser.add_argument("--first", type=int, help="the first of the seeds; default: a random one")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    options = parser.parse_args()
    if options.seed is not None:
        report = simulate(options.seed, trace=True)
        lines = report.trace if options.trace else report.trace[-60:] if report.wrong else ()
        sys.stdout.write("".join(line + "\n" for line in lines))
        print(
            f"seed {report.seed}: {report.events} events, {report.virtual_s:.1f} virtual s, {report.faults}"
        )
        print(f"digest {report.digest:016x}, {report.wrong or 'nothing wrong'}")
        return 1 if report.wrong else 0
    first = options.first if options.first is not None else random.SystemRandom().randrange(1 << 32)
    begun, events, virtual_s, runs = time.perf_counter(), 0, 0.0, 0
    cpu = time.process_time()
    for seed in range(first, first + (options.seeds or 1_000_000_000)):
        if runs and options.seconds and time.perf_counter() - begun > options.seconds:
            break
        report = simulate(seed)
        events, virtual_s, runs = events + report.events, virtual_s + report.virtual_s, runs + 1
        if report.wrong:
            print(f"seed {seed} ({report.faults}): {report.wrong}")
            print(f"again: make simulate SEED={seed}")
            return 1
    took = time.process_time() - cpu
    print(
        f"{runs} seeds from {first}: nothing wrong in {events:,} events, {virtual_s / 3600:.1f} virtual hours; "
        f"{events / took * 60:,.0f} events per minute of processor time"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
