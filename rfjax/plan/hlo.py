"""Counts operations, bytes and exchanges of one run of a compiled program from its HLO text.

The compiler's own cost analysis counts the body of a loop once; here it counts as often as it runs. No JAX here: text
in, numbers out.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rfjax.errors import RfjaxError
from rfjax.plan.roofline import PASSES, Collective

_TYPES = {1: "pred s8 u8", 2: "s16 u16 f16 bf16", 4: "s32 u32 f32", 8: "s64 u64 f64 c64", 16: "c128"}
_BYTES = {dtype: size for size, dtypes in _TYPES.items() for dtype in dtypes.split()}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
# Instructions that move no bytes themselves.
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
    """Counts of one run on one device."""

    flops: int  # of matrix products
    hbm_bytes: int  # operands and results of every kernel: an upper bound, as if nothing stayed on the chip
    collectives: tuple[Collective, ...]
    unknown_loops: int  # loops whose trip count cannot be read; their bodies count once
    repeated_flops: int = 0  # part of `flops` that the compiler by itself computes a second time
    kernel_flops: int = 0  # part of `flops` in kernels that the compiler does not look into: by formula, with padding
    unknown_kernels: tuple[str, ...] = ()  # names of such kernels without a formula; their operations do not count

    @property
    def largest_all_gather(self) -> int:
        """The bytes of the largest array that an all-gather makes."""
        return max((c.bytes for c in self.collectives if c.kind == "all-gather"), default=0)


def _balanced(text: str) -> int:
    """The index after the parenthesis that closes the first one of `text`."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index + 1
    raise RfjaxError(f"the compiled program's text has an open parenthesis: {text[:80]!r}")


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
    """The text's lines; an instruction whose attributes fill several (a kernel's metadata) comes as one line."""
    whole, inside = "", False
    for line in text.splitlines():
        if inside and line and not line.startswith(" ") and line != "}":
            whole += line
            continue
        yield whole
        whole, inside = line, line != "}" and (inside or bool(_HEADER.match(line)))
    yield whole


def parse(text: str) -> Program:
    """The computations of an HLO module's text. Raises `RfjaxError` where there is no entry computation."""
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
    """How often a while loop runs: the compiler's note, else the bound in its condition; None if neither is there."""
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
    """How many pairs (place of the output, place in the kernel) meet an element, not padding or a hole."""
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
    """Operations of a TPU's matrix product, which is a convolution whose batch dimensions are mostly empty windows."""
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
    """Operations of a GPU's matrix product, which is a call of a library with its dimensions as JSON."""
    if "__cublas$" not in instruction.attributes:
        return 0
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)[1]
    left = computation[instruction.operands[0]].outputs[0].shape
    return 2 * math.prod(instruction.outputs[0].shape) * math.prod(left[int(d)] for d in re.findall(r"\d+", contracted))


_PRODUCTS = {"dot": _dot_flops, "convolution": _convolution_flops, "custom-call": _library_flops}

# The start of a Pallas kernel's name -> its matrix products of [queries, keys, head_size] for each example and head.
# Forward: logits and output. Backward, fused: logits again, and the gradients of probabilities, queries, keys, values.
_KERNELS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
_PALLAS = 'custom_call_target="tpu_custom_call"'


def _kernel_flops(instruction, computation) -> int | None:
    """Operations of a Pallas kernel by its name and the shapes of its queries and keys, which are its first two
    floating-point operands, [..., tokens, head_size]; None where they are not known."""
    products = next((count for start, count in _KERNELS.items() if instruction.name.startswith(start)), None)
    arrays = [computation[name].outputs[0] for name in instruction.operands if name in computation]
    floating = [array.shape for array in arrays if array.dtype in ("f32", "bf16", "f16") and len(array.shape) >= 3]
    if products is None or len(floating) < 2:
        return None
    queries, keys = floating[:2]
    return products * 2 * math.prod(queries) * keys[-2]


def _ways(attributes: str, devices: int) -> int:
    """How many devices a group of an exchange has, in any of the three ways of writing groups."""
    mesh = re.search(r"replica_groups=(?:@?\w*)?mesh\[([^\]]*)\].*?\{((?:'[^}]*)?)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes) if axes else devices
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
    return int(tiled[2]) if tiled else devices


def _collective(instruction, devices, times, scattered) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in PASSES:
        return None
    outputs = instruction.outputs
    if instruction.opcode in ("all-gather-start", "reduce-scatter-start"):  # a tuple of the inputs and then the outputs
        outputs = outputs[len(outputs) // 2 :]
    elif instruction.opcode == "collective-permute-start":
        outputs = outputs[1:2]
    size = sum(array.bytes for array in outputs)
    ways = 2 if kind == "collective-permute" else _ways(instruction.attributes, devices)
    if kind == "reduce-scatter":
        size *= ways
    label = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective("reduce-scatter" if scattered else kind, size, ways, times, label[1] if label else "")


def _fusion_bytes(instruction, computation, program) -> int:
    """Bytes that a fusion reads and writes; of a stack that it slices or updates, only the slice counts."""
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
    if instruction.opcode == "fusion":
        return _fusion_bytes(instruction, computation, program)
    if instruction.opcode == "dynamic-slice":
        return 2 * instruction.bytes
    if instruction.opcode == "dynamic-update-slice":
        update = computation.get(instruction.operands[1])
        return 2 * update.bytes if update else instruction.bytes
    return instruction.bytes + sum(computation[name].bytes for name in instruction.operands if name in computation)


def count(text: str, devices: int) -> Counts:
    """The counts of one run, on one device, of a compiled program for `devices` devices.

    Raises `RfjaxError` for a text that is no HLO module.
    """
    program = parse(text)
    flops = bytes_moved = unknown = repeated = kernels = 0
    strange: set[str] = set()
    collectives: list[Collective] = []
    for name, times, fused, scattered, again in _visits(program):
        for instruction in (computation := program.computations[name]).values():
            if instruction.opcode == "custom-call" and _PALLAS in instruction.attributes:
                operations = _kernel_flops(instruction, computation)
                if operations is None:
                    strange.add(instruction.name)
                kernels += times * (operations or 0)
                repeated += times * (operations or 0) if again or ".remat" in instruction.name else 0
            elif instruction.opcode in _PRODUCTS:
                operations = times * _PRODUCTS[instruction.opcode](instruction, computation)
                flops += operations
                repeated += operations if again else 0
            elif instruction.opcode == "while":
                unknown += trip_count(program, instruction) is None
            if exchange := _collective(instruction, devices, times, scattered):
                collectives.append(exchange)
            if not fused:
                bytes_moved += times * _kernel_bytes(instruction, computation, program)
    return Counts(flops + kernels, bytes_moved, tuple(collectives), unknown, repeated, kernels, tuple(sorted(strange)))


def _visits(program: Program) -> Iterator[tuple[str, int, bool, bool, bool]]:
    """(computation, how often it runs, inside a kernel?, a TPU's reduce-scatter?, a repetition?), from the entry on."""
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
                # A TPU's reduce-scatter is a fusion of an all-reduce and a slice, known by its name.
                for called in instruction.called:
                    if called in program.computations:
                        waiting.append((called, times, inside, called.startswith("all-reduce-scatter"), repeated))
