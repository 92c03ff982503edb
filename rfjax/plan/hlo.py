"""Counts the operations, bytes and exchanges in one execution of a compiled program, from its HLO text.

The compiler's own cost analysis counts a loop's body once; this module counts the body as often as the loop runs it.
No JAX here.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rfjax.errors import RfjaxError
from rfjax.plan.hlo_groups import first_group
from rfjax.plan.roofline import PASSES, Collective

_TYPES = {1: "pred s8 u8", 2: "s16 u16 f16 bf16", 4: "s32 u32 f32", 8: "s64 u64 f64 c64", 16: "c128"}
_BYTES = {dtype: size for size, dtypes in _TYPES.items() for dtype in dtypes.split()}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
# Instructions that move no bytes of memory themselves.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "partition-id", "replica-id"}
_FREE |= {"while", "conditional", "call", "after-all", "opt-barrier"}


@dataclass(frozen=True)
class Array:
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return _BYTES.get(self.dtype, 0) * math.prod(self.shape)


@dataclass(frozen=True)
class Instruction:
    name: str
    outputs: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    arguments: str  # the text between the parentheses
    root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.outputs)

    @property
    def called(self) -> list[str]:
        return _CALLED.findall(self.attributes)

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=%?([\w.\->]+|\{{[^}}]*\}})", self.attributes)
        return found[1].strip("{}") if found else None


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Program:
    computations: dict[str, Computation]
    entry: str


@dataclass(frozen=True)
class Counts:
    """Counts of one execution of a program on one device."""

    flops: int  # operations of matrix products
    hbm_bytes: int  # operands and results of every kernel: an upper bound, as if caches kept nothing
    collectives: tuple[Collective, ...]
    unknown_loops: int  # loops whose trip count cannot be read; their bodies count once
    repeated_flops: int = 0  # part of `flops` that the compiler chose to compute a second time
    kernel_flops: int = 0  # part of `flops` in Pallas kernels, computed by a formula, padding included
    unknown_kernels: tuple[str, ...] = ()  # names of Pallas kernels without a formula; `flops` leaves them out

    @property
    def largest_all_gather(self) -> int:
        """The bytes of the largest array that an all-gather produces."""
        return max((c.bytes for c in self.collectives if c.kind == "all-gather"), default=0)


def _balanced(text: str) -> int:
    """Returns the index just after the parenthesis that matches the first one in `text`."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index + 1
    raise RfjaxError(f"the compiled program's text has a parenthesis that is not closed: {text[:80]!r}")


def _instruction(root, name, rest) -> Instruction | None:
    cut = _balanced(rest) if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:cut], rest[cut:].lstrip()
    opcode = re.match(r"([\w\-]+)\(", rest)
    if not opcode:
        return None
    rest = rest[len(opcode[1]) :]
    end = _balanced(rest)
    arguments = rest[1 : end - 1]
    outputs = tuple(Array(dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in _ARRAY.findall(kind))
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, outputs, opcode[1], operands, rest[end:], arguments, bool(root))


def _whole_lines(text: str) -> Iterator[str]:
    """Yields the text's lines. An instruction of several lines, such as a kernel with metadata, becomes one line."""
    whole, inside = "", False
    for line in text.splitlines():
        if inside and line and not line.startswith(" ") and line != "}":
            whole += line
            continue
        yield whole
        whole, inside = line, line != "}" and (inside or bool(_HEADER.match(line)))
    yield whole


def parse(text: str) -> Program:
    """Parses an HLO module's text into computations. Raises `RfjaxError` if it has no entry computation."""
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in _whole_lines(text):
        if not line.startswith(" "):
            header = _HEADER.match(line)
            current = computations.setdefault(header[2], {}) if header else None
            entry = header[2] if header and header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            if made := _instruction(*found.groups()):
                current[made.name] = made
    if entry is None:
        raise RfjaxError("the compiled program's text has no entry computation; its format is not known")
    return Program(computations, entry)


def trip_count(program: Program, loop: Instruction) -> int | None:
    """Returns how often a while loop runs, by the compiler's note or else by the only bound in its condition; None if
    neither tells."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if noted:
        return int(noted[1])
    condition = program.computations.get(loop.attribute("condition") or "", {})
    inner = [c for i in condition.values() for name in i.called for c in program.computations.get(name, {}).values()]
    bounds = [
        int(i.arguments)
        for i in (*condition.values(), *inner)
        if i.opcode == "constant" and i.outputs and not i.outputs[0].shape and re.fullmatch(r"\d+", i.arguments)
    ]
    return bounds[0] if len(bounds) == 1 else None


def _dot_flops(instruction, computation):
    left = computation[instruction.operands[0]].outputs[0].shape
    contracted = [int(d) for d in (instruction.attribute("lhs_contracting_dims") or "").split(",") if d]
    return 2 * math.prod(instruction.outputs[0].shape) * math.prod(left[d] for d in contracted)


@functools.cache
def _positions(size, outputs, kernel, stride, low, left_dilation, right_dilation):
    """Counts, along one axis of a convolution, the pairs (output position, kernel position) that read an input element:
    neither padding nor a hole between dilated elements."""
    return sum(
        (place := o * stride + k * right_dilation - low) >= 0
        and place % left_dilation == 0
        and place // left_dilation < size
        for o in range(outputs)
        for k in range(kernel)
    )


def _window(attributes, name, count, default):
    found = re.search(rf"window=\{{[^}}]*\b{name}=([\w\-]+)", attributes)
    return [int(part.split("_")[0]) for part in found[1].split("x")] if found else [default] * count


def _convolution_flops(instruction, computation):
    """Counts a convolution's operations on input elements; those on padding do not count. The TPU compiler writes a
    matrix product as a convolution, and its batch axes as spatial axes where most operations are on padding."""
    left, right = (computation[name].outputs[0].shape for name in instruction.operands[:2])
    out = instruction.outputs[0].shape
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    left_labels, right_labels, out_labels = labels.groups()
    spatial = sum(label.isdigit() for label in left_labels)
    fields = (("size", 1), ("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))  # with their defaults
    windows = [_window(instruction.attributes, name, spatial, default) for name, default in fields]
    total = 2 * out[out_labels.index("b")] * out[out_labels.index("f")] * right[right_labels.index("i")]
    for number, window in enumerate(zip(*windows, strict=True)):
        size, outputs = left[left_labels.index(str(number))], out[out_labels.index(str(number))]
        total *= _positions(size, outputs, *window)
    return total


def _library_flops(instruction, computation):
    """Counts the operations of a call of cuBLAS, which computes a matrix product on a GPU. The call gives the
    contracted dimensions as JSON. Returns 0 for a call of anything else."""
    if "__cublas$" not in instruction.attributes:
        return 0
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)[1]
    left = computation[instruction.operands[0]].outputs[0].shape
    return 2 * math.prod(instruction.outputs[0].shape) * math.prod(left[int(d)] for d in re.findall(r"\d+", contracted))


_PRODUCTS = {"dot": _dot_flops, "convolution": _convolution_flops, "custom-call": _library_flops}

# start of a Pallas kernel's name -> its number of matrix products of [queries, keys, head_size] per example and head.
# Forward has two: logits and output. The fused backward pass has five: logits again, and the gradients of
# probabilities, queries, keys and values.
_KERNELS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
_PALLAS = 'custom_call_target="tpu_custom_call"'


def _kernel_flops(instruction, computation) -> int | None:
    """Computes a Pallas kernel's operations from its name and the shapes of its queries and keys; None if unknown.

    Queries and keys are the kernel's first two floating-point operands of three axes or more, [..., tokens, head_size].
    """
    products = next((count for start, count in _KERNELS.items() if instruction.name.startswith(start)), None)
    arrays = [computation[name].outputs[0] for name in instruction.operands if name in computation]
    floating = [array.shape for array in arrays if array.dtype in ("f32", "bf16", "f16") and len(array.shape) >= 3]
    if products is None or len(floating) < 2:
        return None
    queries, keys = floating[:2]
    return products * 2 * math.prod(queries) * keys[-2]


# An exchange between slices, as the TPU compiler writes it: each device sends its own array to the runtime, which
# exchanges it with the devices in the same place of the other slices.
_BETWEEN_SLICES = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
_TRANSFERS = {
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}


def _between_slices(instruction, computation, slices, times) -> Collective | None:
    """Returns the exchange between slices that a `send` starts; None for another instruction.

    Raises `RfjaxError` for a kind of exchange that is not known.
    """
    if instruction.opcode != "send" or _BETWEEN_SLICES not in instruction.attributes:
        return None
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    kind = _TRANSFERS.get(transfer[1]) if transfer else None
    if kind is None:
        what = transfer[1] if transfer else "no type"
        raise RfjaxError(f"the compiled program has an exchange between slices of an unknown type: {what}")
    group = re.search(r'_xla_megascale_target="\{([\d,]+)\}', instruction.attributes)  # the slices, each a number
    ways = len(group[1].split(",")) if group else slices
    size = computation[instruction.operands[0]].bytes * (ways if kind == "all-gather" else 1)
    return Collective(kind, size, ways, times, instruction.name, between_slices=True)


def _collective(instruction, devices, times, scattered) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in PASSES:
        return None
    outputs = instruction.outputs
    if instruction.opcode in ("all-gather-start", "reduce-scatter-start"):  # a tuple of the inputs, then the outputs
        outputs = outputs[len(outputs) // 2 :]
    elif instruction.opcode == "collective-permute-start":
        outputs = outputs[1:2]
    size = sum(array.bytes for array in outputs)
    group = [0, 1] if kind == "collective-permute" else first_group(instruction.attributes, devices)
    ways, reach = len(group), max(group) - min(group)
    if kind == "reduce-scatter":
        size *= ways
    label = re.search(r'op_name="([^"]*)"', instruction.attributes)
    kind, stride = "reduce-scatter" if scattered else kind, math.ceil(reach / max(ways - 1, 1))
    return Collective(kind, size, ways, times, label[1] if label else "", stride=max(stride, 1))


def _fusion_bytes(instruction, computation, program) -> int:
    """Counts the bytes that a fusion reads and writes. Of an array that the fusion only slices, or updates in place,
    only the slice counts."""
    body = program.computations.get((instruction.called or [""])[0], {})
    parameters = {int(i.arguments): i for i in body.values() if i.opcode == "parameter" and i.arguments.isdigit()}
    total = 0
    for number, operand in enumerate(instruction.operands):
        stack = parameters[number].name if number in parameters else None
        users = [i for i in body.values() if stack in i.operands]
        uses = {i.opcode if i.operands[0] == stack else "other" for i in users}
        if uses == {"dynamic-slice"}:
            total += sum(i.bytes for i in users)
        elif uses != {"dynamic-update-slice"} and operand in computation:  # an update is in place, and reads nothing
            total += computation[operand].bytes
    written = instruction.bytes
    for update in (i for i in body.values() if i.opcode == "dynamic-update-slice"):
        if update.bytes and len(update.operands) > 1 and update.operands[1] in body:
            written -= update.bytes - body[update.operands[1]].bytes
    return total + max(written, 0)


def _kernel_bytes(instruction, computation, program) -> int:
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode == "send":
        return sum(computation[name].bytes for name in instruction.operands[:1])
    if instruction.opcode == "fusion":
        return _fusion_bytes(instruction, computation, program)
    if instruction.opcode == "dynamic-slice":
        return 2 * instruction.bytes
    if instruction.opcode == "dynamic-update-slice":
        update = computation.get(instruction.operands[1])
        return 2 * update.bytes if update else instruction.bytes
    return instruction.bytes + sum(computation[name].bytes for name in instruction.operands if name in computation)


def count(text: str, devices: int, slices: int = 1) -> Counts:
    """Counts one execution, on one device, of a program compiled for `devices` devices in `slices` slices.

    Raises `RfjaxError` for a text that is not an HLO module, and for an unknown kind of exchange between slices.
    """
    program = parse(text)
    flops = bytes_moved = unknown = repeated = kernels = 0
    strange: set[str] = set()
    collectives: list[Collective] = []
    for name, times, fused, scattered, again in _visits(program):
        for instruction in (computation := program.computations[name]).values():
            anew = again or ".remat" in instruction.name  # the compiler's own rematerialisation
            if instruction.opcode == "custom-call" and _PALLAS in instruction.attributes:
                operations = _kernel_flops(instruction, computation)
                if operations is None:
                    strange.add(instruction.name)
                kernels += times * (operations or 0)
                repeated += times * (operations or 0) if anew else 0
            elif instruction.opcode in _PRODUCTS:
                operations = times * _PRODUCTS[instruction.opcode](instruction, computation)
                flops += operations
                repeated += operations if anew else 0
            elif instruction.opcode == "while":
                unknown += trip_count(program, instruction) is None
            exchange = _collective(instruction, devices // slices, times, scattered)
            if exchange := exchange or _between_slices(instruction, computation, slices, times):
                collectives.append(exchange)
            if not fused:
                bytes_moved += times * _kernel_bytes(instruction, computation, program)
    return Counts(flops + kernels, bytes_moved, tuple(collectives), unknown, repeated, kernels, tuple(sorted(strange)))


def _visits(program: Program) -> Iterator[tuple[str, int, bool, bool, bool]]:
    """Yields (name, times, fused, scattered, again) of each computation, from the entry on.

    The computation runs `times` times. `fused` says whether it is inside a kernel, `scattered` whether it is inside a
    TPU's reduce-scatter, and `again` whether it is recomputation.
    """
    waiting = [(program.entry, 1, False, False, False)]
    while waiting:
        name, times, fused, scattered, again = waiting.pop()
        yield name, times, fused, scattered, again
        for instruction in program.computations[name].values():
            if instruction.opcode == "while":
                body = instruction.attribute("body")
                waiting.append((body, times * (trip_count(program, instruction) or 1), fused, False, again))
            elif instruction.opcode == "conditional":
                listed = re.search(r"branch_computations=\{([^}]*)", instruction.attributes) or [""]
                branches = re.findall(r"%([\w.\-]+)", listed[0]) or instruction.called
                waiting += [(branch, times, fused, False, again) for branch in branches]
            elif instruction.opcode in ("fusion", "call", "call-start", "async-start", "custom-call"):
                inside = fused or instruction.opcode != "call"
                repeated = again or ".remat" in instruction.name  # the compiler's own rematerialisation
                # A TPU's reduce-scatter is a fusion of an all-reduce and a slice, recognised by its name.
                for called in instruction.called:
                    if called in program.computations:
                        waiting.append((called, times, inside, called.startswith("all-reduce-scatter"), repeated))
