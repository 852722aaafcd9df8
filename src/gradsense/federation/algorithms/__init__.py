"""One file an algorithm, found by being here. Each holds both halves, the client's and the cloud's.

Read ``fedavg`` first: most others change one thing of it. ``gsfs_paper`` is the paper's own,
``gsfs`` ours.
"""
