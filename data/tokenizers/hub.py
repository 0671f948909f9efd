"""The files beside a `tokenizer.json`: settings, added tokens and chat templates, read as transformers reads them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.generation import read_generation
from data.tokenizers.library import Library, import_tokenizers
from store.files import read_json_object, read_text

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
SETTINGS_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
FILES = (TOKENIZER_FILE, TEMPLATE_FILE, SETTINGS_FILE, MAP_FILE, ADDED_FILE, "generation_config.json")
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
DECODER = "added_tokens_decoder"


class Folder(NamedTuple):
    """What stands beside a `tokenizer.json`.

    `settings`: of the tokenizer; `generation`: of generation_config.json and config.json; `templates`: jinja chat
    templates by name; `files`: all files that are the tokenizer's, by path in the folder, as bytes.
    """

    path: Path
    settings: Mapping[str, Any]
    generation: Mapping[str, Any]
    templates: Mapping[str, str]
    files: Mapping[str, bytes]


def read_folder(path: Path) -> Folder:
    """Returns what a Hub folder says about its tokenizer; ValueError that names a broken file."""
    settings = read_settings(path)
    names = [*FILES, *(str(file.relative_to(path)) for file in _named_templates(path))]
    files = {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
    return Folder(path, settings, read_generation(path), read_templates(path, settings), files)


def read_settings(path: Path) -> dict[str, Any]:
    """Returns tokenizer_config.json with special_tokens_map.json, which wins where the former lists no added tokens."""
    settings, older = _merged(path, [SETTINGS_FILE]), _merged(path, [MAP_FILE])
    if DECODER in settings:
        return older | settings
    return settings | older


def read_templates(path: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the chat templates by name, that of a single one being `default`; files win over the settings."""
    files = {file.name.removesuffix(".jinja"): read_text(file) for file in _named_templates(path)}
    if (path / TEMPLATE_FILE).is_file():
        files["default"] = read_text(path / TEMPLATE_FILE)
    if files:
        return files
    found = settings.get("chat_template")
    if found is None or isinstance(found, str):
        return {"default": found} if found else {}
    if isinstance(found, Mapping):
        return dict(found)
    try:
        return {entry["name"]: entry["template"] for entry in found}
    except (TypeError, KeyError):
        raise ValueError(
            f"{path / SETTINGS_FILE}: chat_template is a text or a list of objects with name and template, found"
            f" {str(found)[:80]}"
        ) from None


def roles_of(settings: Mapping[str, Any]) -> list[str]:
    """Returns the names of control tokens: the usual ones, then a model's own (`image_token`)."""
    own = [name for name in settings if name.endswith("_token") and name not in ROLES]
    return [role for role in (*ROLES, *own) if content_of(settings.get(role))]


def special_tokens_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the texts of the control tokens by role."""
    texts = {role: str(content_of(settings[role])) for role in roles_of(settings)}
    extra = settings.get("extra_special_tokens")
    named = extra if isinstance(extra, Mapping) else {}
    return texts | {role: str(content_of(token)) for role, token in named.items()}


def content_of(token: Any) -> str | None:
    """Returns the text of a token, which may be an object with its flags; None for what is no token."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def add_tokens(library: Library, folder: Folder) -> None:
    """Adds the tokens that stand in the settings and not in tokenizer.json; warns where one has another id than said.

    Those of `added_tokens_decoder` come in the order of their ids, then those with a role (but eos, which a model
    must have learnt), then `additional_special_tokens`.
    """
    known = library.added()
    same = {repr(token) for token in known.values()}
    listed = _listed(folder, known)
    tokens = [token for token in listed.values() if repr(token) not in same]
    texts = {token.content for token in [*known.values(), *tokens]}
    named = special_tokens_of(folder.settings)
    for role, text in [*named.items(), *(("", text) for text in _extra(folder.settings))]:
        if text not in texts and (role != "eos_token" or library.id_of(text) is not None):
            tokens.append(_token(folder.settings.get(role), text, special=True))
            texts.add(text)
    for token in tokens:
        token.special = token.special or token.content in named.values()
    if tokens:
        library.add(tokens)
    _tell_moved(library, folder, listed)


def _tell_moved(library: Library, folder: Folder, listed: Mapping[int, Any]) -> None:
    """Warns of tokens whose ids are not those they were listed with."""
    moved = {index: token.content for index, token in listed.items() if library.id_of(token.content) != index}
    if moved:
        index, text = next(iter(moved.items()))
        warnings.warn(
            f"{folder.path / SETTINGS_FILE} gives {text!r} the id {index}, but after tokenizer.json it is"
            f" {library.id_of(text)}, as in transformers; so it is with {len(moved)} tokens",
            stacklevel=2,
        )


def _listed(folder: Folder, known: Mapping[int, Any]) -> dict[int, Any]:
    """The tokens that the settings list, by the ids they have there: `added_tokens_decoder`, or added_tokens.json.

    The latter, older file says nothing new of tokens that tokenizer.json has, and those are special that have a role.
    """
    found: dict[int, Any] = {}
    listed = folder.settings.get(DECODER)
    if listed is None and ADDED_FILE in folder.files:
        special = {*special_tokens_of(folder.settings).values(), *_extra(folder.settings)}
        texts = {token.content for token in known.values()}
        older = read_json_object(folder.path / ADDED_FILE).items()
        flags = {text: {"special": text in special, "normalized": text not in special} for text, _ in older}
        listed = {index: {"content": text, **flags[text]} for text, index in older if text not in texts}
    for index, token in dict(listed or {}).items():
        text = content_of(token)
        if not (isinstance(token, Mapping) and text and str(index).isdecimal()):
            raise ValueError(
                f"{folder.path / SETTINGS_FILE}: {DECODER} holds ids and objects with the content of a token, found"
                f" {index!r}: {token!r}"
            )
        found[int(index)] = _token(token, text, special=False)
    return dict(sorted(found.items()))


def _token(token: Any, text: str, special: bool) -> Any:
    flags = {name: token[name] for name in FLAGS if name in token} if isinstance(token, Mapping) else {}
    return import_tokenizers().AddedToken(text, **({"special": special} | flags))


def _extra(settings: Mapping[str, Any]) -> list[str]:
    """The further special tokens, which have no role."""
    found = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    tokens: Sequence[Any] = found if isinstance(found, Sequence) and not isinstance(found, str) else []
    return [text for text in map(content_of, tokens) if text]


def _named_templates(path: Path) -> list[Path]:
    return sorted((path / TEMPLATE_FOLDER).glob("*.jinja"))


def _merged(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in names:
        if (folder / name).is_file():
            merged.update(read_json_object(folder / name))
    return merged
