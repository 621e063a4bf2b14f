"""Choose the mixture for a text: as given, as stored by ``knnstore tune``, or tuned on some of the documents."""

from dataclasses import dataclass

from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError
from knnstore.mixing.mixture import Mixture
from knnstore.mixing.setting import Setting
from knnstore.progress import Reporter
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.texts import Texts
from knnstore.scoring.tuned_record import load_tuned
from knnstore.suffix_array.build import open_suffixes
from knnstore.wording import command, option


@dataclass(frozen=True, slots=True)
class ChosenMixture:
    """A mixture, its origin as text, and the numbers of documents and tokens on which this run tuned it."""

    mixture: Mixture
    words: str
    documents: int = 0
    tokens: int = 0


def given_choice(options: ScoreOptions, rows: int) -> ChosenMixture:
    """Return the mixture of options that give all of it."""
    assert options.k is not None and options.lambda_ is not None and options.temperature is not None
    cache = (options.cache, options.cache_weight or 0.0, options.cache_temperature or 0.0)
    setting = Setting(min(options.k, rows), options.lambda_, options.temperature, *cache)
    return ChosenMixture(Mixture(setting), "as given")


def stored_choice(
    options: ScoreOptions, store: Datastore, texts: Texts, reporter: Reporter
) -> tuple[Texts, ChosenMixture] | None:
    """Return the store's tuned mixture and the texts that it wasn't tuned on; None if it is missing or not wanted.

    Raises UsageError if ``options.tuned`` requires it but it is missing, or was tuned on all of the texts.
    """
    if options.given or options.tuned is False:
        return None
    record = load_tuned(store)
    if record is None:
        if options.tuned:
            raise UsageError(f"{store.root} has no tuned setting: make one with {command('tune', 'FILE')}")
        return None
    left = texts.without(frozenset(record.documents))
    out = len(texts.names) - len(left.names)
    if not left.names:
        if options.tuned:
            raise UsageError(
                f"{option('tuned', True)}: the setting was tuned on every one of these documents; score others with "
                f"{option('text')}"
            )
        reporter.say("setting   the stored one was tuned on these documents: tuning again, on half of them")
        return None
    if options.cache and options.cache != record.setting.cache:
        if options.tuned:
            stored = record.setting.cache
            remedy = f"the stored setting has a cache of {stored}"
            raise UsageError.about("cache", options.cache, limit=stored, remedy=remedy)
        return None
    if options.adaptive and record.gate is None:
        raise UsageError(
            f"{option('adaptive', True)}: the stored setting has no gate; run {command('tune')} on more text, or "
            f"{option('tuned', False)}"
        )
    mixture = record.mixture.constant if options.adaptive is False else record.mixture
    if mixture.needs_matches and open_suffixes(store) is None:
        reporter.say(
            f"setting   the stored gate needs the exact-match memory, which is missing: run {command('suffixes')}"
        )
        mixture = mixture.constant
    words = f"stored by knnstore tune ({record.tokens:,} tokens of {len(record.documents):,} documents"
    words += f", {out:,} of which are left out here)" if out else ", none of them here)"
    if store.rows != record.rows:
        words += f"; the store had {record.rows:,} keys then, and has {store.rows:,}"
    return left, ChosenMixture(mixture, words)
