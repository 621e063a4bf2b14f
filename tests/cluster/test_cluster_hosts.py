"""A worker on a host of its own, a network namespace with an address, whose link is cut."""

import os

import cluster_jobs as jobs
from loopback import LoopbackCluster, wait_until
from network_hosts import ip, namespace, needs_namespaces

from knnstore.scheduling import cluster_runner

SUBNET = 78


@needs_namespaces
def test_what_a_host_was_doing_whose_network_is_cut_is_done_elsewhere(tmp_path):
    name = f"knc{os.getpid() % 10**6}"
    with namespace(name, SUBNET) as (here, there):
        cluster = LoopbackCluster(tmp_path, host=here).start(workers=1)
        cluster.add_worker(inside=("ip", "netns", "exec", name), host=there)
        try:
            with cluster_runner(cluster.address, patience=30) as joined:
                wait_until(lambda: joined.workers == 2, "both workers")
                joined._patience = joined._roster.patience = 1.5
                results = joined.run(jobs.hang_at, [(str(tmp_path), there, number) for number in range(12)])
                first = next(results)
                wait_until((tmp_path / "begun").exists, "a task on the other host")
                ip("link", "set", f"{name}-0", "down")
                assert sorted([first, *results]) == [*range(12)]  # the other host's tasks never end there
                # a second copy may have ended before the silence was long enough
                wait_until(lambda: joined.workers and joined._roster.frozen, "the silent worker to count as frozen")
                assert [there in address for address in joined._roster.frozen] == [True]
        finally:
            cluster.stop()
