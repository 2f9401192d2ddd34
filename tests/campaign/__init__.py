"""The fault campaign: a fleet of real processes is hurt by a seeded schedule, and an offline checker reads what was seen.

How the parts stand to each other (each arrow is a TCP link through our own fault proxy):

    readers ──> relay × 3 ──> Redis (single, Sentinel, Cluster)
                     └─────> scripted upstream

`plan.py` decides from the seed what happens when; `conduct.py` does it; every part only *records* (JSON lines in one
folder); `checker.py` reads the folder afterwards, and shares no code with anything else here or with relay.

Beside it, with the same parts: `rolling/` restarts every replica under a thousand viewers without any fault, and
`handover.py` says where the time goes when a run's owner drains.
"""
