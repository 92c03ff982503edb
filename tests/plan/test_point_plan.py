"""Plans by formula: state, search, table, JSON. Nothing is compiled."""

import json
from pathlib import Path

import pytest

from rfjax import config as configs
from rfjax.cli import main
from rfjax.models.flops import attended_sequences, recompute_flops, training_flops
from rfjax.plan.compiled import Compiled, Compiler
from rfjax.plan.estimate import estimate
from rfjax.plan.point_plan import plan_point
from rfjax.plan.search import candidates, layouts
from rfjax.plan.targets import parse_target
from rfjax.study.size import size_of
from rfjax.study.study import load_study
from rfjax.training.chips import GIB

PAPER = Path(__file__).parents[2] / "configs" / "sd3_depth.py"
DEPTHS = ("depth15", "depth18", "depth21", "depth30", "depth38")


def point(id, **overrides):
    return load_study(PAPER, {key.replace("__", "."): value for key, value in overrides.items()}).point(id)


@pytest.mark.parametrize("name", ("v5p-256", "v5e-256"))
@pytest.mark.parametrize("id", DEPTHS)
def test_every_depth_of_the_paper_divides_as_configured(id, name):
    """Catches an axis that does not divide a width or the batch: 2432 does not split 256 ways."""
    target, config = parse_target(name), point(id).config
    found = estimate(config, target)
    size = size_of(config)
    shapes_flops = size.flops_per_image
    again = recompute_flops(config.model, _shapes(config), config.train.remat)
    assert found.flops * target.chips == pytest.approx((shapes_flops + again) * config.train.batch_size, rel=1e-12)
    # Kernels split 16 ways; biases and norms, under 0.1 % of the parameters, are whole on each device.
    assert 1 < found.state_bytes / (size.state_bytes / 16) < 1.02


def _shapes(config):
    from rfjax.data.corpus import load_corpus

    return load_corpus(config.data, config.seed).shapes


def test_tensor_splits_what_it_splits():
    """Heads and MLP halve with tensor=2; modulation and embeddings stay whole on both devices."""
    config = point("depth38", mesh__data=8, mesh__fsdp=8, mesh__tensor=2).config
    target = parse_target("v5p-256")
    two = estimate(config, target).flops
    one = estimate(configs.apply_overrides(config, {"mesh.data": 16, "mesh.tensor": 1}), target).flops
    assert one < two < 1.02 * one
    assert training_flops(config.model, _shapes(config)) > 0


def test_slices_sum_each_others_part_of_the_gradients():
    """Catches gradients exchanged whole between slices, and weights that are: two slices of 8 x 16 send each a shard's
    part in bfloat16, 1 / (8 x 16) of the weights."""
    config = point("depth38").config
    one, two = (estimate(config, parse_target(name)) for name in ("v5p-256", "2xv5p-256"))
    assert two.mesh == {"data": 16, "fsdp": 16, "tensor": 1} and one.mesh["data"] == 8
    assert two.state_bytes == one.state_bytes
    (between,) = [found for found in two.collectives if found.between_slices]
    assert between.sent == pytest.approx(2 * size_of(config).params / (8 * 16), rel=0.001)
    inside = {(found.name, found.kind): found.ways for found in two.collectives if not found.between_slices}
    assert inside == {(found.name, found.kind): found.ways for found in one.collectives}
    assert one.roofline.network == 0 < two.roofline.network


def test_gradients_between_nodes_are_planned_over_their_network():
    """By hand, for 8 x 8 over 8 nodes of 8 GPUs: weights and gradients in bfloat16 pass the node's 450 GB/s three
    times, and each GPU's eighth of the gradients passes the network's 50 GB/s twice."""
    config = point("depth38", mesh__fsdp=8).config
    found = estimate(config, parse_target("h100x64"))
    weights = 2 * size_of(config).params
    by_hand = 7 / 8 * weights * (3 / 450e9 + 2 / 8 / 50e9)
    assert found.mesh == {"data": 8, "fsdp": 8, "tensor": 1}
    assert found.roofline.links == pytest.approx(by_hand, rel=0.001)


def test_a_search_leaves_every_axis_but_data_inside_a_slice():
    config = point("depth15").config
    found = [layout for layout in layouts(config, parse_target("4xv5e-8"))]
    assert found and all(layout["mesh.data"] % 4 == 0 for layout in found)
    assert {layout["mesh.fsdp"] * layout["mesh.tensor"] for layout in found} == {1, 2, 4, 8}


def test_an_attention_over_time_is_planned():
    """Catches frames that are planned as one sequence, and an attention over time that costs no memory."""
    clip = {"data__corpus": "random", "data__frames": 16, "model__temporal_patch_size": 2}
    target = parse_target("v5p-256")
    configs_of = [point("depth15", **clip, model__temporal_attention=way).config for way in ("joint", "factorised")]
    joint, factorised = (attended_sequences(config.model, _shapes(config)) for config in configs_of)
    text = joint[0][1] - 2048
    assert joint == ((1, 2048 + text),) and factorised == ((8, 256 + text), (1, 2048))
    one, two = (estimate(config, target) for config in configs_of)
    whole = training_flops(configs_of[1].model, _shapes(configs_of[1]))
    whole += recompute_flops(configs_of[1].model, _shapes(configs_of[1]), configs_of[1].train.remat)
    assert two.flops * target.chips == pytest.approx(whole * configs_of[1].train.batch_size, rel=1e-12)
    assert two.flops > 1.5 * one.flops and two.hbm_bytes > one.hbm_bytes and two.state_bytes > one.state_bytes


def test_a_plan_says_that_runs_trained_together_take_more():
    """Catches "fits" for one of the 16 runs that a study's program holds at once."""
    members = load_study("formulations", {}).points[0]
    (said,) = plan_point(members, parse_target("h100x4"), compiler=None, say=lambda _: None).notes
    assert "train.together=16" in said and "up to 4 of them on each device" in said
    alone = load_study("formulations", {"train.together": "1"}).points[0]
    assert plan_point(alone, parse_target("h100x4"), compiler=None, say=lambda _: None).notes == ()


def test_a_search_finds_the_cheapest_that_fits_and_changes_only_the_layout():
    """Catches a search that offers a layout which does not fit, or changes the experiment."""
    target = parse_target("v5e-256")
    config = point("depth38", mesh__fsdp=1).config
    said = []
    plan = plan_point(point("depth38", mesh__fsdp=1), target, compiler=None, say=said.append)
    assert plan.fits and plan.searched and plan.peak_bytes <= target.chip.hbm_bytes
    assert plan.notes[0].startswith("256x1x1, remat full, accumulate 1 does not fit: 1")
    changed = configs.differences(config, plan.config)
    assert set(changed) <= {"mesh.data", "mesh.fsdp", "mesh.tensor", "train.remat", "train.accumulate"} and changed
    steps = [found.roofline.step for _, found in candidates(config, target, slack=1.0)]
    assert plan.limits.step == pytest.approx(min(steps), rel=0.01)


def test_a_search_expects_of_the_next_layout_what_the_last_one_took(monkeypatch):
    """Catches minutes of compiling layouts that must fail as the one before did: here all take 1.3
    times their estimates, so only those that leave as much room are worth compiling."""
    target = parse_target("v5e-256")
    asked = []

    def compile_step(config, target, compiler):
        asked.append(estimate(config, target).peak_bytes)
        took = int(1.3 * asked[-1])
        return Compiled(
            took <= target.chip.hbm_bytes,
            took,
            None,
            None,
            None,
            1.0,
            1,
            compiler.optimisation,
            {"rfjax": [], "user": []},
        )

    monkeypatch.setattr("rfjax.plan.point_plan.compile_step", compile_step)
    plan = plan_point(point("depth38"), target, compiler=Compiler("O0"), search=True, say=lambda line: None)
    assert plan.fits and len(asked) > 1
    assert 1.3 * asked[0] > target.chip.hbm_bytes and all(1.3 * peak <= target.chip.hbm_bytes for peak in asked[1:])


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "plan.json"
    command = ["plan", f"--config={PAPER}", "--target=v5p-256", "--no-compile", "--price=2", f"--out={out}"]
    assert main([*command, "--point=depth38"]) == 0
    printed = capsys.readouterr().out
    assert "v5p-256: 128 chips, 256 TensorCores" in printed and "Nothing was compiled" in printed
    (found,) = json.loads(out.read_text())["points"]
    assert found["point"] == "depth38" and found["fits"] and found["compiled"] is None
    assert found["cost"]["money"] == 2 * found["cost"]["chip_hours"]
    assert found["limits"]["compute"] == pytest.approx(0.634, rel=0.01)  # 2.909e14 operations of 459e12 a second
    assert f"{found['peak_bytes'] / GIB:.2f}" in printed and "network" not in printed
    page = out.with_suffix(".html").read_text()
    assert (
        f"<td>{found['peak_bytes'] / GIB:.2f}</td>" in page
        and f"<b>{1e3 * found['limits']['compute']:,.0f}</b>" in page
    )


def test_a_plan_of_slices_has_a_column_for_the_network(tmp_path, capsys):
    out = tmp_path / "plan.json"
    command = ["plan", f"--config={PAPER}", "--target=2xv5e-256", "--no-compile", "--point=depth15", f"--out={out}"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "links  network  slowest" in printed and "only data goes over slices" in printed
    content = json.loads(out.read_text())
    assert (content["slices"], content["chips"]) == (2, 512) and content["points"][0]["limits"]["network"] > 0
    page = out.with_suffix(".html").read_text()
    assert "links and network are the least" in page and "<th>network</th>" in page
    assert main(["plan", f"--config={PAPER}", "--target=2xv4-128", "--no-compile", "--point=depth15"]) == 2
    assert "between slices of v4 is not published" in capsys.readouterr().err


@pytest.mark.parametrize(
    "target, settings, attention",
    [("v5p-256", {}, "splash"), ("v5p-256", {"train__attention": "xla"}, "xla"), ("h100x64", {}, "cudnn")],
)
def test_the_plan_says_which_attention_a_run_uses(target, settings, attention, capsys):
    """Catches a plan for the attention that this machine would choose, which is always xla."""
    plan = plan_point(point("depth15", **settings), parse_target(target), compiler=None)
    assert plan.attention == plan.to_json()["attention"] == attention
    overrides = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
    main(["plan", f"--config={PAPER}", f"--target={target}", "--no-compile", "--point=depth15", *overrides])
    assert f"Attention of a run on {target}: {attention}; the estimates" in capsys.readouterr().out


def test_a_chip_by_roofline_alone_is_planned_and_said(capsys):
    """Catches a plan that stops for want of a compiler where there is none to install."""
    assert main(["plan", f"--config={PAPER}", "--target=mi300x64", "--point=depth15"]) == 0
    printed = capsys.readouterr().out
    assert "mi300x-64: 64 GPUs in 8 node(s) of 8" in printed
    assert "Nothing was compiled (rfjax has no compiler that runs without a GPU for rocm)" in printed


def test_an_attention_that_the_target_does_not_have_is_refused(capsys):
    command = ["plan", f"--config={PAPER}", "--target=v5p-256", "--no-compile", "--config.train.attention=cudnn"]
    assert main(command) == 2
    assert "it runs on cuda, and this is tpu; use splash or xla" in capsys.readouterr().err


def test_what_fits_nowhere_ends_with_status_one(capsys):
    command = ["plan", f"--config={PAPER}", "--target=v5e-4", "--no-compile", "--point=depth38"]
    assert main(command) == 1
    assert "no layout should fit v5e-4" in capsys.readouterr().out


def test_what_cannot_be_planned_is_refused(capsys):
    assert main(["plan", f"--config={PAPER}", "--target=v9-256"]) == 2
    assert "unknown chip 'v9'" in capsys.readouterr().err
    assert main(["plan", f"--config={PAPER}", "--target=v5e-256", "--no-compile", "--price=-1"]) == 2
    assert "--price is -1.0" in capsys.readouterr().err
