"""The final reports of the commands that change a store."""

from knnstore.cli.report.index import index_text
from knnstore.cli.report.words import documents, one_line, shown_store, table, wrapped
from knnstore.datastore.history import History
from knnstore.files import files_of
from knnstore.living.compact import CompactReport
from knnstore.living.derived import DeriveReport
from knnstore.living.remove import RemoveReport
from knnstore.living.restore import RestoreReport
from knnstore.sizes import format_size

_SHOWN = 10


def remove_text(report: RemoveReport, compacted: CompactReport | None) -> str:
    """Return what was removed, where it remains and the next step."""
    if not report.documents:
        lines = ["removed   nothing: these documents were removed earlier and are deleted permanently"]
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
            "          no search finds them; the next compaction deletes them from disk",
            f"next      knnstore compact --store {shown}, or to undo: knnstore restore --store {shown}",
        ]
    return "\n".join(lines)


def compact_text(report: CompactReport, *, planned: bool = False) -> str:
    """Return what a compaction did or, if ``planned``, would do."""
    if not report.due:
        lines = [f"compact   nothing to do: {_segments(report.segments)}, {report.removed_rows:,} removed keys"]
    else:
        verb = "would merge" if planned else "merged"
        gone = ""
        if report.removed_documents:
            deleted = "would be deleted" if planned else "deleted"
            gone = f"; {documents(report.removed_documents)} with {report.removed_rows:,} keys {deleted} permanently"
        lines = [f"compact   {verb} {_segments(report.segments)} into one: {report.rows:,} keys{gone}"]
    if not planned:
        lines.append(f"disk      {format_size(report.freed)} freed, {format_size(report.bytes)} in use")
    if report.held:
        states = ", ".join(map(str, report.held))
        why = "while a reader has them open: run 'knnstore compact' again after it ends"
        if files_of(report.store).leases:
            why = "for a day, because readers of a bucket can't be seen: run 'knnstore compact' again after that"
        lines += wrapped("", f"the files of state {states} are kept {why}")
    return "\n".join(lines)


def log_text(history: History) -> str:
    """Return the changes, oldest first, and the states that can be restored."""
    rows = [("state", "when (UTC)", "who", "what")]
    for change in history.changes:
        when = change.when.replace("T", " ").removesuffix("Z")
        rows.append((str(change.state.state), when, one_line(change.who), one_line(f"{change.kind}: {change.what}")))
    lines = table(rows, left=(1, 2, 3))
    earlier = history.reach[:-1]
    if earlier:
        lines.append(f"\nrestore   state {', '.join(map(str, earlier))} with knnstore restore --state N")
    return "\n".join(lines)


def restore_text(report: RestoreReport) -> str:
    """Return the restored state and the next step."""
    text = f"restored  the documents of state {report.to}, {report.rows:,} keys, as the new state {report.state}"
    if report.unindexed:
        text += f"\nnext      knnstore index --store {shown_store(report.store)}, for {report.unindexed:,} keys"
    return text


def derive_text(report: DeriveReport) -> str:
    """Return a line about the merged store or subset and the next step."""
    doubles = f"; {documents(report.doubles)} left out as copies" if report.doubles else ""
    heldout = f"; {report.heldout_tokens:,} tokens of {documents(report.heldout_documents)} held out"
    line = (
        f"store     {report.store}: {report.rows:,} keys of {documents(report.documents)}, "
        f"{format_size(report.bytes)}{heldout}{doubles}"
    )
    if report.index is not None:
        return f"{line}\n{index_text(report.index, report.store)}"
    return f"{line}\nnext      knnstore index --store {shown_store(report.store)}"


def _segments(count: int) -> str:
    return f"{count:,} segment{'' if count == 1 else 's'}"
