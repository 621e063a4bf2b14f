"""The runner on a real Dask cluster: each task's result once, whatever becomes of workers, tasks and the scheduler."""

import logging
import subprocess
import sys
import threading
import time
from itertools import count, pairwise

import cluster_jobs as jobs
import dask
import pytest
from distributed import Client, LocalCluster
from distributed.nanny import WorkerProcess
from loopback import MOST_SECONDS, LoopbackCluster, wait_until

from knnstore.errors import CorpusError, MismatchError, ResourceError, UsageError
from knnstore.scheduling import (
    Cluster,
    available_cores,
    cluster_runner,
    clusters,
    dask_runner,
    find_cluster,
    local_runner,
    visible_gpus,
    worker,
)
from knnstore.scheduling.dask_runner import DaskRunner, _Run
from knnstore.scheduling.worker import Terms

PATIENCE = 3.0


@pytest.fixture(scope="module")
def runner(cluster):
    with cluster_runner(cluster.address, patience=60) as joined:
        joined._patience = PATIENCE  # to join a busy machine may take long; to notice what froze should not
        joined._roster.patience = PATIENCE
        yield joined


def test_every_task_is_answered_once(runner):
    assert sorted(runner.run(jobs.double, range(50))) == [2 * number for number in range(50)]


def test_no_task_is_no_result(runner):
    assert list(runner.run(jobs.double, [])) == []


def test_what_is_in_flight_follows_the_workers_that_there_are(runner):
    taken = []
    results = runner.run(jobs.double, (taken.append(number) or number for number in range(100)))
    next(results)
    assert len(taken) <= 2 * 3 + 3  # two a worker, and what took the place of those that ended meanwhile
    results.close()


def test_workers_keep_what_is_dear_for_a_run_and_let_go_of_it_after_it(cluster):
    for _ in range(2):
        with cluster_runner(cluster.address, patience=60) as joined:
            made = list(joined.run(jobs.keep_what_is_dear, range(20)))
        assert {misses for misses, _ in made} == {1}
        assert sum(hits == 0 for _, hits in made) <= 3  # once a worker


def test_a_shared_value_reaches_every_task(runner):
    assert sorted(runner.run_shared(jobs.add, 1000, range(9))) == list(range(1000, 1009))


def test_a_worker_of_many_threads_runs_one_task_at_a_time(runner):
    spans = {}
    for process, begun, ended in runner.run(jobs.process, [0.05] * 12):
        spans.setdefault(process, []).append((begun, ended))
    for each in map(sorted, spans.values()):
        assert all(before[1] <= after[0] for before, after in pairwise(each))
    assert len(spans) <= 3  # so that one of them ran several


def test_an_error_of_a_task_is_the_run_s_error_and_the_next_run_works(runner):
    with pytest.raises(CorpusError, match="file 3 is no text"):
        list(runner.run(jobs.refuse, range(20)))
    assert sorted(runner.run(jobs.double, range(4))) == [0, 2, 4, 6]


def test_what_fails_for_a_moment_is_tried_again(runner, tmp_path):
    assert sorted(runner.run(jobs.flaky, [(str(tmp_path), number) for number in range(4)])) == [0, 1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 12


def test_a_straggler_does_not_stall_the_end(runner, tmp_path):
    tasks = [(str(tmp_path), number) for number in range(12)]
    assert sorted(runner.run(jobs.hang_the_first_time, tasks)) == [*range(12)]
    (tmp_path / "go on").touch()  # only now: the answer was that of a second copy


def test_a_worker_with_another_version_is_told_by_its_name(runner):
    terms = Terms(versions=(("numpy", "0.1"),))
    other = DaskRunner(runner._client, terms, foreign=True, patience=60)
    with pytest.raises(MismatchError, match=r"worker tcp://127.* has other versions .*numpy .*\(here 0\.1\)"):
        other.prepare_workers()


def test_a_store_that_a_worker_does_not_see_is_refused(runner, tmp_path):
    other = DaskRunner(runner._client, Terms(), foreign=True, patience=60)
    with pytest.raises(UsageError, match=r"doesn't see the store .*share under the same path"):
        other.require_shared(tmp_path / "elsewhere", [])
    (tmp_path / "store").mkdir()
    with pytest.raises(UsageError, match=r"doesn't see .*books"):
        other.require_shared(tmp_path / "store", [tmp_path / "books"])


def test_more_memory_than_a_worker_may_take_is_refused(cluster):
    with (
        pytest.raises(ResourceError, match=r"the memory limit of worker .* give memory="),
        cluster_runner(cluster.address, memory=10**15, patience=60),
    ):
        pass


def test_a_scheduler_that_is_not_there_is_one_sentence_after_another_on_what_is_waited_for(monkeypatch):
    monkeypatch.setattr(clusters, "_WAITING_SECONDS", 0.0)
    said = []
    with (
        pytest.raises(ResourceError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"),
        cluster_runner("tcp://127.0.0.1:9", patience=0.5, say=said.append),
    ):
        pass
    assert said == ["waiting   for the Dask scheduler at tcp://127.0.0.1:9, for up to 0.5 seconds"]


@pytest.mark.parametrize("moment", ["prepare_workers", "_scatter", "_send"])
def test_a_scheduler_that_goes_away_at_any_moment_is_one_sentence(short_lived, monkeypatch, logged_by_dask, moment):
    method = getattr(DaskRunner, moment)

    def bereft(runner, *arguments):
        short_lived.scheduler.kill()
        short_lived.scheduler.wait()
        return method(runner, *arguments)

    monkeypatch.setattr(DaskRunner, moment, bereft)
    with (
        pytest.raises(ResourceError, match=r"scheduler .*is gone: run the same command again"),
        cluster_runner(short_lived.address, patience=5) as joined,
    ):
        list(joined.run_shared(jobs.add, 1000, range(5)))
    assert logged_by_dask == []


def test_a_scheduler_that_goes_away_at_the_end_costs_no_result(short_lived, monkeypatch, logged_by_dask):
    with cluster_runner(short_lived.address, patience=60) as joined:
        assert sorted(joined.run(jobs.double, range(5))) == [0, 2, 4, 6, 8]
        short_lived.scheduler.kill()
        short_lived.scheduler.wait()
    assert logged_by_dask == []


def test_workers_that_are_slow_to_let_go_of_what_they_kept_hold_nobody_up(monkeypatch, logged_by_dask):
    go_on, letting_go, out = threading.Event(), threading.Event(), []
    close = Client.close

    def close_and_tell(client, *arguments, **options):
        out.extend(key for key, future in client.futures.items() if future.status == "pending")
        return close(client, *arguments, **options)

    monkeypatch.setattr(Client, "close", close_and_tell)
    monkeypatch.setattr(worker, "_KEPT", [letting_go.set, go_on.wait])
    monkeypatch.setattr(dask_runner, "_RELEASE_SECONDS", 0.1)
    here = {"n_workers": 1, "processes": False, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(protocol="tcp://", host="127.0.0.1", **here) as local:
        with cluster_runner(local.scheduler_address, patience=30) as joined:
            assert list(joined.run(jobs.double, [4])) == [8]
        assert letting_go.wait(MOST_SECONDS)
        assert out == []  # the scheduler would report it to a client that has gone
        go_on.set()
        wait_until(lambda: not local.workers[0].state.executing, "the worker to let go")
    assert logged_by_dask == []


def test_a_scheduler_that_goes_away_ends_the_run_with_a_sentence(short_lived):
    with (
        cluster_runner(short_lived.address, patience=60) as joined,
        pytest.raises(ResourceError, match=r"scheduler .*is gone: run the same command again"),
    ):
        results = joined.run(jobs.sleep_and_double, ((0.2, number) for number in count()))
        next(results)
        short_lived.scheduler.kill()
        for _ in results:
            pass


@pytest.fixture(scope="module")
def frail(tmp_path_factory):
    """A cluster of one worker, and ``lose()``: another takes its place, and what it had is gone with it."""
    started = LoopbackCluster(tmp_path_factory.mktemp("frail")).start(workers=1)

    def lose():
        started.kill(-1)
        started.workers[-1].wait()
        started.add_worker()

    with cluster_runner(started.address, patience=60) as joined:
        yield joined, lose
    started.stop()


def test_a_result_that_goes_with_its_worker_before_it_is_fetched_is_made_again(frail, monkeypatch):
    runner, lose = frail
    await_ended, looked = _Run._await_ended, []

    def lost_before(run):
        ended = await_ended(run)
        if ended and not looked:
            lose()
            wait_until(lambda: ended[0].status == "lost", "the scheduler to notice")
        looked.extend(ended)
        return ended

    monkeypatch.setattr(_Run, "_await_ended", lost_before)
    assert sorted(runner.run(jobs.double, range(4))) == [0, 2, 4, 6]
    assert looked[0].key in [future.key for future in looked[1:]]
    assert len(looked) < 100  # looked at now and then, not in a circle


def test_a_result_that_is_lost_and_fails_when_it_is_made_again_is_tried_as_what_fails(frail, tmp_path, monkeypatch):
    runner, lose = frail
    gather, gathered = _Run._gather, []

    def lost_before(run, futures):
        gathered.extend(futures)
        if len(gathered) == len(futures):
            lose()
        return gather(run, futures)

    monkeypatch.setattr(_Run, "_gather", lost_before)
    assert list(runner.run(jobs.good_then_bad_then_good, [str(tmp_path)])) == [3]


def test_a_shared_value_that_goes_with_the_last_worker_is_sent_again(frail):
    runner, lose = frail
    results = runner.run_shared(jobs.add_slowly, 1000, range(6))
    first = next(results)
    lose()
    assert sorted([first, *results]) == list(range(1000, 1006))


def test_a_cluster_that_adapts_grows_for_a_run_and_shrinks_in_its_middle_and_loses_nothing():
    asleep = {"n_workers": 0, "processes": False, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    adaptive = {"interval": "100ms", "wait_count": 2, "target_duration": "100ms"}
    with LocalCluster(protocol="tcp://", host="127.0.0.1", silence_logs=logging.ERROR, **asleep) as adapting:
        workers, sent = adapting.scheduler.workers, []

        def until(condition):
            begun = time.monotonic()
            while not condition():
                assert time.monotonic() - begun < MOST_SECONDS
                sent.append(len(sent))
                yield 0.02, sent[-1]

        def grow_and_shrink():
            adapting.adapt(minimum=0, maximum=3, **adaptive)
            yield from until(lambda: len(workers) == 3)
            adapting.adapt(minimum=0, maximum=1, **adaptive)
            yield from until(lambda: len(workers) == 1)

        with cluster_runner(adapting.scheduler_address, patience=30) as joined:
            assert sorted(joined.run(jobs.sleep_and_double, grow_and_shrink())) == [2 * number for number in sent]
            wait_until(lambda: not workers, "all workers to be let go")
            assert list(joined.run(jobs.double, [4])) == [8]


def test_the_cluster_is_the_one_named_else_that_of_dask_s_configuration():
    assert find_cluster("tcp://a:1", None, None) == Cluster("tcp://a:1", None)
    assert find_cluster(None, "file.json", None) == Cluster(None, "file.json")
    with dask.config.set({"scheduler-address": "tcp://b:2"}):
        assert find_cluster(None, None, None) == Cluster("tcp://b:2", None)
        assert find_cluster("tcp://a:1", None, None) == Cluster("tcp://a:1", None)
        assert find_cluster(None, "file.json", None) == Cluster(None, "file.json")
        assert find_cluster(None, None, 2) is None  # workers of this machine, in spite of the configuration
    assert find_cluster(None, None, None) is None


@pytest.mark.parametrize("workers", [None, 2])
def test_two_places_to_work_in_are_one_too_many(workers):
    with pytest.raises(UsageError, match="scheduler="):
        find_cluster("tcp://a:1", "file.json" if workers is None else None, workers)


def test_gpus_are_those_that_the_driver_and_the_environment_name(tmp_path, monkeypatch):
    monkeypatch.setattr("knnstore.scheduling.machine._torch_is_for_cpus", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path / "none") == ()
    for number in range(2):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    assert visible_gpus(tmp_path) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert visible_gpus(tmp_path) == ("3",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(tmp_path) == ()


TERMINATED = """
import click, time
from knnstore.cli.group import Group
from knnstore.scheduling import local_runner

@click.group(cls=Group)
def main(): pass

@main.command()
def work():
    with local_runner(1) as runner:
        results = runner.run(time.sleep, [0, 300])
        next(results)
        print("at work", flush=True)
        next(results)

if __name__ == "__main__":
    main(["work"])
"""


def test_the_quota_of_a_container_counts(monkeypatch):
    monkeypatch.setattr("dask.system._try_extract_cgroup_cpu_quota", lambda: (100_000, 100_000))
    assert available_cores() == 1


def test_a_command_that_is_terminated_closes_its_workers_and_says_only_how_to_go_on(tmp_path):
    script = tmp_path / "terminated.py"
    script.write_text(TERMINATED)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], **pipes) as process:
        assert process.stdout.readline() == "at work\n"
        process.terminate()
        _, told = process.communicate(timeout=MOST_SECONDS)
    assert told == "\ninterrupted: run the same command again to resume\n"
    assert process.returncode == 143


def test_workers_that_take_too_long_to_leave_do_not_fail_what_is_done(monkeypatch, logged_by_dask):
    kill, close = WorkerProcess.kill, LocalCluster.close

    async def killed_late(process, **options):
        await kill(process, **options)
        raise TimeoutError

    def closed_late(cluster, *arguments):
        close(cluster, *arguments)
        raise TimeoutError

    monkeypatch.setattr(WorkerProcess, "kill", killed_late)
    monkeypatch.setattr(LocalCluster, "close", closed_late)
    with local_runner(1) as runner:
        assert list(runner.run(abs, [-3])) == [3]
    assert logged_by_dask == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"address": "$HOME"}, "scheduler='.HOME': missing port"),
        ({"address": "tcp://127.0.0.1:99999"}, "port 99999"),
        ({"address": "nowhere://x:1"}, "unknown address scheme"),
        ({"address": "inproc://nowhere"}, "isn't the address of a scheduler in this process"),
        ({"scheduler_file": "written"}, "scheduler_file='written': no scheduler wrote this file"),
    ],
)
def test_an_address_that_no_scheduler_can_have_is_refused_before_a_client_is_made(given, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "written").write_text("{}")
    monkeypatch.setattr("distributed.Client", None)
    with pytest.raises(UsageError, match=words), cluster_runner(**given):
        pass


def test_a_scheduler_file_that_nobody_writes_is_waited_for_only_so_long(tmp_path):
    waiting = cluster_runner(scheduler_file=str(tmp_path / "none"), patience=0.1)
    with pytest.raises(ResourceError, match=r"within 0\.1 seconds"), waiting:
        pass
