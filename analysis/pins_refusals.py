"""Lists the commands that rfjax refuses, as `pins.py` runs them: each with its exit status and what must be said.

A row is (command, exit status, tokens). The tokens are the field or option, its value, and words of the remedy. The
message must contain all tokens; its other words are free. In a command, `{tmp}` is a folder with the `FILES` below,
`{run}` is a run of one step (depth 1, width 64), and `{new}` is a path that does not exist. Commands that are refused
for a config's field begin with `TRAIN`.
"""

import json

Row = tuple[str, int, tuple[str, ...]]

TRAIN = "train --config=configs/shapes.py --workdir={new}"
STUDY = "--config={tmp}/study.py --workdir={new}"
TASKS = "launch --config={tmp}/study.py --dry-run"
PLAN = "plan --config=configs/sd3_depth.py --no-compile"
BOXES = {"dog": [[0, 0, 5, 5, 0.9]]}
DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
CATS = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "a photo of two cats"}
SCORED = "geneval --out={new}.jsonl --metadata={tmp}"

FILES: dict[str, str] = {
    "failing.py": "def get_config():\n    return 1 / 0\n",
    "no_config.py": "x = 1\n",
    "levels": "0\n1\n",
    "text.safetensors": "text\n",
    "prompts.jsonl": json.dumps(DOG) + "\n" + json.dumps(CATS) + "\n",
    "misspelt.jsonl": json.dumps(DOG).replace("tag", "tga") + "\n",
    "found.jsonl": json.dumps({"prompt_index": 0, "sample": 0, "detections": BOXES}) + "\n",
    "beyond.jsonl": json.dumps({"prompt_index": 5, "sample": 0, "detections": BOXES}) + "\n",
    "broken.jsonl": '{"prompt_index": 0, "sample"\n',
    "no_loss.csv": "run,flops\na,1\nb,2\n",
    "no_cost.csv": "run,loss\na,1\nb,2\n",
    "words.csv": "run,loss,flops\na,1,10\nb,low,20\n",
    "twice.csv": "run,loss,flops\na,2,10\na,1,20\n",
    "negative.csv": "run,loss,flops\na,2,10\nb,-1,20\n",
    "wide.csv": "run,loss,flops\na,2,10\nb,1,20,30\n",
    "empty.csv": "",
    "few.csv": "run,loss,flops\na,2,10\nb,1.5,20\nc,1.2,40\n",
}

FIELDS: tuple[Row, ...] = (
    (f"{TRAIN} --config.model.dept=3", 2, ("config.model.dept;", "config.model.depth")),
    (f"{TRAIN} --config.train.steps=many", 2, ("config.train.steps", "many", "integer")),
    (f"{TRAIN} --config.train.steps=0", 2, ("config.train.steps", "0", "at least 1")),
    (f"{TRAIN} --config.train.steps", 2, ("--config.train.steps", "--config.train.steps=VALUE")),
    (f"{TRAIN} --config.model=3", 2, ("config.model", "section", "depth")),
    (f"{TRAIN} --config.train.schedule=cosin", 2, ("config.train.schedule", "'cosin'", "cosine", "wsd")),
    (f"{TRAIN} --config.model.backbone=mdit", 2, ("config.model.backbone", "'mdit'", "mmdit", "crossdit")),
    (f"{TRAIN} --config.model.head_size=7", 2, ("192", "config.model.head_size=7", "config.model.depth=4")),
    (f"{TRAIN} --config.data.image_size=15", 2, ("config.data.image_size=15", "config.model.patch_size=4")),
    (
        f"{TRAIN} --config.train.batch_size=33 --config.train.accumulate=2",
        2,
        ("config.train.batch_size=33", "config.train.accumulate=2"),
    ),
    (f"{TRAIN} --config.train.ema_decay=1.0", 2, ("config.train.ema_decay", "1.0", "[0, 1)")),
    (f"{TRAIN} --config.timestep_shift=0", 2, ("config.timestep_shift", "0.0", "between 0")),
    (
        f"{TRAIN} --config.model.backbone=dit --config.model.weight_sets=3",
        2,
        ("config.model.weight_sets", "3", "config.model.backbone=dit", "2", "mmdit"),
    ),
    (
        f"{TRAIN} --config.model.backbone=uvit --config.model.patch_size=1",
        2,
        ("config.model.patch_size", "1", "config.model.backbone=uvit", "power of two"),
    ),
    (
        f"{TRAIN} --config.model.dual_attention_blocks=4",
        2,
        ("config.model.dual_attention_blocks=4", "config.model.depth=4"),
    ),
    (
        f"{TRAIN} --config.model.weight_sets=3",
        2,
        ("config.model.first_text_tokens=77", "16", "config.model.weight_sets=3"),
    ),
    (
        f"{TRAIN} --config.data.prepared.path=there",
        2,
        ("config.data.prepared.path", "'there'", "shapes", "config.data.corpus=prepared"),
    ),
    (f"{TRAIN} --config.data.corpus=prepared", 2, ("config.data.corpus", "prepared", "config.data.prepared.path")),
    (
        f"{TRAIN} --config.data.corpus=digits --config.data.context_tokens=7",
        2,
        ("config.data.context_tokens", "7", "digits", "16", "config.data.corpus=random"),
    ),
    (
        f"{TRAIN} --config.train.together=2 --config.train.accumulate=2",
        2,
        ("config.train.accumulate", "2", "config.train.together", "1"),
    ),
    (f"{TRAIN} --config.evaluation.weights=emma", 2, ("config.evaluation.weights", "'emma'", "ema", "raw")),
    (
        f"{TRAIN} --config.evaluation.ranking.samplers=25x5",
        2,
        ("config.evaluation.ranking.samplers", "'25x5'", "25@5"),
    ),
    (
        f"{TRAIN} --config.evaluation.validation.examples=0",
        2,
        ("config.evaluation.validation.examples", "0", "config.evaluation.geneval.prompts_per_task", "40"),
    ),
    (f"{TRAIN} --config.formulation=rf/lognrm", 2, ("'rf/lognrm'", "rf/lognorm(0.00,1.00)", "edm(-1.20,1.20)")),
    (f"{TRAIN} --config.mesh.data=3", 2, ("config.mesh.data=3", "3", "1", "-1")),
    (f"{TRAIN} --config.mesh.tensor=2", 2, ("config.mesh.tensor=2", "config.mesh.data=-1", "2", "1")),
    (f"{TRAIN} --config.train.attention=splash", 2, ("config.train.attention", "'splash'", "cpu", "xla", "auto")),
)

RUNS: tuple[Row, ...] = (
    (f"{TRAIN} --lost-after=1", 2, ("--lost-after", "1", "5")),
    (f"{TRAIN} --processes=2", 2, ("--processes", "--coordinator", "--process-id")),
    (f"{TRAIN} --init={{tmp}}/nowhere", 2, ("--init={tmp}/nowhere", "RUN@STEP")),
    (
        f"{TRAIN} --init={{run}}@7 --config.model.depth=1 --config.model.hidden=64",
        2,
        ("--init={run}@7", "step 7", "has 1"),
    ),
    (f"{TRAIN} --init={{run}}", 2, ("--init={run}", "config.model.depth", "config.model.hidden", "64", "192")),
    ("train --config=configs/shapes.py", 2, ("--workdir",)),
    ("train --config=configs/shape.py --workdir={new}", 2, ("configs/shape.py", "configs/shapes.py")),
    ("train --config={tmp}/failing.py --workdir={new}", 2, ("failing.py", "get_config", "ZeroDivisionError")),
    ("train --config={tmp}/no_config.py --workdir={new}", 2, ("no_config.py", "get_config()", "ConfigDict")),
    (
        "train --config=configs/shapes.py --workdir={run}",
        2,
        ("{run}", "config.model.depth", "config.model.hidden", "config.train.steps", "config.name"),
    ),
    ("trian --config=configs/shapes.py --workdir={new}", 2, ("'trian'", "train")),
    ("train --config=configs/shapes.py --workdri={new}", 2, ("--workdri", "--workdir")),
    (f"study {STUDY} --point=stps5", 2, ("'stps5'", "steps5", "steps3")),
    (f"study {STUDY} --config.train.steps=5", 2, ("steps3", "steps5", "--config", "--point")),
    (f"study {STUDY} --collect", 2, ("{new}", "--collect")),
    ("study --config={tmp}/bad_point.py --workdir={new}", 2, ("config.train.stpes", "config.train.steps")),
    (f"{PLAN} --target=v9-128", 2, ("--target", "v9-128", "v5p-256")),
    (f"{PLAN}", 2, ("--target",)),
    (f"{PLAN} --target=v5p-256 --point=depth16", 2, ("'depth16'", "depth15", "depth18")),
    ("bench --config={tmp}/study.py --point=steps7", 2, ("'steps7'", "steps3", "steps5")),
    (f"{TASKS}", 2, ("--on",)),
    (f"{TASKS} --on=slrum", 2, ("--on", "'slrum'", "slurm")),
    (f"{TASKS} --on=slurm", 2, ("--gpus-per-node", "--on=slurm", "0")),
    (f"{TASKS} --on=slurm --gpus-per-node=0 --zone=here", 2, ("--zone", "--on=tpu-vm", "--on=slurm")),
    (f"{TASKS} --on=slurm --gpus-per-node=0 --point=steps7", 2, ("'steps7'", "steps3", "steps5")),
    (f"{TASKS} --on=tpu-vm --accelerator=v4-8 --zone=here", 2, ("--workdir", "--on=tpu-vm")),
    (f"{TASKS} --on=gke --accelerator=v4-8", 2, ("--image", "--on=gke")),
    (f"{TASKS} --on=gke --accelerator=v4-8 --image=i --volume=disk", 2, ("--volume", "'disk'", "pvc:", "gs://")),
)

USES: tuple[Row, ...] = (
    ("eval {tmp}/nowhere", 2, ("{tmp}/nowhere", "config.json", "--workdir")),
    (
        "eval {run} --sampling-steps=5,10 --mlperf-levels={tmp}/levels",
        2,
        ("--sampling-steps", "--mlperf-levels", "one at a time"),
    ),
    ("eval {run} --sampling-steps=five,10", 2, ("--sampling-steps", "'five,10'", "5,10,20,50")),
    ("eval {run} --weights=emma", 2, ("--weights", "'emma'", "ema", "raw")),
    ("eval {run} --config.model.depth=2", 2, ("config.model.depth", "{run}", "config.evaluation.")),
    ("sample {run}", 2, ("--prompt", "--prompts")),
    ("sample {run} --prompt=square --prompts={tmp}/prompts.jsonl", 2, ("--prompt", "--prompts")),
    ("sample {run} --prompt=square --latent-size=16", 2, ("--latent-size", "'16'", "40x24")),
    (
        "sample {run} --prompt=square --latent-size=15x15",
        2,
        ("--latent-size=15x15", "config.model.patch_size=4", "16x16"),
    ),
    ("sample {run} --prompt=square --encoders=clip_l", 2, ("--encoders", "clip_l", "shapes")),
    ("sample {run} --prompt=square --samples=0", 2, ("--samples", "0", "1")),
    ("export {run} --format=plain --out={new} --config.model.depth=2", 2, ("export", "--config.model.depth")),
    ("export {run} --format=onnx --out={new}", 2, ("--format", "'onnx'", "diffusers", "sd3", "plain")),
    (
        "export {run} --format=sd3 --out={new}.safetensors",
        2,
        ("config.model.head_size", "32", "64", "--format diffusers", "--format plain"),
    ),
    ("export {run} --format=diffusers --pipeline --out={new}", 2, ("config.data.corpus", "shapes", "--pipeline")),
    ("export {run} --format=plain --out={new} --step=7", 2, ("step 7", "has 1")),
    ("export {run} --format=plain --out={tmp}/empty", 2, ("{tmp}/empty", "--out")),
    ("export {run} --format=plain --out={new} --max-shard-gb=0", 2, ("--max-shard-gb", "0")),
    ("export {tmp}/nowhere --format=plain --out={new}", 2, ("{tmp}/nowhere", "config.json")),
    ("import {tmp}/empty --out={new}", 2, ("{tmp}/empty", "safetensors")),
    ("import {tmp}/empty --out={run}", 2, ("{run}", "--out")),
    ("import {tmp}/text.safetensors --out={new}", 1, ("{tmp}/text.safetensors", "safetensors file")),
)

TABLES: tuple[Row, ...] = (
    ("fit {tmp}/nowhere.csv", 2, ("{tmp}/nowhere.csv", "CSV")),
    ("fit {tmp}/no_loss.csv", 2, ("'loss'", "flops")),
    ("fit {tmp}/no_cost.csv", 2, ("flops", "params", "images")),
    ("fit {tmp}/words.csv", 2, ("loss", "line 3", "{tmp}/words.csv", "'low'")),
    ("fit {tmp}/twice.csv", 2, ("'a'", "lines 2, 3")),
    ("fit {tmp}/negative.csv", 2, ("loss", "'b'", "line 3", "-1")),
    ("fit {tmp}/wide.csv", 2, ("line 3", "{tmp}/wide.csv", "4", "3")),
    ("fit {tmp}/empty.csv", 2, ("{tmp}/empty.csv", "empty")),
    ("fit {tmp}/empty", 2, ("{tmp}/empty", "table.json", "--collect")),
    ("fit {tmp}/few.csv --law=cubic", 2, ("--law", "'cubic'", "power", "parametric")),
    ("fit {tmp}/few.csv --law=broken", 2, ("broken", "3", "7")),
    ("fit {tmp}/few.csv --law=parametric", 2, ("'params'", "'images'", "flops")),
    ("fit {tmp}/few.csv --resamples=10", 2, ("--resamples", "10", "100")),
    ("fit {tmp}/few.csv --budget=-1", 2, ("--budget", "-1", "positive")),
    ("fit {tmp}/few.csv --loss=l1 --delta=0.1", 2, ("--delta", "--loss l1")),
    ("fit {tmp}/few.csv --metric=score", 2, ("'score'", "run, loss, flops")),
    ("fit {tmp}/few.csv --rename=params=Model", 2, ("'Model'", "'params'", "run, loss, flops")),
    ("report {tmp}/nowhere", 2, ("{tmp}/nowhere",)),
    ("report {tmp}/empty", 2, ("{tmp}/empty",)),
    (f"{SCORED}/nowhere.jsonl --detections={{tmp}}/found.jsonl", 2, ("{tmp}/nowhere.jsonl",)),
    (f"{SCORED}/prompts.jsonl --detections={{tmp}}/broken.jsonl", 2, ("{tmp}/broken.jsonl:1", "JSON")),
    (f"{SCORED}/misspelt.jsonl --detections={{tmp}}/found.jsonl", 2, ("{tmp}/misspelt.jsonl:1", "'tga'", "tag")),
    (f"{SCORED}/prompts.jsonl --detections={{tmp}}/beyond.jsonl", 2, ("beyond.jsonl:1", "prompt_index", "5", "1")),
    (f"{SCORED}/prompts.jsonl --detections={{tmp}}/found.jsonl", 2, ("found.jsonl", "1", "--allow-missing")),
    (
        f"{SCORED}/prompts.jsonl --detections={{tmp}}/found.jsonl --threshold=2",
        2,
        ("threshold", "2.0", "[0, 1]"),
    ),
    ("score {tmp}/nowhere --metric=geneval", 2, ("--metric=geneval", "--detector")),
    ("score {tmp}/empty --metric=cmmd", 2, ("--metric=cmmd", "--reference")),
    ("score {tmp}/empty --metric=fid", 2, ("--metric", "'fid'", "fid-inception")),
    ("score {tmp}/nowhere --metric=compbench", 2, ("{tmp}/nowhere",)),
    ("prepare {tmp}/nowhere --out={new} --models={tmp}/empty", 2, ("{tmp}/nowhere", "folder:", "parquet:")),
    ("prepare {tmp}/empty --out={new} --models={tmp}/empty", 2, ("{tmp}/empty", ".png")),
    ("prepare {tmp}/empty --out={new}", 2, ("--models",)),
    ("prepare {tmp}/empty --out={new} --models={tmp}/empty --task=3/2", 2, ("--task", "'3/2'", "0/8")),
    ("duplicates {tmp}/nowhere --out={new}.tsv", 2, ("{tmp}/nowhere", "folder:")),
    ("duplicates {tmp}/empty --out={new}.tsv --threshold=2", 2, ("--threshold", "2.0", "(0, 1]")),
    ("recaption {tmp}/nowhere --out={new} --model={tmp}/empty", 2, ("{tmp}/nowhere", "folder:")),
    ("recaption {tmp}/empty --out={new} --model={tmp}/empty --beams=0", 2, ("--beams", "0", "1")),
    ("inspect {tmp}/nowhere", 2, ("{tmp}/nowhere", "manifest.json", "prepare")),
)

ROWS: tuple[Row, ...] = FIELDS + RUNS + USES + TABLES
