"""Entities are read from archives in the formats of the real sources, verbatim; what they mean together."""

import pytest

from m1jax.text.synthesis import names, order
from m1jax.text.synthesis.graph import Entity, Graph
from m1jax.text.synthesis.ontologies import ONTOLOGIES
from tests import invented


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    found = invented.archives(tmp_path_factory.mktemp("archives"))
    return {o.name: list(o.read(found[o.source.package.name])) for o in ONTOLOGIES}


def of(source):
    return {e.id: e for e in invented.entities(0) if e.source == source}


@pytest.mark.parametrize("source", ["mondo", "uberon", "hpo"])
def test_an_ontology_is_read_as_it_is(read, source):
    found = {e.id: e for e in read[source]}
    assert found.keys() == of(source).keys(), "terms out of use and of animals are left out"
    assert list(found) == sorted(found) or source == "hpo"
    assert found == of(source)


def test_a_definition_that_no_person_wrote_is_left_out(read):
    assert read["cell-ontology"] == [Entity("CL:1", "cell-ontology", {"en": "a cell"})]


def test_annotations_leave_out_what_a_disease_lacks_and_what_is_no_phenotype(read):
    assert {e.id: e for e in read["hpo-annotations"]} == of("hpo-annotations")


def test_icd10cm_keeps_codes_of_five_characters_and_terms_without_codes(read):
    graph = Graph(read["icd10cm"])
    entity = graph.entities["ICD10CM:A12.1"]
    assert (entity.code, entity.parents) == ("A12.1", ("ICD10CM:A12",))
    assert len(entity.inclusions) == 1
    assert entity.inclusions[0].endswith(" NOS")
    assert graph.above("ICD10CM:A12.1") == {"ICD10CM:A12", "ICD10CM:A10-A19", "ICD10CM:A00-A99"}
    assert graph.entities["ICD10CM:A00-A99"].names == {"en": "Ailments"}
    assert not any(len(e.code) > 7 or e.names["en"] == "too long" for e in read["icd10cm"])


def test_icd10_has_names_in_two_languages_below_blocks_and_chapters(read):
    graph = Graph(read["icd10-zh"])
    assert graph.above("ICD10:B03.1") == {"ICD10:B03", "ICD10:B00-B19", "ICD10:c1"}
    assert graph.entities["ICD10:c1"].names == {"en": "Ailments of all", "zh": "各种疾病"}
    assert graph.entities["ICD10:B00-B19"].names == {"en": "Ailments of some", "zh": "某些疾病"}
    assert set(graph.entities["ICD10:B03.1"].names) == {"en", "zh"}


def test_of_the_dictionary_only_nouns_of_one_sense(read):
    found = [(e.names["en"], e.definition) for e in read["gcide-medical"]]
    assert found == [(e.names["en"], e.definition) for e in of("gcide-medical").values()]


def test_names_are_compared_by_words():
    assert names.same_words("Diabetes mellitus, type 2") == names.same_words("type 2 diabetes Mellitus")
    assert names.words("Fractures of the Ribs") == ("fracture", "of", "the", "rib")
    assert names.words("gas 肺炎") == ("gas", "肺", "炎")
    index = names.NameIndex(
        [("rib", "r"), ("rib fracture", "f"), ("fracture", "x"), ("肺炎", "p"), ("", "e"), ("rib", "s")]
    )
    assert sorted(index.owners("Rib-fracture and 慢性肺炎")) == ["f", "p", "r", "s", "x"]
    assert list(index.longest("rib fracture, rib")) == ["f", "r", "s"]
    assert not index.holds("ribose")


def test_chance_is_the_same_everywhere():
    # printf "7\\x1fa\\x1f1" | b2sum -l 64, as a little-endian number, halved
    assert order.number(7, "a", 1) == 2322691040456589417
    assert order.shuffled("abcdef", 7) == order.shuffled("fedcba", 7)
    assert len({"".join(order.shuffled("abcdef", seed)) for seed in range(20)}) > 10
    assert order.number(7, "a", "bc") != order.number(7, "ab", "c")


def test_a_graph_knows_what_is_near_and_what_is_the_same():
    def entity(name, called, *parents, source="mondo", code=""):
        return Entity(name, source, {"en": called}, parents=parents, code=code)

    graph = Graph(
        [
            entity("t", "top"), entity("a", "first", "t"), entity("b", "second", "t"), entity("a1", "one sort", "a"),
            entity("a2", "two sort", "a", "gone"), entity("b1", "three", "b"), entity("z", "SORT, one", source="hpo"),
            entity("y", "four", "b", source="hpo"), entity("c", "five", source="hpo", code="A1"),
            entity("d", "six", source="uberon", code="A1"),
        ]
    )  # fmt: skip
    assert list(graph.neighbours("a1", 0, 10)) == [
        ("a2", "siblings"),
        ("b1", "cousins"),
        ("t", "others"),
        ("a", "others"),
        ("b", "others"),
    ]
    assert graph.concept["a1"] == graph.concept["z"]
    assert graph.concept["c"] == graph.concept["d"]
    assert graph.concepts_above("z") == {graph.concept["a"], graph.concept["t"]}
    assert graph.related("z", "a")
    assert not graph.related("a1", "a2")
    circle = Graph([entity("p", "x", "q"), entity("q", "y", "p")])
    assert circle.above("p") == {"p", "q"}
