from hunyuan_train.data.findings import Finding, FindingLog, list_fields


def _note(field: str, kind: str = "unused_field") -> Finding:
    return Finding("f", 1, kind, "note", field, "not read", "remove it")


def test_fields_are_counted_by_name_whichever_message_they_are_in():
    log = FindingLog()
    log.add(
        [_note("messages[0].a, messages[12].a"), _note("[3].messages[1].a, b"), _note("c", "x")]
    )
    assert log.noted_fields() == {"unused_field": {"messages[].a": 3, "b": 1}, "x": {"c": 1}}


def test_a_place_that_is_no_field_is_not_named():
    log = FindingLog()
    log.add([_note(""), _note("messages"), _note("messages[2]")])
    assert log.noted_fields() == {}


def test_names_without_end_are_counted_in_bounded_memory():
    log = FindingLog()
    log.add(_note(f"key{number}") for number in range(5000))
    [counts] = log.noted_fields().values()
    assert len(counts) == 1000
    assert list_fields(counts).endswith("key7 1 and 992 more")
