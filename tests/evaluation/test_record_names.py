"""The file names of records: another name for a key would orphan what is on disk."""

import pytest

from rfjax.config import from_dict
from rfjax.evaluation.evaluate import due_at
from rfjax.evaluation.records import record_key, record_name
from rfjax.evaluation.sampler_name import SamplerName, ground_truth_name

RUN = {"run": "study/d4", "step": 2000, "corpus": "shapes", "weights": "ema"}
GENEVAL = "euler-50-cfg5-shift1-40x4"
NAMES = [
    ({"evaluation": "validation", "grid": "paper-8-n512"}, "0481802766eb9bde8c4b3e24a184916f0e679815"),
    (
        {"evaluation": "validation", "grid": "paper-8-n512", "weights": "raw"},
        "a0939d21c320f1b6f2918816a8d459f164a9cb40",
    ),
    ({"evaluation": "geneval", "sampler": GENEVAL}, "f2cb10bdbcebc334bca9901ecde2fdb23bc0e0e9"),
    ({"evaluation": "samples", "sampler": GENEVAL}, "35c06fcbb35cfd90ffeb75d778b2f1f5f2a75b8a"),
    ({"evaluation": "geneval_floor_shuffled", "sampler": GENEVAL}, "d5c32b78cdde0d125e308b405b9bd19216b33c24"),
    ({"evaluation": "geneval_floor_null", "sampler": GENEVAL}, "0de56627f77cd096961170b185feb440529b0451"),
    (
        {"evaluation": "geneval_ceiling", "sampler": "ground truth-40x8", "weights": "-", "step": -1},
        "8bffc1f91b8d8d80e18e036b88639244d69c4598",
    ),
    ({"evaluation": "ranking", "sampler": "euler-50-cfg2.5-shift1-8x2"}, "3c2368ad4fced0f32e3a779f8f21fcf0699f420f"),
    ({"evaluation": "ranking", "sampler": "euler-5-cfg5-shift1-8x2"}, "9878ba6fe46c4cc1baa2dc687bebf20826c8ae92"),
    (
        {"evaluation": "temporal", "sampler": GENEVAL, "corpus": "motion:first-4"},
        "f11ba160be14221c0ae913865191e2f8b3c088fc",
    ),
    (
        {
            **{"evaluation": "temporal_ceiling", "sampler": "ground truth-40x2", "corpus": "motion:first-4"},
            **{"weights": "-", "step": -1},
        },
        "5a9b75a993741f9bce556adc84369a4e04a79066",
    ),
    (
        {"evaluation": "validation_mlperf", "grid": "mlperf-assigned-8-n16-0a1b2c3d"},
        "2470f9547bfa5f767812ba13575887d498845034",
    ),
    (
        {"evaluation": "sampling_steps", "sampler": "euler-5-cfg5-shift1-40x4-of50"},
        "a2f8172126fe092a4e3f0f30af4c2a94614421f5",
    ),
    (
        {
            "evaluation": "geneval_official",
            "corpus": "geneval",
            "sampler": "heun-25-cfg2.5-shift3-by-area-matched-clip_l+clip_g-24x40-553x4",
            "seed": 3,
        },
        "30025879e6cc2d7c75bd40bcb2747fc6942cf11f",
    ),
    (
        {"evaluation": "clip-score", "corpus": "captions", "sampler": "euler-50-cfg5-shift3", "weights": "raw"},
        "313ed15541e87c8313d79a7c0a099b56fd4104f1",
    ),
]


@pytest.mark.parametrize("key, name", NAMES, ids=[key["evaluation"] for key, _ in NAMES])
def test_file_names_stay_what_they_are(key, name):
    assert record_name(record_key(**RUN | key)) == f"{name}.json"


def test_what_is_due_has_these_keys():
    """The keys that a run's own evaluations make, and so the files that a resumed run finds."""
    config = from_dict({"evaluation": {"ranking": {"prompts_per_task": 8, "samplers": ["50@2.5", "5@5"]}}})
    due = {record_name(one.key) for one in due_at(config, "study/d4", 2000) if one.key["weights"] == "ema"}
    kinds = ("validation", "geneval", "ranking")
    assert due == {f"{name}.json" for key, name in NAMES if key["evaluation"] in kinds and "weights" not in key}


def test_what_is_due_for_clips_has_this_key():
    sections = {"geneval": {"prompts_per_task": 0}, "temporal": {"prompts_per_task": 40}}
    config = from_dict({"data": {"corpus": "motion", "frames": 4}, "evaluation": sections})
    due = {record_name(one.key) for one in due_at(config, "study/d4", 2000) if one.kind == "temporal"}
    assert due == {f"{name}.json" for key, name in NAMES if key["evaluation"] == "temporal"}


def test_what_samplers_are_called_has_these_keys():
    config = from_dict(
        {
            "timestep_shift": 3.0,
            "timestep_shift_by_area": True,
            "evaluation": {"sampler": {"method": "heun", "steps": 25, "guidance_scale": 2.5, "sigmas": "matched"}},
        }
    )
    more = {"encoders": ("clip_l", "clip_g"), "latent_size": (24, 40), "images": (553, 4)}
    names = {ground_truth_name((40, 8)), SamplerName.of(config, config.evaluation.sampler, **more).format()}
    plain = from_dict({"evaluation": {"sampler": {"steps": 5}}})
    names.add(SamplerName.of(plain, plain.evaluation.sampler, images=(40, 4), reference=50).format())
    assert names < {key.get("sampler") for key, _ in NAMES}
