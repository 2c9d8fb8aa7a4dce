"""``lorascope generate`` and ``lorascope chat``: a base, a merged model, or a base with adapters, answering. Floor: cli.

stdout holds what the model wrote, or one JSON document; notes and warnings go to stderr.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli.answers import Answers, print_columns, print_lines
from lorascope.cli.console import AsJson, Device, decoding_of, print_json, stdout, tell
from lorascope.cli.planning import chosen_device
from lorascope.config import DecodingConfig, validate
from lorascope.errors import UsageError

if TYPE_CHECKING:
    from lorascope.data.turns import Prompt
    from lorascope.inference import Session

Base = Annotated[
    str | None,
    typer.Option(metavar="M", help="A model's directory, a merged one too, or a hub id; by default what the adapters name."),
]
Adapters = Annotated[
    list[Path] | None,
    typer.Option("--adapter", metavar="DIR", help="A PEFT adapter's directory, or a trial's; may be repeated."),
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="A system message.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn; greedy answers have none.")]
Dtype = Annotated[str, typer.Option(help="The base model's dtype: float32, bfloat16 or float64.")]
Quantization = Annotated[str | None, typer.Option(help="nf4: hold the base in 4 bits.")]
_DECODE_HELP = "A way to decode, as in a study file, e.g. nucleus,top_p=0.9,samples=4"


def generate(
    base: Base = None,
    adapter: Adapters = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="The prompt; by default all of stdin.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="A file that holds the prompt.")] = None,
    system: System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Give the model the prompt as it is, without a chat template.")] = False,
    decode: Annotated[
        list[str] | None, typer.Option(metavar="STRATEGY[,K=V…]", help=f"{_DECODE_HELP}; may be repeated.")
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="The base and every adapter at once; in columns on a terminal.")
    ] = False,
    dtype: Dtype = "float32",
    quantization: Quantization = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt: by a base, a merged model, or a base with adapters."""
    if raw and system is not None:
        raise UsageError("a raw prompt has no system message", where="--system", fix="leave it out, or leave out --raw")
    if side_by_side and not adapter:
        raise UsageError("there is nothing to lay beside the base", where="--side-by-side", fix="give adapters with --adapter")
    decodings = [decoding_from(text, max_new_tokens) for text in decode or ["greedy"]]
    text = _prompt_text(prompt, file)
    system = system if system is None else checked(system, "--system")
    with opened(base, adapter, dtype, quantization, device) as session:
        warnings = list(session.warnings)
        names = [name for name in session.names if side_by_side or not adapter or name != "base"]
        asked = _asked(session, text, system, raw, warnings)
        answers = []
        for number, decoding in enumerate(decodings):
            growing = Answers(names, decoding.samples, decoding.label if len(decodings) > 1 else "")
            with closing(session.stream(asked, decoding, names, seed)) as pieces:
                if as_json:
                    growing.take(pieces)
                elif side_by_side and sys.stdout.isatty():
                    print_columns(stdout(), growing, pieces)
                else:
                    print_lines(growing, pieces, is_first=number == 0)
            answers += [_row(one, decoding) for one in growing.all]
            _note(unfinished(growing, session, asked, decoding, "--max-new-tokens"), warnings)
        if as_json:
            given = {"prompt": text, "system": system, "form": asked.form, "prompt_tokens": len(asked.ids), "seed": seed}
            places = {name: str(path) for name, path in session.adapters.items()}
            print_json({"base": session.model, "adapters": places, **given, "answers": answers, "warnings": warnings})


def chat(
    base: Base = None,
    adapter: Adapters = None,
    system: System = None,
    decode: Annotated[str, typer.Option(metavar="STRATEGY[,K=V…]", help=f"{_DECODE_HELP}.")] = "greedy",
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    quantization: Quantization = None,
    device: Device = None,
) -> None:
    """Talk to a base, a merged model or adapters, and switch between them; /help lists what can be said to the chat itself."""
    decoding = decoding_from(decode, max_new_tokens)
    system = system if system is None else checked(system, "--system")
    with opened(base, adapter, dtype, quantization, device) as session:
        from lorascope.cli.chat import Chat
        from lorascope.inference import Dialogue

        speaker = next((name for name in session.names if name != "base"), session.names[0])
        Chat(Dialogue(session, speaker, decoding, system, seed)).run()


def decoding_from(text: str, max_new_tokens: int, where: str = "--decode") -> DecodingConfig:
    """``"nucleus,top_p=0.9"`` as a way to decode."""
    decoding: DecodingConfig = validate(DecodingConfig, {"max_new_tokens": max_new_tokens, **decoding_of(text, where)}, where)
    return decoding


def opened(base: str | None, adapters: list[Path] | None, dtype: str, quantization: str | None, device: str | None) -> Session:
    """The session, with its warnings told."""
    from lorascope.adapter import adapter_names
    from lorascope.inference import open_session

    names = adapter_names(adapters or [])
    session = open_session(base, names, dtype=dtype, quantization=quantization, device=chosen_device(device))
    for warning in session.warnings:
        tell(f"warning: {warning}")
    return session


def plain_format(session: Session) -> str:
    """Why a conversation is not written by a template, and how it is."""
    why = "an encoder reads" if session.encodes else "the model has no chat template:"
    return f"{why} a plain format (User: …, Assistant: …)"


def unfinished(answers: Answers, session: Session, asked: Prompt, decoding: DecodingConfig, option: str) -> list[str]:
    """What is to be said of answers that came to no end.

    Args:
        option: where more tokens can be asked for.
    """
    num_cut = sum(one.answer is not None and not one.answer.finished for one in answers.all)
    if not num_cut:
        return []
    whose = "the answer was" if len(answers.all) == 1 else f"{num_cut} of {len(answers.all)} answers were"
    most = session.room(asked, decoding)
    why = f"more with {option}" if most == decoding.max_new_tokens else f"the model has {session.num_positions} positions"
    return [f"{whose} cut after {most} tokens; {why}"]


def checked(text: str, where: str) -> str:
    """The text, if it is one.

    Raises:
        UsageError: it is empty, or holds bytes that are no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("the text is no UTF-8", where=where, fix="save it as UTF-8") from None
    if not text.strip():
        raise UsageError("the text is empty", where=where, fix="write something")
    return text


def _prompt_text(prompt: str | None, file: Path | None) -> str:
    """The prompt from wherever it was given; line ends behind a file's or stdin's last line are not part of it."""
    if prompt is not None and file is not None:
        raise UsageError("--prompt and --file exclude each other", where="generate", fix="give one of them")
    if prompt is not None:
        return checked(prompt, "--prompt")
    if file is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", where="generate", fix="give --prompt TEXT or --file FILE, or pipe it in")
    place = "stdin" if file is None else str(file)
    try:
        text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError("the text is no UTF-8", where=place, fix="save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", where=place, fix="give a text file") from None
    return checked(text.rstrip("\r\n"), place)


def _asked(session: Session, text: str, system: str | None, raw: bool, warnings: list[str]) -> Prompt:
    """The prompt as the model reads it, what is to be said of it told and added to ``warnings``."""
    from lorascope.data.record import Segment

    as_it_is = raw or (session.turns.form == "plain" and system is None)
    if as_it_is:
        asked = session.turns.raw(text)
    else:
        opening = () if system is None else (Segment(system, role="system"),)
        asked = session.turns.encode((*opening, Segment(text, role="user")))
    notes = list(asked.notices)
    if as_it_is and not raw and not session.encodes:
        notes.append("the model has no chat template: the prompt is read as it is")
    if asked.form == "plain":
        notes.append(plain_format(session))
    _note(notes, warnings)
    return asked


def _note(notes: list[str], warnings: list[str]) -> None:
    for note in notes:
        tell(note)
    warnings += notes


def _row(one: Any, decoding: DecodingConfig) -> dict[str, Any]:
    assert one.answer is not None, "nobody stopped it"
    return {
        "adapter": None if one.name == "base" else one.name,
        "decoding": decoding.label,
        "sample": one.sample,
        "text": one.answer.text,
        "finished": one.answer.finished,
        "num_tokens": len(one.answer.tokens),
        "token_ids": list(one.answer.tokens),
    }
