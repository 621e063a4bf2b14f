"""What the commands say that change a store."""

from knnstore.datastore.history import History
from knnstore.living.compact import CompactReport
from knnstore.living.derived import DeriveReport
from knnstore.living.remove import RemoveReport
from knnstore.living.restore import RestoreReport
from knnstore.objects.path import ObjectPath
from knnstore.report.index import index_text
from knnstore.report.words import documents, one_line, shown_store, table, wrapped
from knnstore.sizes import format_size

_SHOWN = 10


def remove_text(report: RemoveReport, compacted: CompactReport | None) -> str:
    """What was removed, and what is left of it."""
    if not report.documents:
        lines = ["removed   nothing: these documents were removed before, and have left the store for good"]
        return "\n".join([*lines, *([compact_text(compacted)] if compacted else [])])
    verb = "removed" if report.state is not None else "would remove"
    held_out = f" and {report.heldout_tokens:,} held-out tokens" if report.heldout_tokens else ""
    lines = [f"{verb:<9} {documents(report.documents)}, {report.rows:,} keys{held_out}"]
    lines += [f"          {one_line(name)}" for name in report.names[:_SHOWN]]
    if len(report.names) > _SHOWN:
        lines.append(f"          and {len(report.names) - _SHOWN:,} more")
    if compacted is not None:
        return "\n".join([*lines, compact_text(compacted)])
    if report.state is not None:
        shown = shown_store(report.store)
        lines += [
            "          no search finds them; their bytes leave the disk with the next compaction",
            f"next      knnstore compact --store {shown}, or to take it back: knnstore restore --store {shown}",
        ]
    return "\n".join(lines)


def compact_text(report: CompactReport, *, planned: bool = False) -> str:
    """What a compaction did or would do."""
    if not report.due:
        lines = [f"compact   nothing to do: {_segments(report.segments)}, {report.removed_rows:,} removed keys"]
    else:
        verb = "would make" if planned else "made"
        gone = ""
        if report.removed_documents:
            left = "would leave" if planned else "have left"
            gone = f"; {documents(report.removed_documents)} with {report.removed_rows:,} keys {left} it for good"
        lines = [f"compact   {verb} one segment of {_segments(report.segments)}: {report.rows:,} keys{gone}"]
    if not planned:
        lines.append(f"disk      {format_size(report.freed)} freed, {format_size(report.bytes)} in use")
    if report.held:
        states = ", ".join(map(str, report.held))
        why = "while a reader has them open: run 'knnstore compact' again when it has ended"
        if isinstance(report.store, ObjectPath):
            why = "for a day, since nobody can see who reads a bucket: run 'knnstore compact' again after that"
        lines += wrapped("", f"the files of state {states} stay {why}")
    return "\n".join(lines)


def log_text(history: History) -> str:
    """The changes, oldest first, and the states that can be returned to."""
    rows = [("state", "when (UTC)", "who", "what")]
    for change in history.changes:
        when = change.when.replace("T", " ").removesuffix("Z")
        rows.append((str(change.state.state), when, one_line(change.who), one_line(f"{change.kind}: {change.what}")))
    lines = table(rows, left=(1, 2, 3))
    earlier = history.reach[:-1]
    if earlier:
        lines.append(f"\nreturn    to state {', '.join(map(str, earlier))} with knnstore restore --state N")
    return "\n".join(lines)


def restore_text(report: RestoreReport) -> str:
    """Where the store is now."""
    text = f"restored  the documents of state {report.to}: {report.rows:,} keys; this is state {report.state}"
    if report.unindexed:
        text += f"\nnext      knnstore index --store {shown_store(report.store)}, for {report.unindexed:,} keys"
    return text


def derive_text(report: DeriveReport) -> str:
    """What a merge or a subset made, and what to do next."""
    doubles = f"; {documents(report.doubles)} left out that another has too" if report.doubles else ""
    heldout = f"; {report.heldout_tokens:,} tokens of {documents(report.heldout_documents)} held out"
    told = (
        f"store     {report.store}: {report.rows:,} keys of {documents(report.documents)}, "
        f"{format_size(report.bytes)}{heldout}{doubles}"
    )
    if report.index is not None:
        return f"{told}\n{index_text(report.index, report.store)}"
    return f"{told}\nnext      knnstore index --store {shown_store(report.store)}"


def _segments(count: int) -> str:
    return f"{count:,} segment{'' if count == 1 else 's'}"
