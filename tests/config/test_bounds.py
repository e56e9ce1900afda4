"""Every setting refuses what it does not take in one paragraph that names it, and at once."""

import time
from contextlib import suppress
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hunyuan_train.config.declare import LARGEST
from hunyuan_train.config.load import build_config, load_config
from hunyuan_train.config.planned_machines import PlannedMachines, parse_machines
from hunyuan_train.config.settings import FIELDS
from hunyuan_train.config.values import alternatives, describe_type
from hunyuan_train.errors import ConfigError
from hunyuan_train.planner.estimate import estimate_run
from hunyuan_train.planner.machine import Hardware
from tests.config.resolved import EIGHT_GPUS, resolve_flags

NUMBERS = [name for name, field in FIELDS.items() if {int, float} & {*alternatives(field.type)}]
NUMERIC = [FIELDS[name] for name in NUMBERS]
WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**20, max_value=10**400),
    st.just(16**6000),  # has more digits than Python writes
    st.floats(),
    st.dates(),
    st.binary(max_size=20),
    st.text(max_size=30),
    st.sampled_from(
        ["9" * 6000, "1e400", "-1e400", "x" * 300, "x" * 60_000, "a\x1b[31m", "\udcff"]
    ),
    st.lists(st.integers() | st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def refusal_of(name, value):
    """What a value is refused with; None where it is taken."""
    try:
        build_config({name: value})
    except ConfigError as error:
        return str(error)
    return None


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(sorted(FIELDS)), value=WRONG)
def test_any_value_is_taken_or_refused_in_one_line_that_names_the_setting(name, value):
    refused = refusal_of(name, value)
    if refused is not None:
        assert name in refused
        assert refused.isprintable()
        assert len(refused) < 900  # the longest are lists of what is allowed


@pytest.mark.parametrize("field", NUMERIC, ids=lambda field: field.name)
def test_every_number_has_bounds_and_is_refused_beyond_them(field):
    low, high = field.metadata["low"], field.metadata["high"]
    assert -LARGEST <= low < high <= max(LARGEST, 2**32)
    for value in (low - 1, high * 2 + 1, 10**23, 10**30, -(10**30), "1e30"):
        assert f"{field.name} is " in refusal_of(field.name, value)
    for value in ("many", "nan", "inf", "1e400", "9" * 5000, [1], {"a": 1}, "1,5"):
        message = f"{field.name} is .*; it takes {describe_type(field.type)}"
        with pytest.raises(ConfigError, match=message):
            build_config({field.name: value})


@pytest.mark.parametrize("field", NUMERIC, ids=lambda field: field.name)
@pytest.mark.parametrize("end", ["low", "high"])
def test_the_ends_of_the_bounds_are_planned_at_once(field, end):
    began = time.process_time()
    with suppress(ConfigError):
        run = resolve_flags(
            ["--recipe", "tiny", f"--{field.name}={field.metadata[end]}"], EIGHT_GPUS
        )
        _ = estimate_run(run, Hardware()).fits
    assert time.process_time() - began < 5  # milliseconds; counting to the end takes for ever


def test_a_whole_number_keeps_all_its_digits():
    assert load_config(["--seed", "4294967295"]).train.seed == 4294967295
    message = r"max_steps is 100000000000000000001; set it to a number from -1 to 1000000000"
    with pytest.raises(ConfigError, match=message):
        load_config(["--max_steps", "100000000000000000001"])


@pytest.mark.parametrize("name", ["eval_steps", "save_steps", "logging_steps", "warmup_steps"])
def test_steps_below_one_are_a_share_and_others_are_whole(name):
    assert refusal_of(name, "0.25") is None
    assert refusal_of(name, "7") is None
    assert f"{name} is 1.5; set it to a whole number of steps, or to a share" in refusal_of(
        name, 1.5
    )


@pytest.mark.parametrize("field", fields(PlannedMachines), ids=lambda field: field.name)
@pytest.mark.parametrize("value", ["0", "-1", "1e30", "nan", "9" * 5000, "many", "\n"])
def test_machines_that_nobody_has_are_refused_by_the_flags_name(field, value):
    takes_none = field.name in ("host_memory", "disk") and value == "0"  # no limit
    if takes_none or (field.name == "gpu" and value != "\n"):
        parse_machines({field.name: value})  # a GPU is looked up by its name later
        return
    with pytest.raises(ConfigError, match=f"^{field.name} is "):
        parse_machines({field.name: value})


@pytest.mark.parametrize(
    "name", [name for name, field in FIELDS.items() if "path" in field.metadata["form"]]
)
def test_a_home_folder_is_found_in_every_path(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config([f"--{name}=~/there"])
    sections = [getattr(config, field.name) for field in fields(config)]
    [value] = [getattr(one, name) for one in sections if hasattr(one, name)]
    assert value == f"{tmp_path}/there"


def test_each_file_of_a_list_is_found_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    data = load_config(["--train_data_file", "~/a.jsonl:2,b.jsonl,~/c.jsonl"]).data
    assert data.train_data_file == f"{tmp_path}/a.jsonl:2,b.jsonl,{tmp_path}/c.jsonl"


def test_a_list_of_many_files_may_be_longer_than_any_files_name():
    files = ",".join(f"part-{number:03}.jsonl" for number in range(60))
    assert load_config(["--train_data_file", files]).data.train_data_file == files
