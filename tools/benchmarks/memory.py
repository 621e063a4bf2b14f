"""Peak memory of each command, over all its processes, relative to ``--memory`` as the store grows.

The commands run as on the command line. Their memory is the proportional set size (a page shared by two processes
counts once), summed over the tree of processes and sampled ten times per second; it includes pages of mapped files,
although the system can reclaim them at any time. ingest reads real text; the others use synthetic stores, which can
have any size, and score reads real text with them. subset takes half of the documents, merge adds a store of a tenth
without an index, and compact follows the removal of a tenth, so that the quantisers are retrained too. list is what
ingest does before it reads text: tiny files are listed, their names hashed, and they are divided into parts.
"""

import subprocess
import sys
import time
from pathlib import Path

from make_keys import make_store

from benchmarks.material import text_folder
from benchmarks.measuring import Result, Settings
from knnstore.living.remove import remove
from knnstore.sizes import format_size

_BETWEEN_SAMPLES = 0.1  # seconds
_FOLDER = 1000  # files
_LIST = """
import sys
from knnstore.corpus import find_sources, fingerprint, plan_parts
found = find_sources(sys.argv[1:])
fingerprint(found)
assert sum(len(part.sources) for part in plan_parts(found)) == len(found)
"""


def run(settings: Settings, work: Path) -> Result:
    factor = 4 if settings.quick else 10
    tokens = settings.size(None, quick=4000, full=1_000_000)
    keys = settings.size(settings.rows, quick=24_000, full=1_000_000)
    files = settings.size(None, quick=20_000, full=1_000_000)
    stages = ("list", "ingest", "index", "score", "subset", "merge", "compact")
    peaks: dict[str, list[tuple[int, int]]] = {stage: [] for stage in stages}
    scored = text_folder(settings, work, settings.size(None, quick=500, full=20_000))
    for size in (files // factor, files):
        peaks["list"].append((size, peak_of(work, [sys.executable, "-c", _LIST, str(tiny_files(work, size))])))
    for size in (tokens // factor, tokens):
        text = text_folder(settings, work, size)
        peaks["ingest"].append((size, peak(settings, work, "ingest", "--corpus", text, "--store", f"text-{size}")))
    for size in (keys // factor, keys):
        store = make_store(work / f"keys-{size}", size, like=settings.model).root
        other = make_store(work / f"other-{size}", size // 10, like=settings.model, seed=1).root
        commands: dict[str, tuple[str | Path, ...]] = {
            "index": ("--store", store),
            "score": ("--store", store, "--text", scored),
            "subset": (store, "--sample", "50%", "--into", work / f"subset-{size}"),
            "merge": (store, other, "--into", work / f"merged-{size}"),
            "compact": ("--store", store),
        }
        for stage, options in commands.items():
            if stage == "compact":
                remove(store, ["synthetic/*3"])
            peaks[stage].append((size, peak(settings, work, stage, *options)))
    table: list[tuple[str, int, int, float]] = []
    ratios: dict[str, float] = {}
    for stage, sizes in peaks.items():
        table += [(stage, size, round(of / 1e6), round(of / settings.memory, 3)) for size, of in sizes]
        before, after = sizes[0][1], sizes[1][1]
        ratios[f"{stage}_vs_promise"] = round(max(before, after) / settings.memory, 4)
        ratios[f"{stage}_growth"] = round(after / before, 4)
    about = {"limit": format_size(settings.memory), "growth of the store": factor}
    return Result("memory", about, ("stage", "keys or files", "peak MB", "÷ limit"), table, ratios)


def peak(settings: Settings, work: Path, stage: str, *options: str | Path) -> int:
    """Return the peak memory of ``knnstore STAGE`` with its workers, in bytes."""
    command = [sys.executable, "-m", "knnstore", stage, "--memory", str(settings.memory), "--quiet", "--json"]
    if stage in ("ingest", "score"):
        command += ["--model", settings.model]
    return peak_of(work, [*command, *map(str, options)])


def peak_of(work: Path, command: list[str]) -> int:
    """Return the peak memory of a command with all its child processes, in bytes."""
    process = subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        most = max(most, sum(map(resident_bytes, tree(process.pid))))
        time.sleep(_BETWEEN_SAMPLES)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return most


def tiny_files(work: Path, files: int) -> Path:
    """Make a folder with this number of files, in folders of a thousand, with names of about fifty characters."""
    top = work / f"files-{files}"
    for number in range(files):
        folder = top / f"{number // _FOLDER:06d}"
        if number % _FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"a-document-of-hardly-any-words-{number:08d}.txt").write_text(str(number))
    return top


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (stat := read(folder / "stat")):
            # the command's name, in brackets, may hold spaces
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(folder.name))
    processes = [root]
    for process in processes:
        processes += parents.get(process, [])
    return processes


def resident_bytes(process: int) -> int:
    """Return the proportional set size of a process; 0 if it has ended."""
    lines = read(Path(f"/proc/{process}/smaps_rollup")).splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""
