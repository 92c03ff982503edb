"""Question files, the rules by which answers become scores, and the names and columns of those scores."""

import json
import math

import pytest

from rfjax.errors import ConfigError
from rfjax.results import columns
from rfjax.scorers import answer_rules, answered_images, model_names, questions
from rfjax.scorers.questions import Prompt, Question, match, of_caption, read_dpg, read_geneval2

GENEVAL2 = {
    "prompt": "four white bicycles in front of three plastic cows",
    "atom_count": 7,
    "vqa_list": [["How many bicycles are in the image?", "four"], ["Are the bicycles white?", "Yes"]],
    "skills": ["count", "attribute"],
}
DPG = """\
item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
cows,"a field, with cows",,1,0,entity,whole,entity - whole (field),Is there a field?
cows,"a field, with cows",,2,0,entity,whole,entity - whole (cows),Are there cows?
cows,"a field, with cows",,3,"1, 2",relation,spatial,"relation - spatial (cows, field, in)",Are the cows in the field?
cows,"a field, with cows",,4,3,attribute,color,"attribute - color (field, green)",Is the field green?
car,a red car,,1,0,entity,whole,entity - whole (car),Is there a car?
"""


def dpg(tmp_path, text=DPG):
    (tmp_path / "dpg.csv").write_text(text)
    return read_dpg(tmp_path / "dpg.csv")


def test_geneval2s_questions_and_the_answers_that_count(tmp_path):
    """Catches the digits of a number forgotten, digits for a yes, and a question without "Answer in one word."."""
    (tmp_path / "a.jsonl").write_text(json.dumps(GENEVAL2) + "\n\n")
    (prompt,) = read_geneval2(tmp_path / "a.jsonl").values()
    count, white = prompt.questions
    assert count.text == "How many bicycles are in the image? Answer in one word." and count.category == "count"
    assert set(count.answer) == {"four", "Four", " four", " Four", "4", " 4"}
    assert set(white.answer) == set(questions.YES) and prompt.atoms == 7


def test_dpgs_questions_have_parents_and_categories(tmp_path):
    """Catches a dependency of 0 taken for a question, several parents read as one, and the category of the wrong
    column."""
    prompts = dpg(tmp_path)
    cows = prompts["a field, with cows"]
    assert [question.parents for question in cows.questions] == [(), (), (1, 2), (3,)] and cows.key == "cows"
    assert [question.category for question in cows.questions] == ["entity", "entity", "relation", "attribute"]
    assert cows.questions[0].text == "Is there a field? Please answer yes or no."


def test_vqascores_question():
    assert of_caption("a cat").questions[0].text == 'Does this figure show "a cat"? Please answer yes or no.'


def changed(**values):
    return json.dumps(GENEVAL2 | values)


@pytest.mark.parametrize(
    "text, said",
    [
        (json.dumps(GENEVAL2) + "\n" + "[1]", "a.jsonl:2: "),
        (changed(skills=["count"]), "a.jsonl:1: 1 skills for 2 questions"),
        (changed(vqa_list=[["How many?"]], skills=["count"]), "a.jsonl:1: vqa_list has no pairs"),
        (changed(atom_count="x"), "a.jsonl:1: "),
        (json.dumps(GENEVAL2) + "\n" + json.dumps(GENEVAL2), "a.jsonl:2: the prompt 'four white"),
        ("\n", "a.jsonl: no questions"),
    ],
)
def test_a_line_of_geneval2_that_is_not_as_expected_is_named(tmp_path, text, said):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_geneval2(tmp_path / "a.jsonl")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("item_id,", "id,", "dpg.csv:1: no column item_id"),
        ('3,"1, 2"', '3,"1, 7"', "dpg.csv:4: its dependency 7 is no question of 'cows'"),
        (",,2,0,entity", ",,1,0,entity", "dpg.csv:3: proposition_id 1 twice"),
        (",,2,0,", ",,2,none,", "dpg.csv:3: proposition_id '2' and dependency 'none'"),
        ("Is there a car?", "", "dpg.csv:6: an empty question"),
        (",Is there a car?", "", "dpg.csv:6: another number of values"),
        ("car,a red car", 'car,"a field, with cows"', "a second time"),
    ],
)
def test_a_line_of_dpg_that_is_not_as_expected_is_named(tmp_path, old, new, said):
    assert old in DPG
    with pytest.raises(ConfigError) as error:
        dpg(tmp_path, DPG.replace(old, new))
    assert said in str(error.value)


YES, NO = (0.9, 0.1), (0.2, 0.7)


@pytest.mark.parametrize(
    "answers, score",
    [
        ((YES, YES, YES, YES), 1.0),
        ((YES, YES, NO, YES), 0.5),  # the relation is wrong: what depends on it is, too
        ((NO, YES, YES, YES), 0.25),  # no field: no relation, and so no colour
        ((YES, YES, YES, NO), 0.75),
        ((NO, NO, YES, YES), 0.0),
        (((0.1, 0.05), YES, YES, YES), 1.0),  # yes is likelier than no, though both are unlikely
        (((0.3, 0.3), YES, YES, YES), 0.25),  # a tie is no yes
    ],
)
def test_in_dpg_parents_gate_their_children(tmp_path, answers, score):
    """Catches children counted without their parents, gates that do not reach grandchildren, one of two parents that is
    enough, and P(yes) compared with a half instead of with P(no)."""
    prompt = dpg(tmp_path)["a field, with cows"]
    assert answer_rules.gated(prompt, answers) == {"overall": score}
    named = answer_rules.items_of("dpg", prompt, answers)
    assert [value for item, value in named if item == "attribute"] == [float(answers[3] is YES)]  # not gated


def test_soft_tifa_has_two_means():
    """By hand: of 0.9 and 0.4, 0.65 and 0.6. Catches the two exchanged, a product in place of its root, a product that
    underflows, and a zero that raises."""
    prompt = Prompt("p", (Question("a", category="count"), Question("b", category="Object")), atoms=3)
    found = dict(answer_rules.items_of("geneval2", prompt, ((0.9, 0.0), (0.4, 0.0))))
    expected = {"overall": 0.6, "am": 0.65, "atoms_3": 0.6, "count": 0.9, "object": 0.4}
    assert found == pytest.approx(expected)
    assert answer_rules.soft_tifa(prompt, ((0.0, 0.0), (0.5, 0.0))) == {"overall": 0.0, "am": 0.25, "atoms_3": 0.0}
    many = Prompt("p", tuple(Question(str(i)) for i in range(500)))
    assert answer_rules.soft_tifa(many, [(1e-3, 0.0)] * 500)["overall"] == pytest.approx(1e-3)


def test_a_summary_is_over_images_and_its_error_over_prompts(tmp_path):
    """Three images of two prompts. Catches a mean over prompts or questions, images of one prompt counted as
    independent, and categories that are means of means."""
    prompts = dpg(tmp_path)
    cows, car = prompts["a field, with cows"], prompts["a red car"]
    pairs = {"0.png": cows, "1.png": cows, "2.png": car}
    answers = {"0.png": (YES, YES, NO, NO), "1.png": (YES, YES, YES, YES), "2.png": (NO,)}
    values = {value.item: value for value in answered_images.summarise("dpg", pairs, answers)}
    overall = values["overall"]
    assert overall.value == pytest.approx((0.5 + 1 + 0) / 3) and overall.n == 3 and overall.metric == "dpg"
    assert overall.stderr == pytest.approx(math.sqrt(2 * 2 * 0.5**2) / 3)  # residuals by prompt: 0.5 and -0.5
    assert values["entity"].value == pytest.approx(4 / 5) and values["entity"].n == 5
    assert values["relation"].value == 0.5


def test_images_are_matched_by_their_captions(tmp_path):
    """Catches images of another benchmark, and a score over the prompts that happen to have images."""
    prompts, file = dpg(tmp_path), tmp_path / "dpg.csv"
    with pytest.raises(ConfigError, match="the caption of a.png, 'a blue car', is no prompt of"):
        match(prompts, {"a.png": "a blue car"}, file=file, allow_missing=True)
    with pytest.raises(ConfigError, match="1 of 2 prompts of .* have no image, 'a field, with cows' first"):
        match(prompts, {"a.png": "a red car"}, file=file, allow_missing=False)
    pairs, missing = match(prompts, {"a.png": " a red car\n"}, file=file, allow_missing=True)
    assert pairs["a.png"].key == "car" and missing == ["a field, with cows"]


def test_only_the_published_model_has_the_bare_name():
    """Catches two models under one name, and a column whose model cannot be told from its item."""
    names = {
        model_names.named_by("vqascore", model, sha, False)
        for model, sha in (("LLaVA_1.5 7B", "a" * 64), ("LLaVA_1.5 7B", "b" * 64), ("qwen", "a" * 64))
    }
    assert names == {
        "vqascore_by_llava-1-5-7b-aaaaaaaa",
        "vqascore_by_llava-1-5-7b-bbbbbbbb",
        "vqascore_by_qwen-aaaaaaaa",
    }
    assert model_names.named_by("geneval2", "x", "a" * 64, True) == "geneval2"
    assert model_names.slug("../__") == "model"
    for evaluation, metric in (("dpg_by_x-1a", "dpg"), ("geneval_by_detr-1a", "geneval"), ("geneval2", "geneval2")):
        for item in ("overall", "atoms_3"):
            measure = columns.Measure(evaluation, metric, item)
            assert columns.Measure.parse(measure.format()) == measure
            assert columns.Measure.parse(measure.format() + "_stderr") is None
    assert columns.Measure("dpg_by_x-1a", "dpg", "am").format() == "dpg_by_x-1a_am"
    assert columns.Measure.parse("geneval_nonsense_overall") is None and columns.Measure.parse("dpg") is None


def test_the_reports_protocols_are_those_of_the_table():
    """Catches a score that is never correlated with the loss, and GenEval's own evaluations taken for a model's."""
    found = columns.protocols(
        ["geneval", "geneval_ceiling", "dpg_by_x-1a", "vqascore", "geneval_by_detr-2b", "validation"]
    )
    own = {name: about for name, about in found.items() if name not in columns.PROTOCOLS}
    assert own == {
        "dpg_by_x-1a": ("dpg", "DPG-Bench by x-1a"),
        "geneval_by_detr-2b": ("geneval", "GenEval with boxes by detr-2b"),
        "vqascore": ("vqascore", "VQAScore"),
    }
