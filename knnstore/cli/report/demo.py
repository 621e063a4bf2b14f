"""The final report of the demo."""

from knnstore.cli.report.score import score_text
from knnstore.cli.report.words import shown_store
from knnstore.indexing.job import IndexReport
from knnstore.ingestion.job import IngestReport
from knnstore.scoring.result import ScoreReport


def demo_text(ingest: IngestReport, index: IndexReport, score: ScoreReport) -> str:
    """Return the score, a line about the store and the next step."""
    kept = (ingest.bytes + index.bytes) / ingest.rows
    return (
        f"{score_text(score)}\n\n"
        f"store     {ingest.rows:,} keys of {ingest.documents - ingest.heldout_documents:,} documents, "
        f"{kept:.0f} bytes per key with the index; ingest {ingest.tokens_per_second:,.0f} tokens/s\n"
        f"next      knnstore score --store {shown_store(ingest.store)} --text YOUR.txt, "
        "or knnstore ingest --corpus YOUR-FOLDER/"
    )
