"""What a compiled SPMD program sends between devices, read from its HLO text.

XLA's own cost analysis counts a loop's body once and knows no mesh, so the text is walked from its
entry: loops multiply, and the devices of each group tell which mesh axes an operation crosses.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from bagpiper_jax.errors import UserError

# A TPU program is read right after this pass (libtpu 0.0.42). Before it, a reduce-scatter is an
# all-reduce with a slice behind it; the pass fuses the two into computations named _SCATTER. What
# goes between slices has become sends to the data center network by then. In the final text,
# asynchronous operations are cut into chains of fusions, each of which repeats the operation.
# An all-reduce that is left is one that runs: where a group is a whole slice of 16 devices or more,
# libtpu often sums all and slices in place of a reduce-scatter, and on a three-dimensional torus it
# sums parts among zeros in place of an all-gather.
_PASS = "tpu-all-reduce-scatter-fusion"
_SCATTER = "all-reduce-scatter"

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# sends between slices; endpoint 200003 is device 3 of the second slice
_TRANSFERS = {kind.replace("-", "_").upper(): kind for kind in _KINDS[:4]}
_TRANSFERS["ONE_TO_ONE"] = "collective-permute"
_SLICE = 100_000

_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .* )?\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.+)")
_CALLEES = re.compile(r"(?:calls|to_apply|computations?)=(\{[^}]*\}|%[\w.-]+)")
_NAME = re.compile(r"%([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Operations of one kind and one size along the same axes.

    Attributes:
      kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
      axes: mesh axes that vary inside a group of devices, in the order of the mesh.
      group: devices of a group; 2 for a collective-permute, whose devices talk in pairs.
      bytes_per_device: of the result on one device, each time.
      count: how often a step executes it.
      across_slices: it goes over the data center network.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    bytes_per_device: int
    count: int = 1
    across_slices: bool = False

    @property
    def sent(self) -> float:
        """Bytes that each device sends in all executions, by ring algorithms."""
        others = (self.group - 1) / self.group
        factor = {
            "all-gather": others,
            "all-to-all": others,
            "all-reduce": 2 * others,
            "reduce-scatter": self.group - 1,  # the input is `group` times the result
            "collective-permute": 1,
        }[self.kind]
        return factor * self.bytes_per_device * self.count


def collectives(
    hlo_text: str, mesh_shape: Mapping[str, int], *, num_slices: int = 1
) -> list[Collective]:
    """Collectives of a compiled program, largest traffic first.

    Args:
      hlo_text: from `compile_with_dump`, or the final text of a CPU or GPU program.
      mesh_shape: axis → size. The program's devices lie on the mesh row-major.
      num_slices: TPU slices; each is a contiguous block of the devices.

    Raises:
      UserError: the mesh has another number of devices than the program, or the slices do not
        divide it.
      ValueError: the text is no HLO, or a loop with collectives runs an unknown number of times.
    """
    devices = math.prod(mesh_shape.values())
    if devices % num_slices:
        raise UserError(f"{num_slices} slices do not divide the mesh of {devices} devices")
    found = re.search(r"^HloModule.*\bnum_partitions=(\d+)", hlo_text)
    partitions = int(found[1]) if found else devices
    # where slices were taken apart, the program is that of one slice
    if partitions * num_slices != devices and partitions != devices:
        raise UserError(f"the program is for {partitions} devices, the mesh has {devices}")
    program, entry = _parse(hlo_text)
    layout = _Layout(dict(mesh_shape), partitions, devices // num_slices)
    totals = _total(_walk(program, entry, layout))
    found = [dataclasses.replace(op, count=count) for op, count in totals.items()]
    return sorted(found, key=lambda op: -op.sent)


def bytes_by_axis(ops: Iterable[Collective]) -> dict[tuple[str, ...], float]:
    """Axes → bytes that each device sends along them in a step."""
    totals = collections.defaultdict(float)
    for op in ops:
        totals[op.axes] += op.sent
    return dict(totals)


def compile_with_dump(lowered, compiler_options: Mapping | None = None):
    """Compiles, and keeps the text of the program in which collectives are still whole.

    Args:
      lowered: `jax.jit(f).lower(...)`.
      compiler_options: further options of `lowered.compile`.

    Returns:
      (compiled, HLO text): for a TPU the text after `_PASS`, else the final one.

    Raises:
      UserError: the compiler for TPU wrote no such text.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": f"^{_PASS}$"}
        compiled = lowered.compile(compiler_options={**(compiler_options or {}), **dump})
        texts = sorted(Path(folder).glob(f"*.after_{_PASS}.*.txt"))
        if texts:
            return compiled, texts[-1].read_text()
    shardings = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))
    if any(device.platform == "tpu" for s in shardings[:1] for device in s.device_set):
        raise UserError(
            f"libtpu has not shown the program after {_PASS}: install libtpu 0.0.42, and unset "
            "JAX_COMPILATION_CACHE_DIR, for what comes from the cache passes by no compiler"
        )
    return compiled, compiled.as_text()


class _Layout(NamedTuple):
    mesh: dict[str, int]
    partitions: int  # devices of the program
    slice_size: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    root: bool
    type: str
    opcode: str
    operands: tuple[str, ...]  # names; for a constant its literal
    attributes: str

    def find(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found and found[1]

    def callees(self) -> list[str]:
        return _NAME.findall(" ".join(_CALLEES.findall(self.attributes)))


def _closing(text: str) -> int:
    """Index behind the parenthesis that closes the first one."""
    depth = 0
    for paren in re.finditer(r"[()]", text):
        depth += 1 if paren[0] == "(" else -1
        if not depth:
            return paren.end()
    raise ValueError(f"this is no HLO: {text[:80]}")


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Computation → instruction → what it is, and the name of the entry."""
    program, entry, current = {}, None, {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = program.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif found := _LINE.match(line):
            rest = found[3]
            stop = _closing(rest) if rest[0] == "(" else rest.index(" ")
            type_, call = rest[:stop], rest[stop:].lstrip()
            opcode = call[: call.index("(")]
            stop = _closing(call)
            arguments = call[len(opcode) + 1 : stop - 1]
            operands = tuple(_NAME.findall(arguments)) or (arguments,)
            current[found[2]] = _Instruction(bool(found[1]), type_, opcode, operands, call[stop:])
    if entry is None:
        raise ValueError("the text has no entry computation: it is no HLO module")
    return program, entry


def _total(ops: Iterable[tuple[Collective, int]]) -> collections.Counter:
    totals = collections.Counter()
    for op, times in ops:
        totals[op] += times
    return totals


def _walk(program, name, layout) -> Iterator[tuple[Collective, int]]:
    """Collectives of a computation and of what it calls, each with its number of executions."""
    computation = program[name]
    for op in computation.values():
        if op.opcode == "while":
            body = _total(_walk(program, op.find(r"body=%([\w.-]+)"), layout))
            if body:  # other loops may run as long as they like
                trips = _trips(program, computation, op)
                yield from ((inner, trips * times) for inner, times in body.items())
        elif op.opcode == "conditional":
            branches = [_total(_walk(program, each, layout)) for each in op.callees()]
            cost = lambda ops: sum(inner.sent * times for inner, times in ops.items())  # noqa: E731
            yield from max(branches, key=cost).items()
        elif op.opcode in ("fusion", "call", "async-start", "custom-call"):
            for callee in op.callees():
                yield from _walk(program, callee, layout)
        elif (found := _collective(op, computation, layout)) is not None:
            if found.kind == "all-reduce" and name.startswith(_SCATTER):
                size = found.bytes_per_device // found.group
                found = dataclasses.replace(found, kind="reduce-scatter", bytes_per_device=size)
            yield found, 1


def _collective(op, computation, layout) -> Collective | None:
    transfer = op.opcode == "send" and op.find(r'_xla_megascale_transfer_type="(\w+)"')
    kind = _TRANSFERS[transfer] if transfer else op.opcode.removesuffix("-start")
    if kind not in _KINDS:
        return None
    mesh = layout.mesh
    groups = _endpoints(op, layout.slice_size) if transfer else _groups(op, layout.partitions)
    group = max(map(len, groups))
    axes = set()
    for devices in groups:
        places = np.array(np.unravel_index(devices, tuple(mesh.values())))
        axes |= set(np.flatnonzero((places != places[:, :1]).any(axis=1)))
    if not axes:  # each device alone
        return None
    # results of asynchronous operations hold more than the result: start from what goes in
    size = sum(_bytes(computation[name].type) for name in op.operands)
    size = {"all-gather": size * group, "reduce-scatter": size // group}.get(kind, size)
    names = tuple(name for i, name in enumerate(mesh) if i in axes)
    return Collective(kind, names, group, size, across_slices=bool(transfer))


def _bytes(type_: str) -> int:
    """Size of a value, of all parts if it is a tuple."""
    total = 0
    for name, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", type_):
        bits = {"pred": "8", "token": "0"}.get(name) or re.search(r"\d+", name)[0]
        total += math.prod(int(d) for d in dims.split(",") if d) * int(bits)
    return total // 8


def _ints(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _lists(text: str) -> list[list[int]]:
    """`{0,1},{2,3}` → [[0, 1], [2, 3]]."""
    return [_ints(part) for part in re.findall(r"\{([^{}]+)\}", text)]


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)` → the numbers 0…7 as a [4, 2] array, transposed."""
    dims, _, order = text.partition("T")
    ids = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return ids.transpose(_ints(order)) if order else ids


def _groups(op, devices: int) -> list[list[int]]:
    """Devices that talk to each other, from the four ways in which HLO writes them."""
    if pairs := op.find(r"source_target_pairs=\{(.*?\})\}"):
        return _lists(pairs)
    if mesh := op.find(r"replica_groups=(mesh\[[^{]*\{[^}]*\})"):
        return _mesh_groups(mesh)
    if iota := op.find(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)"):
        shape, ids = iota.split("<=")
        return _iota(ids).reshape(_ints(shape)).tolist()
    lists = op.find(r"replica_groups=\{(.*?\})\}")
    return _lists(lists) if lists else [list(range(devices))]


def _mesh_groups(text: str) -> list[list[int]]:
    """`mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a':(2)2}`: along the inner half of a."""
    axes, ids, along = re.match(r"mesh\[(.*?)\](?:, device_ids=\((.*)\))? \{(.*)\}", text).groups()
    sizes = {name: int(size) for name, size in re.findall(r"'(.*?)'=(\d+)", axes)}
    places = np.arange(math.prod(sizes.values()))
    ids = places if not ids else _iota(ids).ravel() if "[" in ids else np.array(_ints(ids))
    first = places.copy()  # of its group
    for name, before, size in re.findall(r"'(.*?)'(?::\((\d+)\)(\d+))?", along):
        inner = list(sizes.values())[list(sizes).index(name) + 1 :]
        size, before = int(size or sizes[name]), int(before or 1)
        stride = math.prod(inner) * sizes[name] // (before * size)
        first -= places // stride % size * stride
    return [ids[first == place].tolist() for place in np.unique(first)]


def _endpoints(op, slice_size: int) -> list[list[int]]:
    """Devices that talk to each other across slices."""
    target = op.find(r'_xla_megascale_target=("[^"]*"|\{.*?\}\})')
    if target.startswith('"'):  # "{1,2}x{0:15}": slices, and the devices of each
        slices = _ints(target.partition("x")[0])
        return [[(s - 1) * slice_size for s in slices]]
    return [
        [(place // _SLICE - 1) * slice_size + place % _SLICE for place in group]
        for group in _lists(target)
    ]


def _trips(program, computation, loop) -> int:
    """How often a loop runs: a counter goes in equal steps from one constant to another."""
    if known := loop.find(r'known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition, body = (program[loop.find(rf"{part}=%([\w.-]+)")] for part in ("condition", "body"))
    test, end = _root(condition), _root(body)
    for counter, bound in (test.operands, test.operands[::-1]) if len(test.operands) == 2 else ():
        index, bound = condition[counter].find(r"index=(\d+)"), _literal(condition, bound)
        start = computation[loop.operands[0]]
        if test.opcode != "compare" or index is None or bound is None:
            continue
        if start.opcode != "tuple" or end.opcode != "tuple":
            continue
        start = _literal(computation, start.operands[int(index)])
        advance = body[end.operands[int(index)]]
        steps = [_literal(body, name) for name in advance.operands]
        step = next((abs(n) for n in steps if n), None)
        if advance.opcode in ("add", "subtract") and start is not None and step:
            last = test.find(r"direction=(\w+)") in ("LE", "GE")  # the bound itself counts
            return -(-(abs(bound - start) + last) // step)
    raise ValueError(f"cannot tell how often this loop with collectives runs: {loop.attributes}")


def _root(computation) -> _Instruction:
    return next(op for op in computation.values() if op.root)


def _literal(computation, name: str) -> int | None:
    """The integer that a name stands for."""
    op = computation[name]
    while op.opcode in ("copy", "convert", "bitcast"):
        op = computation[op.operands[0]]
    is_number = op.opcode == "constant" and re.fullmatch(r"-?\d+", op.operands[0])
    return int(op.operands[0]) if is_number else None
