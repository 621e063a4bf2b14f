"""Run the tasks of a job: in this process, on worker processes of this machine, or on an existing Dask cluster.

All of them implement ``Runner``. A task is a picklable call whose only side effects are files that it alone owns; it
may run twice, even at the same time. A task, the function that runs it and its ``Stage`` are defined in one module.
Only this package imports dask, and only if a cluster is used.
"""

from knnstore.scheduling.clusters import Cluster, cluster_runner, find_cluster, local_runner, open_job
from knnstore.scheduling.job import Job
from knnstore.scheduling.machine import available_cores, visible_gpus
from knnstore.scheduling.runner import Result, Runner, SerialRunner, Task
from knnstore.scheduling.stage import Stage
from knnstore.scheduling.worker import kept

__all__ = [
    "Cluster",
    "Job",
    "Result",
    "Runner",
    "SerialRunner",
    "Stage",
    "Task",
    "available_cores",
    "cluster_runner",
    "find_cluster",
    "kept",
    "local_runner",
    "open_job",
    "visible_gpus",
]
