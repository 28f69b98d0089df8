import json

import pytest

from m1jax.errors import UserError
from m1jax.evaluate import forms, tasks
from m1jax.evaluate.choice import most_likely, most_likely_per_byte
from m1jax.evaluate.items import Item, sample

BY_NAME = {task.name: task for task in tasks.TASKS}
GOOD = {"question": "Which drug?", "options": "A. aspirin\nB. ibuprofen\nC. heparin", "answer": "B. ibuprofen"}
ABSTRACT = {"question": "does it work?", "passage": "Context (1): We tried.\nContext (2): It did.\n", "answer": "maybe"}


def write(folder, task, lines):
    path = folder / BY_NAME[task].source
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))


def test_lettered_items_become_clozes_without_letters(tmp_path):
    write(tmp_path, "medqa", [GOOD])
    (item,) = tasks.load(BY_NAME["medqa"], tmp_path).items
    assert item == Item("medqa/1", "Which drug?", ("aspirin", "ibuprofen", "heparin"), 1, "medqa")
    assert forms.text_before(item) == "Question: Which drug?\nAnswer:"
    assert item.text == "Which drug?\naspirin\nibuprofen\nheparin"


def test_boolq_is_asked_about_its_passage(tmp_path):
    record = {"question": "does it work", "passage": "We tried. It did.", "answer": "False", "title": "It"}
    write(tmp_path, "boolq", [record, {**record, "answer": "maybe"}, {**record, "question": " "}])
    loaded = tasks.load(BY_NAME["boolq"], tmp_path)
    (item,) = loaded.items
    assert forms.text_before(item) == "Context: We tried. It did.\nQuestion: does it work?\nAnswer:"
    assert (item.choices, item.answer, item.kind) == (("yes", "no"), 1, "boolq")
    assert dict(loaded.reasons) == {"the answer 'maybe' is none of yes, no": 1, "an empty question": 1}


def test_a_stray_quotation_mark_and_spaces_around_options_do_no_harm(tmp_path):
    write(
        tmp_path, "medqa", [{**GOOD, "options": 'A.  aspirin\nB. ibuprofen \nC. heparin\n"', "answer": "A. aspirin "}]
    )
    (item,) = tasks.load(BY_NAME["medqa"], tmp_path).items
    assert item.choices == ("aspirin", "ibuprofen", "heparin")
    assert item.answer == 0


def test_pubmedqa_reads_its_abstract_first(tmp_path):
    write(tmp_path, "pubmedqa", [ABSTRACT])
    (item,) = tasks.load(BY_NAME["pubmedqa"], tmp_path).items
    assert forms.text_before(item) == "Context: We tried. It did.\nQuestion: does it work?\nAnswer:"
    assert (item.choices, item.answer) == (("yes", "no", "maybe"), 2)
    assert "We tried. It did." in item.text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        ({"question": "?", "options": "A. a\nB. b"}, "no field 'answer'"),
        ({**GOOD, "question": " "}, "an empty question"),
        ({**GOOD, "question": 3}, "not a text"),
        ({**GOOD, "question": "half \ud83d"}, "not UTF-8"),
        ({**GOOD, "answer": ""}, "none of the options"),
        ({**GOOD, "answer": "B. aspirin"}, "none of the options"),
        ({**GOOD, "answer": "Z. ibuprofen"}, "none of the options"),
        ({**GOOD, "options": "A. aspirin\nC. heparin"}, "option 2"),
        ({**GOOD, "options": "A. aspirin\nB. "}, "option 2"),
        ({**GOOD, "options": ""}, "option 1"),
    ],
)
def test_a_malformed_line_is_set_aside_named_and_counted(tmp_path, line, reason):
    write(tmp_path, "mmlu-medical", [GOOD, line, b"", {**GOOD, "question": "Another?"}])
    loaded = tasks.load(BY_NAME["mmlu-medical"], tmp_path)
    assert [item.id for item in loaded.items] == ["mmlu-medical/1", "mmlu-medical/4"]
    (fault,) = loaded.set_aside
    assert fault.place == "MMLU/clinical.jsonl:2"
    assert reason in fault.reason


def test_an_answer_beyond_the_labels_is_malformed(tmp_path):
    write(tmp_path, "pubmedqa-artificial", [{**ABSTRACT, "answer": "yes"}, ABSTRACT])
    loaded = tasks.load(BY_NAME["pubmedqa-artificial"], tmp_path)
    assert loaded.items[0].choices == ("yes", "no")
    assert loaded.reasons == [("the answer 'maybe' is none of yes, no", 1)]


def test_a_repeated_line_counts_once(tmp_path):
    write(tmp_path, "medqa", [GOOD, GOOD, {**GOOD, "question": "Another?"}, GOOD])
    loaded = tasks.load(BY_NAME["medqa"], tmp_path)
    assert [item.id for item in loaded.items] == ["medqa/1", "medqa/3"]
    assert loaded.reasons == [("a repeated question", 2)]


def test_a_missing_file_and_a_file_without_items_are_named(tmp_path):
    with pytest.raises(UserError, match=r"MedQA/test\.jsonl.*m1 corpus"):
        tasks.load(BY_NAME["medqa"], tmp_path)
    with pytest.raises(UserError, match=r"MedQA/test\.jsonl"):
        list(tasks.item_texts(tmp_path))
    write(tmp_path, "medqa", [b"{"])
    with pytest.raises(UserError, match=r"holds no item of medqa \(1 malformed"):
        tasks.load(BY_NAME["medqa"], tmp_path)


def test_item_texts_give_question_context_and_choices_of_every_task(tmp_path):
    for task in ("medqa", "mmlu-medical"):
        write(tmp_path, task, [{**GOOD, "question": f"{task}?"}])
    for task in ("pubmedqa", "pubmedqa-artificial"):
        write(tmp_path, task, [{**ABSTRACT, "question": f"{task}?", "answer": "yes"}])
    write(tmp_path, "boolq", [{"question": "boolq", "passage": "They tried.", "answer": "True", "title": "A trial"}])
    texts = list(tasks.item_texts(tmp_path))
    assert {text.split("\n")[0] for text in texts} == {f"{task}?" for task in BY_NAME}
    assert sum("heparin" in text for text in texts) == 2
    assert sum("We tried." in text for text in texts) == 2


def test_metrics_differ_where_a_choice_is_long():
    item = Item("x", "?", ("no", "not at all"), 0)
    assert most_likely(item, [-4.0, -10.0]) == 0
    assert most_likely_per_byte(item, [-4.0, -10.0]) == 1
    assert most_likely(item, [-4.0, -4.0]) == 0
    # Bytes, not characters: 肺炎 has six.
    chinese = Item("x", "?", ("肺炎", "flu!"), 0)
    assert most_likely_per_byte(chinese, [-5.0, -4.0]) == 0


def test_a_sample_is_seeded_ordered_and_without_repeats():
    items = [Item(str(index), "?", ("a", "b"), 0) for index in range(100)]
    drawn = sample(items, 10, seed=1)
    assert drawn == sample(items, 10, seed=1)
    assert drawn != sample(items, 10, seed=2)
    assert len({item.id for item in drawn}) == 10
    assert [int(item.id) for item in drawn] == sorted(int(item.id) for item in drawn)
    assert drawn != items[:10]
    assert sample(items, None) == sample(items, 1000) == items
    with pytest.raises(UserError, match="at least 1"):
        sample(items, 0)
