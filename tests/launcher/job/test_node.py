import asyncio

from hunyuan_train.launcher.job.node import MAX_LINE_BYTES, read_line


async def lines_of(written: bytes) -> list[bytes]:
    stream = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    stream.feed_data(written)
    stream.feed_eof()
    lines = []
    while line := await read_line(stream):
        lines.append(line)
    return lines


def test_a_line_without_end_is_left_out_and_ends_nothing():
    too_long = b"x" * (2 * MAX_LINE_BYTES + 1)
    lines = asyncio.run(lines_of(b"before\n" + too_long + b"\nbehind\n"))
    assert lines[0] == b"before\n"
    assert lines[-1] == b"behind\n"
    assert lines[1] == b"(a line of more than 16 MiB is left out)\n"
