"""The description of a store, and the table of stores."""

from collections.abc import Sequence

from knnstore.cli.report.words import documents, one_line, shown_store, table, wrapped
from knnstore.description import CorpusInfo, StoreInfo, StoreSummary
from knnstore.sizes import format_size


def info_text(info: StoreInfo) -> str:
    """Return a one-screen description of a store and the next step."""
    model = info.model
    fingerprint = f" (weights {model.weights[:12]})" if model.weights else " (unknown weights)"
    windows = f"windows of {info.key.context:,} tokens, stride {info.key.stride:,}"
    lines = wrapped("store", f"{info.name}: {_state(info)}")
    lines += wrapped("path", str(info.path))
    lines += wrapped(
        "model", f"{one_line(model.name)}{fingerprint}, vocabulary of {model.vocabulary:,}; {info.compute}"
    )
    lines += wrapped("keys", f"{info.key.dimension:,} {info.key_dtype} from {info.key.layer}; {windows}")
    if info.corpus is not None:
        lines += wrapped("corpus", _corpus(info.corpus))
    lines += _index(info)
    if (tuned := info.tuned) is not None:
        setting = f"k {tuned.k}, λ {tuned.lambda_:g}, temperature {tuned.temperature:g}"
        lines += wrapped(
            "tuned",
            f"{setting} on {tuned.tokens:,} tokens of {one_line(tuned.text)}: perplexity {tuned.lm_perplexity:,.2f} "
            f"with the LM alone, {tuned.perplexity:,.2f} with the store",
        )
    lines += ["", *_disk(info), ""]
    lines += wrapped("health", _health(info))
    lines.append(f"{'next':10}{_next(info)}")
    return "\n".join(lines)


def stores_text(stores: Sequence[StoreSummary]) -> str:
    """Return a table of stores, followed by the reason for each one that can't be read."""
    if not stores:
        return "no store in this folder\nnext      knnstore ingest --corpus PATH"
    rows = [("store", "model", "keys", "bytes", "per key", "index", "state")]
    rows += [
        (
            store.name,
            one_line(store.model),
            f"{store.rows:,}",
            format_size(store.bytes),
            f"{store.bytes / store.rows:.0f}" if store.rows else "",
            "yes" if store.indexed else "no",
            store.state,
        )
        if store.trouble is None
        else (store.name, "", "", "", "", "", "unreadable")
        for store in stores
    ]
    lines = table(rows, left=(0, 1, 5, 6))
    for store in stores:
        if store.trouble is not None:
            lines += ["", *wrapped(store.name, store.trouble)]
    return "\n".join(lines)


def _state(info: StoreInfo) -> str:
    held = f"; {info.writer} is writing to it" if info.writer else ""
    if info.state == "begun":
        done = f"{info.rows_done:,} of {info.rows:,} keys are written" if info.rows else "its text is being read"
        return f"begun, {done}{held}"
    parts = f" in {info.segments:,} segments" if info.segments > 1 else ""
    gone = f"; {documents(info.removed_documents)} removed, on disk until compaction" if info.removed_documents else ""
    return f"{info.rows:,} keys{parts}{gone}{held}"


def _corpus(corpus: CorpusInfo) -> str:
    files = "file" if corpus.files == 1 else "files"
    where = f" of {one_line(corpus.folder)}" if corpus.folder else ""
    size = f", {format_size(corpus.bytes)}" if corpus.bytes else ""
    held = (
        f"; {corpus.heldout_tokens:,} tokens of {documents(corpus.heldout_documents)} are held out"
        if corpus.heldout_tokens
        else "; nothing is held out"
    )
    return f"{documents(corpus.documents)} in {corpus.files:,} {files}{where}{size}{held}"


def _index(info: StoreInfo) -> list[str]:
    index = info.index
    if index is None:
        return wrapped("index", "none yet")
    check = index.check
    queries = "held-out" if check.source == "heldout" else "stored"
    behind = f"; {info.rows - index.rows:,} keys aren't indexed yet" if index.rows < info.rows else ""
    return [
        *wrapped("index", f"{index.words}{behind}"),
        *wrapped(
            "recall",
            f"{check.recall:.3f} of the {check.k:,} nearest keys, {check.recall_quantised:.3f} from the codes only "
            f"({check.queries:,} {queries} queries against all keys)",
        ),
    ]


def _disk(info: StoreInfo) -> list[str]:
    each = info.rows_done
    rows = [("disk", "bytes", "per key")]
    parts = [*info.parts.items(), ("total", info.bytes)]
    rows += [(part, format_size(size), f"{size / each:.1f}" if each else "") for part, size in parts]
    raw = info.raw_bytes_per_key
    rows.append(("float32 key, 8-byte value", format_size(raw * info.rows_done), f"{raw:.1f}"))
    return table(rows)


def _health(info: StoreInfo) -> str:
    health = info.health
    if not health.missing_files:
        return f"all {health.files:,} recorded files are present with the right size"
    listed = ", ".join(health.missing) + (" …" if health.missing_files > len(health.missing) else "")
    return f"{health.missing_files:,} of {health.files:,} recorded files are missing or have the wrong size: {listed}"


def _next(info: StoreInfo) -> str:
    shown = shown_store(info.path)
    if info.state == "begun":
        return "run the original command again to resume"
    if not info.live_rows:
        return f"knnstore restore --store {shown}, or knnstore ingest with other documents: all documents are removed"
    if info.index is None or info.index.rows < info.rows:
        return f"knnstore index --store {shown}"
    return f"knnstore score --store {shown}" + (
        "" if info.corpus and info.corpus.heldout_tokens else " --text YOUR.txt"
    )
