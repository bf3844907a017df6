"""Side-by-side measurements of fdtransport and its peers: `python -m benchmarks --help`.

What runs:

    cases.py       the rows: workload, kind, size, columns, anchors, as data
    libraries.py   the columns: how each library connects, streams, serves and runs
    writes.py reads.py relays.py idle.py accepts.py encrypted.py serials.py
                   the workloads, written once per shape (protocol, stream, blocking), not per library
    gates.py       what fdtransport is to reach

How it is measured:

    harness.py     one process per library and case, rounds interleaved in turning order, pinned
    worker.py      that process; job.py is what a workload sees of a round: ends, clock, bytes to move
    load.py        the other side, a blocking process of its own; ends.py makes the pairs
    counters.py    strace and cachegrind slopes
    report.py      ratios with median and extremes over the rounds, verdicts

A ratio is made within a round (anchor / column, more than 1 is better) and then its median, least and
most over the rounds are shown. Before the timed rounds each column moves random bytes of which both
sides compute the digest; a column whose digests differ is left out.

A new column is a class in libraries.py; a new row is an entry in cases.py.
"""
