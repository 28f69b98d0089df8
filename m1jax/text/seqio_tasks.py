"""seqio at the door: registered tasks are read as documents, and our sources are registered as tasks.

Needs the extra `m1jax[data]`. seqio and TensorFlow are imported when one of these functions runs, never by a training
host, which reads packed rows only.
"""

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from m1jax import artefact
from m1jax.errors import UserError, first_line
from m1jax.text.documents import (
    Document,
    Part,
    Rejected,
    document_files,
    identity,
    read_documents,
    record_name,
    record_number,
)
from m1jax.text.encodings import undecodable
from m1jax.text.records import source_name
from m1jax.tokenizer.seqio_vocabulary import import_seqio

TEXT_FEATURES = ("text", "targets_pretokenized", "targets")
"""Where an example's text is looked for, in this order; a feature of token ids is no text."""
INPUT_FEATURES = ("inputs_pretokenized", "inputs")
"""Where the text before the targets is looked for, in this order; it is read and not learned."""
LANGUAGE = "und"
"""ISO 639 for undetermined: a task does not say its language."""
SPLITS = {"train": "documents", "validation": "heldout"}


def sources(tasks: Mapping[str, str], module: str = "") -> dict[str, Callable[[], Iterator[Document | Rejected]]]:
    """Sources to pack, by name, of registered seqio tasks; a mixture stands for its tasks.

    `tasks` maps names of tasks or mixtures to domains; `module` (a module's name or a .py file) is imported first and
    registers them. Raises UserError for a module that fails, an unknown name, and two tasks that would become the same
    source.
    """
    seqio, _ = import_seqio()
    _import_module(module)
    found: dict[str, Callable[[], Iterator[Document | Rejected]]] = {}
    for name, domain in tasks.items():
        known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
        if name not in known:
            some = ", ".join(sorted(known)[:20]) or "none"
            raise UserError(
                f"seqio task {name!r} is not registered (there are: {some}): name the module that registers it in "
                f"config key data.tasks_module."
            )
        for task in seqio.get_subtasks(seqio.get_mixture_or_task(name)):
            source = source_name(task.name)
            if source in found:
                raise UserError(f"two seqio tasks would be stored as source {source!r}: pack one of them only.")
            found[source] = functools.partial(read_task, task, domain)
    return found


def _import_module(module: str) -> None:
    """Imports a module by its name, or a .py file, once."""
    if not module:
        return
    try:
        if not module.endswith(".py"):
            importlib.import_module(module)
            return
        name = f"m1jax_tasks_{artefact.key(str(Path(module).absolute()))}"
        spec = importlib.util.spec_from_file_location(name, module)
        if name not in sys.modules and spec is not None and spec.loader is not None:
            loaded = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded)
            sys.modules[name] = loaded
    except Exception as error:  # somebody else's code may raise anything
        raise UserError(
            f"config key data.tasks_module: {module} cannot be imported ({type(error).__name__}: {first_line(error)}): "
            f"give the name of a module on the Python path, or a .py file."
        ) from error


def module_state(module: str) -> str:
    """What changes when the module's own file does: its checksum, nothing where there is none."""
    if not module:
        return ""
    if module.endswith(".py"):
        return artefact.checksum(Path(module))
    spec = importlib.util.find_spec(module)
    return artefact.checksum(Path(spec.origin)) if spec and spec.origin and Path(spec.origin).is_file() else module


def read_task(task: Any, domain: str, split: str = "train") -> Iterator[Document | Rejected]:
    """Documents of a seqio.Task's split, in its own order, after its preprocessors and without shuffling.

    The text is the first string among TEXT_FEATURES. Where targets have inputs, the document has two parts: the inputs
    with weight 0, then the targets with weight 1, and nothing between them. `language`, `difficulty` and the record's
    `id` are taken where an example has them. Bytes that are no UTF-8 are yielded as Rejected. Raises UserError where
    the task has no such split or feature, gives its inputs as token ids only, or fails.
    """
    _, tf = import_seqio()
    if split not in task.splits:
        raise UserError(f"seqio task {task.name!r} has no split {split!r} (it has: {', '.join(task.splits)}).")
    name = source_name(task.name)
    try:
        dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
        spec = dataset.element_spec
        strings = {feature for feature, tensor in spec.items() if tensor.dtype == tf.string}
        text, inputs = (
            next((feature for feature in features if feature in strings), None)
            for features in (TEXT_FEATURES, INPUT_FEATURES)
        )
        lacking = TEXT_FEATURES if text is None else INPUT_FEATURES
        if text is None or (text != "text" and inputs is None and "inputs" in spec):
            raise UserError(
                f"seqio task {task.name!r} gives no string feature {' or '.join(lacking)} (it has: "
                f"{', '.join(sorted(spec))}): leave tokenising to `m1 pack`, or tokenise with copy_pretokenized=True."
            )
        for number, example in enumerate(dataset.as_numpy_iterator(), 1):
            yield _document(name, domain, number, example, text, None if text == "text" else inputs)
    except tf.errors.OpError as error:
        raise UserError(f"seqio task {task.name!r} failed ({first_line(error)}): fix the task.") from error


def _document(
    source: str, domain: str, number: int, example: Mapping[str, Any], feature: str, inputs: str | None
) -> Document | Rejected:
    raw = (example[inputs] if inputs else b"") + example[feature]
    place, record_id = identity(source, number), record_name(example.get("id"))
    try:
        prompt = example[inputs].decode() if inputs else ""
        target = example[feature].decode()
    except UnicodeDecodeError:
        return Rejected(place, undecodable(raw), raw[:1000].decode(errors="backslashreplace"), source, record_id)
    language = example.get("language")
    return Document(
        id=place,
        text=prompt + target,
        source=source,
        language=language.decode(errors="replace") if isinstance(language, bytes) else LANGUAGE,
        domain=domain,
        difficulty=record_number(example.get("difficulty")),
        parts=(Part(prompt, weight=0.0), Part(target)) if prompt else (),
        record_id=record_id,
    )


def task_name(source: str) -> str:
    """The name under which a source of a corpus is registered."""
    return "m1_" + re.sub(r"[^\w.]", "_", source, flags=re.ASCII)


def register(corpus: Path) -> dict[str, Any]:
    """Registers every source of a corpus (a folder that `m1 corpus` made) as a seqio.Task and returns them by source.

    An example has the string features `targets`, `id`, `language` and `domain`; the splits are train and, where there
    are held-out documents, validation. Add preprocessors with `task.replace`. Raises UserError where the folder holds
    no documents, or two sources come to the same name.
    """
    seqio, tf = import_seqio()
    feature = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0)
    registered: dict[str, Any] = {}
    for path in document_files(corpus):
        files = {split: corpus / folder / path.name for split, folder in SPLITS.items()}
        name = task_name(path.stem)
        if name in {task.name for task in registered.values()}:
            raise UserError(f"source {path.stem!r} and another one would both be task {name!r}: rename one of them.")
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        registered[path.stem] = seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(
                functools.partial(_dataset, files), splits=[split for split, file in files.items() if file.is_file()]
            ),
            preprocessors=[],
            output_features={"targets": feature},
            metric_fns=[],
        )
    return registered


def _dataset(files: Mapping[str, Path], split: str, shuffle_files: bool, seed: int | None = None) -> Any:
    """A tf.data.Dataset of a split's documents in file order."""
    del shuffle_files, seed
    _, tf = import_seqio()
    string = tf.TensorSpec([], tf.string)

    def examples() -> Iterator[dict[str, str]]:
        for document in read_documents(files[split]):
            fields = {"id": document.id, "language": document.language, "domain": document.domain}
            yield {"targets": document.text, **fields}

    return tf.data.Dataset.from_generator(
        examples, output_signature=dict.fromkeys(("targets", "id", "language", "domain"), string)
    )
