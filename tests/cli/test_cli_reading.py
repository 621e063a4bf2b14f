"""generate, neighbours and attribute, as they are typed."""

import json

import pytest
from click.testing import CliRunner

from knnstore.cli import main

SETTING = ["--k", "16", "--lambda", "0.6", "--temperature", "10"]


@pytest.fixture
def here(built, monkeypatch):
    monkeypatch.chdir(built[0])


def said(*arguments, **options):
    done = CliRunner().invoke(main, arguments, **options)
    assert done.exit_code == 0, done.output
    return done


def test_generate_prints_the_prompt_and_what_follows_it_and_says_how_it_mixed(here):
    done = said("generate", "--prompt", "The assignment", "--max-new-tokens", "4", *SETTING)
    assert done.stdout.startswith("The assignment")
    assert len(done.stdout) > len("The assignment\n")
    mixture, search = done.stderr.splitlines()
    assert mixture == "mixture   k 16, λ 0.6, temperature 10; as given"
    assert search.startswith("search    exact distances of all keys in ")
    assert "λ as published" in said("generate", "--max-new-tokens", "1").stderr


def test_explain_has_a_line_a_token_and_a_table_that_adds_up(here):
    arguments = ["generate", "--prompt", "The assignment", "--max-new-tokens", "6", *SETTING, "--quiet"]
    text = said(*arguments, "--explain").stdout
    assert "\x1b" not in text
    tokens, table = text.split("  cited\n")[1].split("source\n")
    assert len([line for line in tokens.splitlines() if "%" in line]) == 6
    assert "books/" in table
    result = json.loads(said(*arguments, "--json").stdout)
    assert text.startswith(f"The assignment{result['text']}")
    assert len(result["tokens"]) == result["attribution"]["tokens"] == 6
    shares = [document["share"] for document in result["attribution"]["documents"]]
    assert sum(shares) + result["attribution"]["lm"] == pytest.approx(1)
    cited = [token["cited"] for token in result["tokens"] if token["cited"]]
    assert all(citation["document"].startswith("books/") for citation in cited)


def test_colours_show_on_a_terminal_alone_and_not_where_they_are_unwanted(here):
    arguments = ["generate", "--prompt", "The", "--max-new-tokens", "6", *SETTING, "--explain"]
    assert "\x1b[32m" in said(*arguments, color=True).stdout
    assert "\x1b" not in said(*arguments, color=True, env={"NO_COLOR": "1"}).stdout
    words = said("neighbours", "assignment statements", "--k", "2", color=True).stdout
    assert "\x1b[33m\x1b[1mstatement" in words.lower() or "\x1b[33m\x1b[1massignment" in words.lower()


def test_neighbours_are_shown_with_their_source_and_read_from_stdin(here):
    typed = said("neighbours", "The standard type hierarchy", "--k", "3").stdout
    assert typed == said("neighbours", "-", "--k", "3", input="The standard type hierarchy").stdout
    assert typed.count("books/") == 3
    assert typed.count("▸") == 3
    result = json.loads(said("neighbours", "The standard type hierarchy", "--k", "3", "--json").stdout)
    assert len(result["neighbours"]) == 3
    assert set(result["neighbours"][0]) == {"distance", "document", "row", "context", "token", "token_id", "after"}


def test_attribute_names_the_documents_of_a_file_and_of_what_was_held_out(here):
    done = said("attribute", "--text", "books/types.txt", *SETTING, "--quiet")
    assert "[1] books/types.txt" in done.stdout
    result = json.loads(said("attribute", *SETTING, "--json", "--quiet").stdout)
    assert sum(document["tokens"] for document in result["documents"]) == pytest.approx(
        result["store"] * result["tokens"]
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["generate", "--lambda", "1"], "lambda_ is 1"),
        (["generate", "--top-p", "2"], "top-p 2"),
        (["generate", "--store", "nonesuch"], "no store at nonesuch"),
        (["neighbours", "text", "--nprobe", "0"], "nprobe is 0"),
        (["neighbours"], "Missing argument"),
        (["attribute", "stray"], "unexpected arguments"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(here, arguments, told):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
