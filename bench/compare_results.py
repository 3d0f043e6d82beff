#!/usr/bin/env python3
"""Compares two result files of the benchmarks (JSON lines), by name: before and after a change.

    bench/compare_results.py BEFORE AFTER [--metric KEY]... [--least PERCENT] [--sort]

Every line of a benchmark is one measurement. It is identified by its "name", or else by all its
text values and its whole-number settings (threads, batch, groups, ...). Compared are the times: by
default step_s and every number called *_ms but the _min_ and _p90_ ones; --metric names others. A
measurement that occurs several times in a file (interleaved runs put together with cat) counts with
its median. Changes below --least percent (default 3) are marked as equal: on a shared machine
anything below 5 to 10 percent is noise unless many runs say so. --sort puts the largest differences
in milliseconds first. Exit status 1 when the files have no measurement in common.
"""
import argparse
import json
import math
import statistics
import signal
import sys

SETTINGS = ("threads", "batch", "size", "groups")


def identity(r):
    if "name" in r:
        return r["name"]
    text = [v for v in r.values() if isinstance(v, str)]
    return " ".join(text + ["%s=%s" % (k, r[k]) for k in SETTINGS if k in r])


def is_time(key):
    return key == "step_s" or (key.endswith("_ms") and not key.endswith(("_min_ms", "_p90_ms")))


def read(path, metrics):
    """{(name, metric): [values]} and the order of first occurrence."""
    found = {}
    with open(path) as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                r = json.loads(line)
            except ValueError:
                sys.exit("%s, line %d: not a JSON object" % (path, number))
            if not isinstance(r, dict):
                sys.exit("%s, line %d: not a JSON object" % (path, number))
            for key, value in r.items():
                wanted = key in metrics if metrics else is_time(key)
                if wanted and isinstance(value, (int, float)):
                    found.setdefault((identity(r), key), []).append(value)
    return found


def main():
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends it quietly
    ap = argparse.ArgumentParser()
    ap.add_argument("before")
    ap.add_argument("after")
    ap.add_argument("--metric", action="append", default=[])
    ap.add_argument("--least", type=float, default=3)
    ap.add_argument("--sort", action="store_true")
    args = ap.parse_args()
    before, after = read(args.before, args.metric), read(args.after, args.metric)
    rows = []
    for key in before:
        if key in after:
            rows.append((key, statistics.median(before[key]), statistics.median(after[key])))
    if not rows:
        sys.exit("no measurement is in both files")
    if args.sort:
        rows.sort(key=lambda row: -abs(row[2] - row[1]))
    print("| measurement | metric | before | after | after/before | |")
    print("|---|---|---|---|---|---|")
    logs = 0
    for (name, metric), a, b in rows:
        ratio = b / a if a else float("nan")
        change = 100 * (ratio - 1)
        word = "=" if not abs(change) >= args.least else "less" if change < 0 else "MORE"
        print("| %s | %s | %.4g | %.4g | %.3f | %s |" % (name, metric, a, b, ratio, word))
        logs += math.log(ratio) if a > 0 and b > 0 else 0
    print("\n%d compared, geometric mean of after/before %.3f" %
          (len(rows), math.exp(logs / len(rows))))
    for label, one, other in (("before", before, after), ("after", after, before)):
        missing = sorted({name for name, _ in one} - {name for name, _ in other})
        if missing:
            print("only in the file '%s': %s" % (label, "; ".join(missing)))


if __name__ == "__main__":
    main()
