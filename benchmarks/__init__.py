"""The whole path under load: scripted upstream -> relay -> Redis -> relay -> viewers, each a process of its own.

`python -m benchmarks` (or `make bench`). What stands where:

    __main__.py   options, and what happens with the results
    workloads.py  what is done to whom, in which order; what counts as correct
    contest.py    the contestants as one shape: relay with its upstream and Redis, and the servers it is compared with
    load.py       the viewers: the C client where it is at hand, else viewers.py
    machine.py    cores, CPU time of processes, facts about the machine
    report.py     results as a table and as docs/benchmarks.md; plots.py draws them
    peers/        what somebody would write by hand instead of running relay

Absolute numbers belong to one machine on one day. Trust the ratios: contestants take turns within a round, and a ratio
is the median over the rounds of what was measured side by side.
"""
