"""What `data check` and `data show` say of pairs."""

from hunyuan_train.cli import main
from tests.conftest import REPOSITORY

TOKENIZER = str(REPOSITORY / "data" / "tokenizer_tiny")


def pairs(longer):
    return [
        {"prompt": f"Q{number}?", "mode": "fast", "chosen": "yes", "rejected": "no, " * 9 + "no"}
        | ({} if number >= longer else {"chosen": "yes, " * 9 + "yes", "rejected": "no"})
        for number in range(10)
    ]


def test_a_side_that_length_tells_from_the_other_is_named(write_records, capsys):
    for longer, said in ((0, "longer rejected answer"), (10, "longer chosen answer"), (5, None)):
        path = write_records(pairs(longer))
        assert not main(
            ["data", "check", str(path), "--objective", "dpo", "--tokenizer", TOKENIZER]
        )
        printed = " ".join(capsys.readouterr().out.split())
        assert (said or "longer") in printed or said is None
        assert ("length alone tells the sides apart" in printed) == (said is not None)


def test_a_rare_label_is_named_with_the_weight_that_balances_it(write_records, capsys):
    for num_good, said in ((8, "--undesirable_weight 4"), (2, "--desirable_weight 4"), (5, "")):
        path = write_records(
            {"prompt": f"Q{number}?", "mode": "fast", "completion": "a", "label": number < num_good}
            for number in range(10)
        )
        assert not main(
            ["data", "check", str(path), "--objective", "kto", "--tokenizer", TOKENIZER]
        )
        printed = " ".join(capsys.readouterr().out.split())
        assert said in printed
        assert ("labelled" in printed) == bool(said)


def test_answers_of_one_label_teach_nothing(write_records, capsys):
    path = write_records([{"prompt": "Q", "mode": "fast", "completion": "a", "label": True}])
    assert not main(["data", "check", str(path), "--objective", "kto", "--tokenizer", TOKENIZER])
    assert "no answer is labelled bad: kto learns from both" in capsys.readouterr().out


def test_both_sides_are_shown(write_records, capsys):
    path = write_records(pairs(0))
    assert not main(["data", "show", str(path), "--objective", "dpo", "--tokenizer", TOKENIZER])
    printed = capsys.readouterr().out
    assert printed.index("chosen") < printed.index("yes") < printed.index("rejected")
    assert "no, no" in printed


def test_without_the_objective_pairs_are_no_dialogues(write_records, capsys):
    path = write_records(pairs(0))
    assert main(["data", "check", str(path)]) == 1
    assert "--objective dpo" in " ".join(capsys.readouterr().out.split())
