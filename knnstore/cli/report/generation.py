"""A generated text and the contribution of the store to each token."""

from typing import Any

from knnstore.cli.report.attribution import attribution_json, attribution_text
from knnstore.cli.report.words import marked, quoted
from knnstore.generation import Generation
from knnstore.lm.asked import words

_PASSAGE = 48
_TOKEN = 16


def explanation(generation: Generation) -> str:
    """Return one line per token (share of the store, probabilities, cited passage), then the table of documents."""
    result = generation.attribution
    numbers = {str(share.document): number for number, share in enumerate(result.documents, 1)}
    last = 0
    lines = [f"{'store':>6}  {'LM':>8}  {'mixture':>8}  {'token':{_TOKEN}}  cited"]
    for token in generation.tokens:
        passage = generation.cited(token)
        cited = ""
        if passage is not None:
            place = marked(passage.before, passage.token)[-_PASSAGE:].removeprefix("… ")
            number = numbers[str(passage.document)]
            last = max(last, number)
            cited = f"[{number}] … {place}"
        lines.append(
            f"{100 * token.store_share:>4.0f} %  {100 * token.p_lm:>6.2f} %  {100 * token.p:>6.2f} %  "
            f"{quoted(token.text or '…'):{_TOKEN}}  {cited}"
        )
    return "\n".join([*lines, "", attribution_text(result, last)])


def asked_line(generation: Generation) -> str:
    """Return what the model's generation_config.json requests and whether it was applied; empty if nothing."""
    asked, rest = generation.asked, generation.not_applicable
    if not asked and not rest:
        return ""
    if not generation.generation_config:
        advice = "; --generation-config applies it" if asked else ""
        return f"generation_config.json requests {words(asked | rest)}: not applied{advice}"
    parts = [f"applied {words(asked)}"] if asked else []
    parts += [f"can't apply {words(rest)}, because text is generated token by token"] if rest else []
    return f"generation_config.json: {'; '.join(parts)}"


def generation_json(generation: Generation) -> dict[str, Any]:
    """Return the object that ``--json`` prints."""
    setting = generation.setting
    return {
        "prompt": generation.prompt,
        "text": generation.text,
        "k": setting.k,
        "lambda": setting.lambda_,
        "temperature": setting.temperature,
        "cache": setting.cache,
        "cache_weight": setting.cache_weight,
        "cache_temperature": setting.cache_temperature,
        "adaptive": generation.gated,
        "generation_config": {
            "asked": generation.asked,
            "applied": generation.generation_config,
            "not_applicable": generation.not_applicable,
        },
        "tokens": [_token(generation, token) for token in generation.tokens],
        "attribution": attribution_json(generation.attribution),
    }


def _token(generation: Generation, token: Any) -> dict[str, Any]:
    passage = generation.cited(token)
    return {
        "token_id": token.token_id,
        "text": token.text,
        "p": token.p,
        "p_lm": token.p_lm,
        "p_store": token.p_store,
        "store_share": token.store_share,
        "cited": passage
        and {
            "document": str(passage.document),
            "row": passage.row,
            "passage": passage.before,
            "share": token.row_share,
        },
    }
