"""Ways in which files get damaged, or are made by somebody who means harm: bytes, JSON, tables, what a path is."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

#: Text in place of a JSON value; no JSON library would write most of it.
_RAW = (
    *("null", "true", "-1", "0", "1.5", "NaN", "-Infinity", "1e999", "1e308", '""', "{}", "[]", "[null]"),
    *("9223372036854775808", "-1" + 30 * "0", "1" + 400 * "0", "1" + 5000 * "0"),
    *('"\\ud800"', '"\\u0000"', '"\\u202e\\u0007"', '"../../../etc/passwd"', '"/"', '".."', '"a/b"', f'"{300 * "n"}"'),
    *('"<script>alert(1)</script>"', '"[x](javascript:x)"', '"{0.__class__}%s%n${x}"', '"$\\\\frac{$"', '"os:system"'),
    *('"@x"', '"`index`==0"', '"(((((1"', f'"{200000 * "x"}"', '{"a": {"b": [1, {"c": null}]}}'),
    *(100000 * "[" + 100000 * "]", 3000 * '{"a":' + "1" + 3000 * "}", "[" + 50000 * "0," + "0]", '"depth=((((("'),
)
_TEXTS = ("", "\ud800".encode("utf-8", "surrogatepass"), b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"[", b"{}", b"null")


def bytes_of(content: bytes, source: random.Random) -> bytes:
    """Cut short, or with bytes changed, repeated, dropped or added."""
    data = bytearray(content)
    place, length = source.randrange(len(data) + 1), source.choice((1, 2, 4, 8, 64))
    change = source.randrange(7)
    if change == 0:
        del data[place:]
    elif change == 1:
        del data[place : place + length]
    elif change == 2:
        data[place : place + length] = source.randbytes(length)
    elif change == 3:
        data[place:place] = data[max(place - length, 0) : place]
    elif change == 4:
        data[place : place + length] = source.choice((b"\0", b"\xff", b"\x7f")) * length
    elif change == 5:
        for _ in range(source.randrange(1, 6)):
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    else:
        text = source.choice(_TEXTS)
        data[place:place] = text.encode() if isinstance(text, str) else text
    return bytes(data)


def json_of(content: bytes, source: random.Random) -> bytes:
    """A JSON file with one or two of its values or names replaced, dropped or doubled; or with bytes changed."""
    if source.random() < 0.25:
        return bytes_of(content, source)
    tree = json.loads(content)
    raw: dict[str, str] = {}
    for _ in range(source.choice((1, 1, 2))):
        tree = _changed(tree, source, raw)
    text = json.dumps(tree)
    for mark, value in raw.items():
        text = text.replace(f'"{mark}"', value)
    return text.encode()


def _changed(tree: Any, source: random.Random, raw: dict[str, str]) -> Any:
    mark = f"@raw{len(raw)}@"
    raw[mark] = source.choice(_RAW)
    places = list(_places(tree))
    if not places or source.random() < 0.03:
        return mark
    parent, key = source.choice(places)
    change = source.random()
    if change < 0.75:
        parent[key] = mark
    elif change < 0.9 or isinstance(parent, list):
        del parent[key]
    else:
        parent[source.choice(("run_id", "arm", "__class__", "loss_threshold", "x" * 300, "", "$"))] = parent.pop(key)
    return tree


def _places(tree: Any) -> Any:
    """Every value with what holds it."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(value)


#: Values of columns that no writer of ours writes: what a cell may become, whatever the type of its column.
_CELLS: tuple[Any, ...] = (
    *(None, -1, 0, 2**62, 1.5, float("nan"), float("inf"), True, "", "x", "../..", "<b>", "$\\frac{$", "x" * 100000),
    *([], [1.0], {"a": 1}, b"\xff\xfe", "\0"),
)


def parquet_of(content: bytes, source: random.Random) -> bytes:
    """A Parquet file with a column of another type or name, gone, or without rows; or with bytes changed."""
    if source.random() < 0.4:
        return bytes_of(content, source)
    table = pq.read_table(pa.BufferReader(content))
    position = source.randrange(table.num_columns)
    name, cell = table.column_names[position], source.choice(_CELLS)
    if source.random() < 0.35:
        name = source.choice(
            [column for column in table.column_names if column in ("run_id", "step", "split", "layer", "lr")] or [name]
        )
        position = table.column_names.index(name)
    change = source.randrange(7)
    if change < 3:
        table = table.set_column(position, name, pa.array([cell] * table.num_rows))
    elif change == 3:
        table = table.remove_column(position)
    elif change == 4:
        values = [cell if source.random() < 0.5 else value for value in table[name].to_pylist()]
        try:
            table = table.set_column(position, name, pa.array(values, table[name].type))
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            table = table.set_column(position, name, table[name].dictionary_encode())
    elif change == 5:
        table = source.choice((table.slice(0, 0), pa.concat_tables([table, table]), table.select([])))
    else:
        table = table.rename_columns([source.choice((*"xy", column)) for column in table.column_names])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def lines_of(content: bytes, source: random.Random) -> bytes:
    """A file of JSON lines with one of them changed as JSON, or with bytes changed."""
    lines = content.splitlines(keepends=True)
    position = source.randrange(len(lines))
    lines[position] = json_of(lines[position], source).rstrip(b"\n") + b"\n"
    return b"".join(lines)


def npy_of(content: bytes, source: random.Random) -> bytes:
    """An array file with another header (types, shapes and sizes that it does not hold), or with bytes changed."""
    if source.random() < 0.4:
        return bytes_of(content, source)
    end = content.index(b"\n")
    kind = source.choice(
        ("<f4", ">f4", ">i2", "|O", "<U5", "|S3", "|V8", "<M8[s]", "<c8", "|b1", "<f2", "<u8", "[('a','<f4')]")
    )
    sizes = source.choice(((), (0,), (2, 1, 28, 28), (10**13,), (-1,), (2**62, 2**62), (1, 2), (0, 5)))
    described = kind if kind[0] == "[" else repr(kind)
    order = source.choice((True, False, 7))
    header = f"{{'descr': {described}, 'fortran_order': {order}, 'shape': {sizes}}}"
    return content[:10] + header.encode().ljust(end - 10) + content[end:]


def safetensors_of(content: bytes, source: random.Random) -> bytes:
    """A safetensors file whose header is changed as JSON, its length right again; or with bytes changed."""
    if source.random() < 0.3:
        return bytes_of(content, source)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    state = header.get("__metadata__", {}).get("training_state")
    if state is not None and source.random() < 0.8:
        inner = json_of(state.encode(), source).decode("utf-8", "replace")
        header["__metadata__"]["training_state"] = inner
        text = json.dumps(header).encode()
    else:
        text = json_of(content[8 : 8 + length], source)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def array_of(source: random.Random) -> np.ndarray:
    """An array of some kind and shape."""
    shape = source.choice(((), (0,), (2,), (2, 1, 28, 28), (2, 0), (3, 28, 28), (2, 784)))
    kind = source.choice(("f4", ">f8", "f2", "i1", "u2", "u8", "c8", "?", "U3", "S2", "M8[s]", "O"))
    return np.zeros(shape, dtype=kind)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("x")


#: What may be where a file should be.
PLACES: tuple[Callable[[Path], object], ...] = (
    _folder,
    lambda path: path.symlink_to("nowhere"),
    lambda path: path.symlink_to(path.name),
    os.mkfifo,
    lambda path: path.write_bytes(b""),
    lambda path: path.symlink_to("/dev/null"),
)
