"""Templates are data: the shipped ones are complete, and a user's file is refused in one sentence."""

import json

import pytest

from m1jax.errors import UserError
from m1jax.text.synthesis import templates

OWN = {"id": "mine", "kind": "my kind", "given": "name", "asked": "parent", "form": "text", "questions": ["{given}?"]}
YES_NO = {"form": "yes_no", "questions": ["{given}, {answer}?"], "answers": ["Yes", "No"]}


def test_the_shipped_templates_ask_everything_both_ways():
    shipped = templates.shipped()
    kinds = {template.kind for template in shipped}
    assert kinds == {
        "definition", "term", "synonym", "hierarchy", "is-a", "phenotype", "translation", "standardisation",
        "extraction", "code",
    }  # fmt: skip
    for kind in kinds:
        forms = {template.form for template in shipped if template.kind == kind}
        assert forms & {"choice", "yes_no"}
    asked = {(template.given, template.asked) for template in shipped}
    assert asked >= {
        ("name", "definition"), ("definition", "name"), ("name", "parent"), ("parent", "name"), ("name", "phenotype"),
        ("phenotype", "name"), ("name:en", "name:zh"), ("name:zh", "name:en"), ("name", "code"), ("code", "name"),
    }  # fmt: skip
    assert {template.language for template in shipped} == {"en", "zh"}


def test_own_templates_come_beside_the_shipped(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"templates": [OWN, {**OWN, **YES_NO, "id": "two"}]}))
    assert [template.id for template in templates.with_own(path)[-2:]] == ["mine", "two"]
    assert templates.with_own(None) == templates.shipped()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "is no JSON file"),
        ("[]", "holds no list of templates"),
        ('{"a": 1}', "holds no list of templates"),
        ("[3]", "template 1 must be an object, got 3."),
        ([{**OWN, "questoins": []}], "template 1 (mine) has an unknown field 'questoins': did you mean 'questions'?"),
        ([{k: v for k, v in OWN.items() if k != "form"}], "has no field 'form': add it."),
        ([{**OWN, "form": "essay"}], "form must be one of choice, yes_no, text, list, got 'essay'."),
        ([{**OWN, "asked": "doctor"}], "asked must be one of name, name:en,"),
        ([{**OWN, "given": "mention"}], "given must be one of"),
        ([{**OWN, "language": "fr"}], "language must be one of en, zh"),
        ([{**OWN, "sources": ["mundo"]}], "a source must be one of mondo,"),
        ([{**OWN, "questions": "{given}?"}], "questions must be a list of texts"),
        ([{**OWN, "questions": []}], "questions must be a list of at least one text"),
        ([{**OWN, "questions": ["What?"]}], "question 'What?' lacks {given}"),
        ([{**OWN, "questions": ["{given} {name}?"]}], "holds {name}: only {given} is filled in here."),
        ([{**OWN, "questions": ["{given?"]}], "has a brace that nothing closes"),
        ([{**OWN, "answers": ["yes"]}], "answer 'yes' lacks {answer}"),
        ([{**OWN, "count": 0}], "count must be a whole number of 1 or more, got 0."),
        ([{**OWN, "count": True}], "count must be a whole number"),
        ([{**OWN, "kind": 3}], "kind must be a text, got 3."),
        ([{**OWN, "kind": " "}], "has an empty id or kind"),
        ([{**OWN, "kind": "a/b"}], "the kind 'a/b' is the name of a file"),
        ([{**OWN, "given": "parent"}], "gives what it asks for ('parent')"),
        ([{**OWN, "of": "uberon"}], "`of` belongs to a template that asks for a mention"),
        ([{**OWN, "asked": "mention"}], "`given` must be 'definition'"),
        ([{**OWN, "given": "definition", "asked": "mention"}], "of must be one of mondo,"),
        ([{**OWN, "form": "choice", "choices": 1}], "choices must be 2 or more, got 1."),
        ([{**OWN, "form": "choice", "choices": 30}], "choices must be at most 26, got 30."),
        ([{**OWN, **YES_NO, "answers": ["Yes"]}], "needs two answers, for yes and for no."),
        ([{k: v for k, v in {**OWN, **YES_NO}.items() if k != "answers"}], "has no field 'answers'"),
        ([OWN, OWN], "the id 'mine' is used twice"),
        ([{**OWN, "id": "term-text"}], "the id 'term-text' is that of a shipped template"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, content, said):
    path = tmp_path / "own.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as error:
        templates.with_own(path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="is missing: give a JSON file of templates"):
        templates.with_own(tmp_path / "none.json")
