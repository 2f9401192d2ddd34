"""The whole path under load: publisher -> scripted upstream -> relay -> Redis -> viewers, each a process of its own.

`python -m benchmarks` (or `make bench`; docs/benchmarks.md says how to read it). What stands where:

    __main__.py   options, and what happens with the results
    campaign.py   rounds and turns
    workloads.py  what is done to whom: a table
    curves.py     the same against one size at a time
    measure.py    the ways to measure, and what counts as correct; ingest.py: without viewers; late.py: one at a time
    contest.py    the contestants as one shape, relay first; rivals.py: the servers it is compared with
    upstream.py   the scripted upstream with a feed for the publisher
    load.py       the load client: in C where it is at hand, else viewers.py and viewer.py
    machine.py    cores, CPU time of processes, facts about the machine
    profile.py    py-spy beside a measurement
    goals.py      what must be reached
    report.py     results as tables and as docs/benchmarks.md; plots.py draws them
    peers/        what somebody would write by hand instead of running relay

Absolute numbers belong to one machine on one day. Trust the ratios: contestants take turns within a round, and a ratio
is the median over the rounds of what was measured side by side.
"""
