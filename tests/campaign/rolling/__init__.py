"""The rolling restart: a thousand viewers behind a load balancer, every replica stopped and started again, one by one.

    viewers ──> balancer ──> relay × 3 ──> Redis
                                 └──────> scripted upstream

Nothing is hurt here; everything is done as an orchestrator does it, and what is measured is what people notice: how many
come back in the same second, how long each viewer waits, and how long those wait whose replica was not even touched but
whose run another one pumped. `balancer.py` and `viewers.py` are processes of their own that only record; `conduct.py`
orders them; `judge.py` reads the records afterwards and uses the campaign's checker; `report.py` writes them down.
"""
