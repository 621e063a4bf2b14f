"""Running a job's tasks: in this process, on worker processes of this machine, or on a Dask cluster that exists.

One contract, ``Runner``. A task is a picklable call without side effects but the files that it alone owns, and may run
twice, at the same time even. Only this package imports dask, and only where a cluster is used.
"""

from knnstore.scheduling.clusters import cluster_runner, local_runner, scheduler_address
from knnstore.scheduling.machine import available_cores, visible_gpus
from knnstore.scheduling.runner import Result, Runner, SerialRunner, Task
from knnstore.scheduling.worker import kept

__all__ = [
    "Result",
    "Runner",
    "SerialRunner",
    "Task",
    "available_cores",
    "cluster_runner",
    "kept",
    "local_runner",
    "scheduler_address",
    "visible_gpus",
]
