"""Counts of HLO text as a TPU's compiler writes it, compared with counts made by hand."""

import numpy as np
import pytest

from rfjax.errors import RfjaxError
from rfjax.plan.hlo import Counts, _positions, count, parse, trip_count

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[152,64]) -> bf16[10,64] {
  %input = bf16[152,64]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = bf16[] constant(0)
  %pad.1 = bf16[160,64]{1,0:T(8,128)(2,1)} pad(%input, %zero), padding=0_8x0_0
  %all-reduce.1 = bf16[160,64]{1,0:T(8,128)(2,1)} all-reduce(%pad.1), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7,\
8,9,10,11,12,13,14,15},{16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31}}, to_apply=%add
  %start = s32[] constant(0)
  ROOT %slice = bf16[10,64]{1,0} dynamic-slice(%all-reduce.1, %start, %start), dynamic_slice_sizes={10,64}
}

%sliced (stack: f32[37,8,64], place: s32[]) -> f32[1,8,64] {
  %stack = f32[37,8,64]{2,1,0} parameter(0)
  %place = s32[] parameter(1)
  %none = s32[] constant(0)
  ROOT %one = f32[1,8,64]{2,1,0} dynamic-slice(%stack, %place, %none, %none), dynamic_slice_sizes={1,8,64}
}

%condition (state: (s32[], f32[37,8,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(37)
  %state = (s32[]{:T(128)}, f32[37,8,64]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (carry: (s32[], f32[37,8,64])) -> (s32[], f32[37,8,64]) {
  %carry = (s32[]{:T(128)}, f32[37,8,64]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %weights = f32[37,8,64]{2,1,0:T(8,128)} get-tuple-element(%carry), index=1
  %layer = f32[1,8,64]{2,1,0:T(8,128)} fusion(%weights, %i.1), kind=kLoop, calls=%sliced
  %all-gather.1 = f32[1,128,64]{2,1,0:T(8,128)} all-gather(%layer), channel_id=2, replica_groups=mesh['axis_0'=16,\
'axis_1'=2], device_ids=([2,16]T(1,0)) {'axis_0'}, dimensions={1}, metadata={op_name="jit(step)/blocks/qkv"}
  ROOT %next = (s32[]{:T(128)}, f32[37,8,64]{2,1,0:T(8,128)}) tuple(%i.1, %weights)
}

ENTRY %main (x: bf16[4,152], y: bf16[4,64], s: (s32[], f32[37,8,64])) -> bf16[10,64] {
  %x = bf16[4,152]{1,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[4,64]{1,0:T(8,128)(2,1)} parameter(1)
  %s = (s32[]{:T(128)}, f32[37,8,64]{2,1,0:T(8,128)}) parameter(2)
  %loop = (s32[]{:T(128)}, f32[37,8,64]{2,1,0:T(8,128)}) while(%s), condition=%condition, body=%body
  %product = bf16[152,64]{1,0:T(8,128)(2,1)} convolution(%x, %y), dim_labels=fb_io->bf
  ROOT %scattered = bf16[10,64]{1,0} fusion(%product), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def counted() -> Counts:
    return count(PROGRAM, 32)


def test_a_loop_runs_as_often_as_its_condition_says():
    """Catches bodies counted once. TPU programs do not note the count; the loop's condition has it."""
    program = parse(PROGRAM)
    assert trip_count(program, program.computations["main"]["loop"]) == 37
    gather = next(c for c in counted().collectives if c.kind == "all-gather")
    assert (gather.times, gather.ways, gather.bytes, gather.name) == (37, 16, 4 * 128 * 64, "jit(step)/blocks/qkv")
    assert counted().largest_all_gather == 4 * 128 * 64 and counted().unknown_loops == 0


def test_a_loop_without_a_bound_is_said_to_be_unknown():
    assert count(PROGRAM.replace("constant(37)", "parameter(1)"), 32).unknown_loops == 1


def test_a_fused_all_reduce_and_slice_is_a_reduce_scatter():
    """Catches twice the bytes for every gradient."""
    (scatter,) = [c for c in counted().collectives if c.kind != "all-gather"]
    assert (scatter.kind, scatter.ways, scatter.bytes, scatter.times) == ("reduce-scatter", 16, 2 * 160 * 64, 1)


def test_products_are_convolutions():
    assert counted().flops == 2 * 152 * 64 * 4


def test_a_slice_of_a_stack_is_read_alone():
    """Catches the whole stack of layers read at every layer: here 37 times too much."""
    layer, whole = 4 * 8 * 64, 4 * 128 * 64
    scattered = 2 * 152 * 64 + 2 * 10 * 64
    product = 2 * (4 * 152 + 4 * 64 + 152 * 64)
    each = (layer + 4 + layer) + (layer + whole)  # the slice, its place, the result; the gather
    assert counted().hbm_bytes == 37 * each + scattered + product


def test_positions_of_a_window_that_holds_a_batch():
    """A batch dimension of 5 as the TPU writes it (dilated, one stride short) meets 5 pairs; and a
    plain window against numpy's convolution of ones."""
    assert _positions(5, 5, 5, 4, 0, 5, 1) == 5
    assert _positions(7, 7, 3, 1, 1, 1, 1) == int(np.convolve(np.ones(7), np.ones(3), "same").sum())


def test_other_ways_to_write_groups():
    """The neighbours of a group are 1 device apart, or as many as the other axes of the mesh take."""
    for groups, ways, stride in (
        ("[4,8]<=[32]", 8, 1),
        ("[8,4]<=[4,8]T(1,0)", 4, 8),
        ("{{0,1},{2,3}}", 2, 1),
        ("{{0,16},{1,17}}", 2, 16),
        ("{}", 32, 1),
        ("mesh['a'=4,'b'=8] {'a'}", 4, 8),
        ("mesh['a'=4,'b'=8] {'b'}", 8, 1),
        ("mesh['a'=4,'b'=8] {'b':(1)2}", 2, 4),
        ("mesh['a'=16,'b'=2], device_ids=([2,16]T(1,0)) {'b'}", 2, 16),
    ):
        changed = PROGRAM.replace("mesh['axis_0'=16,'axis_1'=2], device_ids=([2,16]T(1,0)) {'axis_0'}", groups)
        gather = next(c for c in count(changed, 32).collectives if c.kind == "all-gather")
        assert (gather.ways, gather.stride) == (ways, stride), groups


def test_text_that_is_no_program_is_refused():
    with pytest.raises(RfjaxError, match="no entry"):
        count("nothing", 1)


GPU_PROGRAM = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: bf16[4096,960], w: bf16[960,2880]) -> bf16[120,2880] {
  %x = bf16[4096,960]{1,0} parameter(0)
  %w = bf16[960,2880]{0,1} parameter(1)
  %custom-call.1 = (bf16[4096,2880]{1,0}, s8[4194304]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contrac\
ting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %y = bf16[4096,2880]{1,0} get-tuple-element(%custom-call.1), index=0
  %workspace = s8[4194304]{0} get-tuple-element(%custom-call.1), index=1
  %other = bf16[8] custom-call(%y), custom_call_target="Sharding"
  %reduce-scatter-start = ((bf16[960,2880]{1,0}, bf16[960,960]{1,0}), (bf16[120,2880]{1,0}, bf16[120,960]{1,0})) \
reduce-scatter-start(%y, %x), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, dimensions={0}
  %reduce-scatter-done = (bf16[120,2880]{1,0}, bf16[120,960]{1,0}) reduce-scatter-done(%reduce-scatter-start)
  ROOT %part = bf16[120,2880]{1,0} get-tuple-element(%reduce-scatter-done), index=0
}
"""


def test_a_gpu_calls_a_library_for_products_and_combines_its_exchanges():
    """Catches operations of a GPU's program that count as nothing, a workspace or another call that
    counts as a product, and an exchange whose inputs count as outputs."""
    counts = count(GPU_PROGRAM, 16)
    assert counts.flops == 2 * 4096 * 2880 * 960 and counts.repeated_flops == 0
    again = count(GPU_PROGRAM.replace("custom-call.1", "custom-call.1.remat"), 16)
    assert again.repeated_flops == again.flops == counts.flops  # rematerialised by the compiler, outside a fusion
    (exchange,) = counts.collectives
    assert (exchange.kind, exchange.ways, exchange.bytes) == ("reduce-scatter", 8, 2 * 8 * (120 * 2880 + 120 * 960))


KERNELS = """HloModule jit_step, is_scheduled=true

ENTRY %main (q: bf16[4,3,512,64]) -> bf16[4,3,512,64] {
  %q = bf16[4,3,512,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[4,3,640,64]{3,2,1,0:T(8,128)(2,1)} copy(%q)
  %table = s8[1,1,1]{2,1,0} constant({...})
  %segments = s32[512,128]{1,0} constant({...})
  %splash_mha_fwd_segmented_residuals.1 = (f32[4,512,128]{2,1,0:T(8,128)}, bf16[4,3,512,64]{3,2,1,0:T(8,128)(2,\
1)S(1)}) custom-call(%table, %table, %q, %k, %k, /*index=5*/%segments), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/splash_mha_fwd/pallas_call"}
  %splash_mha_dkv_segmented_no_residuals.1 = (bf16[4,1,3,512,64]{4,3,2,1,0}, bf16[4,3,512,64]{3,2,1,0}) \
custom-call(%table, %table, %q, %k, %k, %segments, %q), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
}}, metadata={op_name="jit(step)/splash_mha_dkv/pallas_call"}
  %unheard_of.3 = bf16[4,3,512,64]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call"
  ROOT %sharding = bf16[4,3,512,64]{3,2,1,0} custom-call(%q), custom_call_target="Sharding"
}
"""


def test_kernels_count_by_their_shapes_and_unknown_ones_are_named():
    """Catches attention that counts for nothing because the compiler does not see into it, and one
    kernel's formula used for another's."""
    found = count(KERNELS, 1)
    product = 2 * 4 * 3 * 512 * 640 * 64
    assert found.kernel_flops == found.flops == (2 + 5) * product
    assert found.unknown_kernels == ("unheard_of.3",)


SLICES = """HloModule step, is_scheduled=true

ENTRY %main (shard: bf16[240,8,128]) -> bf16[240,8,128] {
  %shard = bf16[240,8,128]{2,1,0} parameter(0)
  %after = token[] after-all()
  %send.1 = (bf16[240,8,128]{2,1,0}, u32[], token[]) send(%shard, %after), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (bf16[240,8,128]{2,1,0}, u32[], token[]) recv(%after), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send.1), channel_id=1, is_host_transfer=true
  %received = (bf16[240,8,128]{2,1,0}, token[]) recv-done(%recv.1), channel_id=1, is_host_transfer=true
  %sum = bf16[240,8,128]{2,1,0} get-tuple-element(%received), index=0
  ROOT %inside = bf16[240,8,128]{2,1,0} all-reduce(%sum), replica_groups={}, to_apply=%add
}
"""  # noqa: E501


def test_exchanges_between_slices_are_counted_apart():
    """Catches a plan in which slices exchange nothing, and a group of all devices that is more than a slice."""
    between, inside = sorted(count(SLICES, 16, 4).collectives, key=lambda found: not found.between_slices)
    size = 2 * 240 * 8 * 128
    assert between.between_slices and (between.kind, between.bytes, between.ways) == ("all-reduce", size, 4)
    assert between.sent == 2 * size * 3 / 4
    assert not inside.between_slices and inside.ways == 4
    assert count(SLICES, 16, 4).hbm_bytes == 2 * size + 4 + 2 * size  # sent, received with a number, summed
    (gather, _) = count(SLICES.replace("ALL_REDUCE", "ALL_GATHER"), 16, 4).collectives
    assert gather.sent == 3 * size  # each of four slices sends its own part three times around the ring
    with pytest.raises(RfjaxError, match="exchange between slices of an unknown type: SHUFFLE"):
        count(SLICES.replace("ALL_REDUCE", "SHUFFLE"), 16, 4)


TPU7X = """HloModule step, is_scheduled=true

%called (param: bf16[256,32]) -> bf16[256,256] {
  %param = bf16[256,32]{0,1} parameter(0)
  ROOT %all-gather.1 = bf16[256,256]{0,1} all-gather(%param), replica_groups=mesh['a'=1,'b'=8] {'b'}, dimensions={1}
}

ENTRY %main (shard: bf16[256,32]) -> bf16[256,256] {
  %shard = bf16[256,32]{0,1} parameter(0)
  %start = ((bf16[256,32]{0,1}, token[]), bf16[256,256]{0,1}) call-start(%shard), async_execution_thread="sparsecore", to_apply=%called
  ROOT %done = bf16[256,256]{0,1} call-done(%start)
}
"""  # noqa: E501


def test_exchanges_on_a_tpu7x_run_beside_the_program():
    """Catches a plan for tpu7x in which devices exchange nothing: its SparseCores gather, by calls that are started."""
    (gather,) = count(TPU7X, 8).collectives
    assert (gather.kind, gather.bytes, gather.ways, gather.times) == ("all-gather", 2 * 256 * 256, 8, 1)
