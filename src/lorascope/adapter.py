"""Saved adapters and their base: where they lie, what they are called, on which base they go, and the stack that results.

Before: directories of PEFT adapters, or of trials that hold one.
After ``agreed_base`` and ``stack_several``: one base that all of them are for, with a slot for each; what differs from the
base that an adapter was trained on is a warning of the base's.

Knows what a base lacks and an adapter must bring. Does not know how files are read (``lora.peft_io``) nor what the adapters
are wanted for. Floor: above ``base_model``, below ``judge`` and ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from lorascope.base_model import HEAD_NAMES, BaseModel, load_tokenizer, tokenizer_difference
from lorascope.config import BaseModelConfig, TaskType, validate
from lorascope.errors import AdapterError, UsageError
from lorascope.lora.beside import has_tokenizer, is_copy
from lorascope.lora.merge_plan import without_copies
from lorascope.lora.peft_io import CONFIG_FILE, SavedAdapter, check_fits
from lorascope.lora.quantised import NF4Linear
from lorascope.lora.stack import Slot, Stack
from lorascope.store import CERTIFICATE_FILE

BASE = "base"
_RUN_IT_MERGED = "merge it, and run the merged model alone: generate or chat with --base, without this adapter"


def adapter_directory(path: Path) -> Path:
    """The adapter's own directory: a trial's stands for the one in it."""
    inner = path / "adapter"
    return inner if not (path / CONFIG_FILE).is_file() and (inner / CONFIG_FILE).is_file() else path


def adapter_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Adapters' own directories by names that tell them apart: their last part, or as many as it takes.

    ``adapter`` is the name of every trial's own directory, so that the trial's comes in its place. Nobody is called ``base``.

    Raises:
        UsageError: one is given twice.
    """
    found = [adapter_directory(path) for path in paths]
    resolved = [path.resolve() for path in found]
    twice = next((path for index, path in enumerate(resolved) if path in resolved[:index]), None)
    if twice is not None:
        raise UsageError("the adapter is given twice", where=str(twice), fix="give it once")
    parts = [path.absolute().parts for path in found]
    parts = [one[:-1] if one[-1:] == ("adapter",) and one[:-1] not in parts else one for one in parts]
    names: dict[str, Path] = {}
    for path, own in zip(found, parts, strict=True):
        others = [one for one in parts if one is not own]
        fitting = (
            size
            for size in range(1, len(own) + 1)
            if own[-size:] != (BASE,) and not any(one[-size:] == own[-size:] for one in others)
        )
        names["/".join(own[-next(fitting, len(own)) :])] = path
    return names


def agreed_base(
    adapters: Mapping[str, SavedAdapter], base: str | None = None, *, dtype: str = "float32", quantization: str | None = None
) -> BaseModelConfig:
    """The base to load for adapters: the one that is given, or the one that all of them name, in the revision that they name.

    Adapters that are put together on one base, and name it in several revisions, get its default one, and a warning
    (``stack_several``). A tokenizer that was saved with them goes before the base's (``own_tokenizer``).

    Args:
        adapters: by the place that an error names.
        base: a model's directory or hub id; with the adapters' revision where it is what they name.

    Raises:
        UsageError: there is neither a base nor an adapter that names one, adapters name different ones or read texts
            differently, or the dtype or the quantisation is unknown.
        AdapterError: the directory that the adapters name is not there.
    """
    model, revision = _named(adapters) if base is None else (base, _revision(adapters, base))
    if (Path(model) / CONFIG_FILE).is_file() and not (Path(model) / "config.json").exists():
        raise UsageError("this is an adapter, no whole model", where=model, fix="give the base that it was trained on")
    values = {"model": model, "dtype": dtype, "quantization": quantization, "revision": revision}
    config: BaseModelConfig = validate(BaseModelConfig, values, "base")
    return config.with_tokenizer(own_tokenizer(adapters, config))


def own_tokenizer(adapters: Mapping[str, SavedAdapter], config: BaseModelConfig) -> Path | None:
    """The directory of the adapter whose tokenizer, chat template included, goes before the base's; None where none has one.

    Trainers save it along, and with it the adapter was trained. Adapters that share a base share its tokenizer too.

    Raises:
        UsageError: two adapters were trained with tokenizers that write texts or conversations differently.
        ModelError: one cannot be loaded.
    """
    own = {where: saved.directory for where, saved in adapters.items() if saved.directory and has_tokenizer(saved.directory)}
    if not own:
        return None
    (first, directory), *_ = own.items()
    if len(adapters) > 1:
        used = load_tokenizer(config.with_tokenizer(directory))
        # One that has none was trained with the base's.
        others = {own.get(where): where for where in adapters if where != first}
        for beside, where in others.items():
            difference = tokenizer_difference(used, load_tokenizer(config.with_tokenizer(beside)))
            if difference is not None:
                whose = "the base's tokenizer" if beside is None else "its tokenizer"
                what = f"{whose} has {difference} than the one that was saved with {first}"
                raise UsageError(what, where=where, fix="give these adapters one at a time")
    return directory


def own_part(saved: SavedAdapter, model: nn.Module) -> SavedAdapter:
    """The adapter less what is the base's own: embeddings and output layers that PEFT saved along and nobody trained.

    Args:
        model: the base, in any dtype.
    """
    own = dict(model.named_parameters(remove_duplicate=False))

    def is_base_s(name: str, value: Tensor) -> bool:
        return name in own and name.partition(".")[0] not in HEAD_NAMES and is_copy(own[name], value)

    return replace(saved, weights=replace(saved.weights, heads=without_copies(saved.weights.heads, is_base_s)))


def form_of_adapter(saved: SavedAdapter, where: str) -> tuple[TaskType, tuple[str, ...]]:
    """As what a base is loaded for an adapter: PEFT's task type, or by what it holds; with a classifier's classes.

    These are its labels, or as many numbers as its last layer has outputs. Texts are CAUSAL_LM on any base
    (``base_model.task_type_of``).

    Raises:
        AdapterError: it is for another kind of model.
    """
    heads = {name: value for name, value in saved.weights.heads.items() if name.partition(".")[0] in HEAD_NAMES}
    kind = saved.task_type or ("SEQ_CLS" if heads else "CAUSAL_LM")
    if kind == "SEQ_CLS":
        widths = [len(value) for value in heads.values() if value.dim() == 2]
        return "SEQ_CLS", saved.labels or tuple(map(str, range(min(widths, default=2))))
    if kind not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        raise AdapterError(f"an adapter for {kind} cannot be run here", where=where, fix="use one for SEQ_CLS or for texts")
    return "CAUSAL_LM", ()


def stack_saved(base: BaseModel, saved: SavedAdapter, where: str) -> Stack:
    """A stack of one that holds an adapter from disk, its heads and biases included.

    Raises:
        AdapterError: a tensor has no place in the base, or the base's newly initialised head is not in the adapter.
    """
    return stack_several(base, {where: saved})


def stack_several(base: BaseModel, adapters: Mapping[str, SavedAdapter], alone: Sequence[Slot] = ()) -> Stack:
    """A stack with a slot for each adapter from disk, in this order, and before them those of ``alone``.

    Where an adapter was trained on something else than this base, ``base.warnings`` says so.

    Args:
        adapters: by the place that an error names.
        alone: slots without an adapter: the base as it is, beside those that have one.

    Raises:
        AdapterError: a tensor has no place in the base, or the base's newly initialised head is not in an adapter.
    """
    for where, saved in adapters.items():
        absent = [name for name in base.new_parameters if name not in saved.weights.heads]
        if absent:
            check_fits(saved, base.model, where)  # says more than that a head is missing
            raise AdapterError(
                f"the adapter holds no {absent[0]!r}, which the base model does not have either",
                where=where,
                fix="save it with modules_to_save, or use the base it was trained on",
            )
    return _stacked(base, adapters, [*alone, *(saved.slot for saved in adapters.values())], len(alone))


def stack_beside_base(base: BaseModel, adapters: Mapping[str, SavedAdapter]) -> Stack:
    """A stack that holds adapters from disk and, in its last slot, the base alone; each slot by its adapter's name.

    A head that an adapter does not hold is the base's own, newly initialised or not: what lies below the heads is the same.
    Warnings as of ``stack_several``.

    Raises:
        AdapterError: a tensor has no place in the base.
    """
    # Nothing is drawn here, so no dropout needs a place.
    slots = [replace(saved.slot, name=name, dropout=0.0) for name, saved in adapters.items()]
    return _stacked(base, adapters, [*slots, Slot(BASE, 0, ())], 0)


def _stacked(base: BaseModel, adapters: Mapping[str, SavedAdapter], slots: Sequence[Slot], first: int) -> Stack:
    """A stack of the slots, with the adapters' numbers in those from ``first`` on."""
    for where, saved in adapters.items():
        check_fits(saved, base.model, where)
    found = [told for where, saved in adapters.items() for told in _differences(base, saved, where)]
    adapters = {where: _own_part_on(base, saved, where) for where, saved in adapters.items()}
    _check_no_tied_heads(base.model, adapters)
    inside = tuple(f"{head}." for head in base.heads)
    held = (name for saved in adapters.values() for name in saved.weights.heads)
    more = dict.fromkeys(name.rpartition(".")[0] for name in held if not name.startswith(inside))
    _check_no_embeddings(base.model, adapters, more)
    stack = Stack(base.model, slots, (*base.heads, *more))
    try:
        for index, saved in enumerate(adapters.values(), first):
            stack.write(index, saved.weights)
    except BaseException:
        stack.detach()
        raise
    base.warnings += [warning for warning in found if warning not in base.warnings]
    return stack


def _own_part_on(base: BaseModel, saved: SavedAdapter, where: str) -> SavedAdapter:
    """``own_part``, on a base that is not the adapter's merged model.

    Raises:
        AdapterError: what was saved whole is in a base of another checksum than the adapter's, or in one of another name that
            a merge wrote. If it was trained, that is the adapter's merged model, on which updates would count twice.
    """
    own = own_part(saved, base.model)
    copies = saved.weights.heads.keys() - own.weights.heads.keys()
    merged = _other_name(base, saved) and base.source is not None and (Path(base.source.model) / CERTIFICATE_FILE).is_file()
    if copies and (_has_other_checksum(base, saved) or merged):
        what = f"the base is not the adapter's, and yet has its {min(copies)!r}: the adapter may be merged into it already"
        fix = "run a merged model without the adapter (generate and chat with --base alone), or the adapter on its own base"
        raise AdapterError(what, where=where, fix=fix)
    return own


def _check_no_tied_heads(model: nn.Module, adapters: Mapping[str, SavedAdapter]) -> None:
    """Raise an AdapterError where one brings a layer whose weight the base ties to another's: it has no place of its own."""
    own = {name for name, _ in model.named_parameters()}
    for where, saved in adapters.items():
        tied = next((name for name in saved.weights.heads if name not in own), None)
        if tied is not None:
            layer = tied.rpartition(".")[0]
            what = f"the adapter brings a layer of its own ({layer!r}) whose weight the base ties to another's"
            raise AdapterError(what, where=where, fix=_RUN_IT_MERGED)


def _check_no_embeddings(model: nn.Module, adapters: Mapping[str, SavedAdapter], modules: Iterable[str]) -> None:
    """Raise an AdapterError where one brings embeddings that were trained: no slot has a place for them."""
    trained = next((name for name in modules if isinstance(model.get_submodule(name), nn.Embedding)), None)
    if trained is not None:
        where = next(where for where, saved in adapters.items() if f"{trained}.weight" in saved.weights.heads)
        what = f"the adapter brings embeddings of its own ({trained!r}), which cannot be run beside the base's"
        raise AdapterError(what, where=where, fix=_RUN_IT_MERGED)


def _differences(base: BaseModel, saved: SavedAdapter, where: str) -> list[str]:
    """In what an adapter was trained otherwise than it runs here."""
    told = [_other_base(base, saved, where)]
    source, own = base.source, saved.directory
    # Where an adapter's tokenizer goes before the base's, those of all were held against it (``own_tokenizer``).
    if source is not None and source.tokenizer_beside is None and own is not None and has_tokenizer(own):
        difference = tokenizer_difference(base.tokenizer, load_tokenizer(source.with_tokenizer(own)))
        if difference is not None:
            told.append(f"{where} was saved with a tokenizer that is not used here: it has {difference}")
    return [one for one in told if one is not None]


def _other_base(base: BaseModel, saved: SavedAdapter, where: str) -> str | None:
    """In what an adapter's own base differs from this one: in weights, revision, dtype or quantisation."""
    here = _held(base)
    there = {key: saved.origin[key] for key in here if key in saved.origin}
    told = [_other_weights(base, saved) or _other_revision(base, saved)]
    if any(there[key] != here[key] for key in there):
        told.append(f"a base in {_form(there)}, and runs on one in {_form(here)}")
    found = [one for one in told if one is not None]
    return f"{where} was trained on {'; on '.join(found)}" if found else None


def _other_weights(base: BaseModel, saved: SavedAdapter) -> str | None:
    """On what other weights an adapter was trained, by its record's checksum, or by name where that tells nothing."""
    if _has_other_checksum(base, saved):
        return f"other weights than those of {base.model.name_or_path} here"
    return f"{saved.base_model}, and runs on {base.model.name_or_path} here" if _other_name(base, saved) else None


def _other_revision(base: BaseModel, saved: SavedAdapter) -> str | None:
    """In what other revision of this very base an adapter was trained, as far as its name tells."""
    source, revision = base.source, saved.config.get("revision")
    if source is None or revision in (None, source.revision) or _has_checksum(base, saved) or Path(source.place).is_dir():
        return None
    return f"revision {revision} of {source.model}, and runs on {source.revision or 'its default one'} here"


def _has_checksum(base: BaseModel, saved: SavedAdapter) -> bool:
    return bool(base.checksum) and saved.origin.get("checksum") == base.checksum


def _has_other_checksum(base: BaseModel, saved: SavedAdapter) -> bool:
    here, checksum = _held(base), saved.origin.get("checksum")
    # Equal weights have equal checksums in the same form only, and what is packed depends on who packed it.
    comparable = all(saved.origin.get(key, "") == value for key, value in here.items()) and here["quantization"] is None
    return comparable and bool(checksum and base.checksum) and checksum != base.checksum


def _other_name(base: BaseModel, saved: SavedAdapter) -> bool:
    """Whether the adapter names another base and no checksum says that it is the same."""
    named = saved.base_model
    return bool(named) and not _has_checksum(base, saved) and _place(named or "") != _place(_name(base))


def _held(base: BaseModel) -> dict[str, str | None]:
    """How the base's weights are held."""
    packed = any(isinstance(module, NF4Linear) for module in base.model.modules())
    return {"dtype": str(base.model.dtype).removeprefix("torch."), "quantization": "nf4" if packed else None}


def _name(base: BaseModel) -> str:
    """The base as an adapter of it names it."""
    return str(base.model.name_or_path) if base.source is None else base.source.model


def _form(of: Mapping[str, str | None]) -> str:
    held = of.get("dtype") or "an unknown dtype"
    return held if of.get("quantization") is None else f"4 bits ({of['quantization']}) and {held}"


def _named(adapters: Mapping[str, SavedAdapter]) -> tuple[str, str | None]:
    """The base that all adapters name, and its revision."""
    if not adapters:
        raise UsageError("there is no model", where="base", fix="give --base or --adapter")
    (first, example), *_ = adapters.items()
    for where, saved in adapters.items():
        if saved.base_model is None:
            raise UsageError("the adapter names no base model", where=where, fix="give it with --base")
        if _identity(saved) != _identity(example):
            what = f"adapters of different bases: {first} is of {_told(example)}, this one of {_told(saved)}"
            raise UsageError(what, where=where, fix="leave one out, or name the base of both with --base")
    model = str(example.base_model)
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise AdapterError(f"its base model {model} is not there", where=first, fix="say where with --base")
    return model, example.base_at()[1]


def _revision(adapters: Mapping[str, SavedAdapter], base: str) -> str | None:
    """The revision of a base that is given, where the adapters that name it agree."""
    named = {saved.base_at(base)[1] for saved in adapters.values() if saved.base_model == base}
    return named.pop() if len(named) == 1 else None


def _identity(saved: SavedAdapter) -> tuple[str, str | None]:
    return _place(str(saved.base_model)), saved.config.get("revision")


def _place(model: str) -> str:
    """A directory's one name, or the hub id."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else model


def _told(saved: SavedAdapter) -> str:
    revision = saved.config.get("revision")
    return f"{saved.base_model} ({revision})" if revision else str(saved.base_model)
