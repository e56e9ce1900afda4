"""The page that says what loads what: written by its script, from outcomes that were kept."""

from tests.clients.artefacts import ARTEFACTS
from tests.clients.capabilities import KINDS, PAGE, make_page, read_kept
from tests.clients.checked_servers import count_verdicts, describe_questions
from tests.clients.commands import find_error, tidy
from tests.clients.outcomes import CLIENTS


def test_the_page_is_what_was_kept_of_every_pair() -> None:
    kept = read_kept()
    assert kept.keys() == {(artefact, client) for artefact in ARTEFACTS for client in CLIENTS}
    assert all(one.kind in KINDS and one.text for one in kept.values())
    assert not [one for one in kept.values() if one.kind == "fails"]
    assert PAGE.read_text(encoding="utf-8") == make_page(kept)


def test_the_error_that_counts_is_found() -> None:
    printed = (
        "ValueError: no kernel for FP8\nRuntimeError: Engine core initialization failed. See above"
    )
    assert find_error(printed) == "ValueError: no kernel for FP8"
    assert find_error("a word\nerror: metadata-generation-failed\n") == (
        "error: metadata-generation-failed"
    )
    assert tidy("/tmp/x/served/config.json |\n b/c") == "config.json / b/c"


def test_verdicts_are_counted_by_name() -> None:
    answers = [
        {"question": name, "mode": name, "is_streamed": is_streamed, "findings": [one]}
        for name, is_streamed, one in (
            ("slow", False, {"what": "prompt", "verdict": "right"}),
            ("slow", True, {"what": "prompt", "verdict": "wrong"}),
            ("fast", False, {"what": "prompt", "verdict": "unknown"}),
        )
    ]
    assert count_verdicts({"answers": answers}, "prompt") == (
        "prompt right in 1 of 2 (not shown in 1) (wrong: slow, streamed)"
    )
    assert describe_questions(answers, 4096) == (
        "3 questions, whole and streamed, both modes, one of 4,096 tokens"
    )
    assert describe_questions(answers[2:], 0) == "1 questions, fast mode"
