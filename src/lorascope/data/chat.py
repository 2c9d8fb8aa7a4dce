"""A tokenizer's own chat template, rendered in a sandbox that ends.

A template is a program that came with a model. It renders here exactly as in ``transformers`` (same whitespace, loop
controls, ``generation`` blocks, globals and filters), but every value that it makes is paid for from a budget, every
call, loop turn, comparison and lookup looks at the clock, and what it makes is measured before it is made. So
``{{ "a" * 10**10 }}`` ends in one line, not in a full machine. Differences: what iterates lazily is a list, filters
that only web pages need do not exist, and access to an internal attribute is refused at once.

Does not know records, roles or tokens. Floor: data.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from datetime import datetime
from string import Formatter
from typing import TYPE_CHECKING, Any

from jinja2 import Template, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lorascope.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEMPLATE_CHARACTERS = 65_536
MAX_RANGE = 100_000
MAX_SECONDS = 1.0  # of this thread's processor time, so that a busy machine refuses no template
BUDGET = 8_000_000  # characters, and ITEM for each element of a list, over one rendering
BUDGET_PER_CHARACTER = 64  # the same, for each character of the conversation
ITEM = 8
MAX_BITS = 4096  # of an integer
MAX_PADDING_DIGITS = 4
# What a template is told when it asks for the date (Llama 3.2's does): the same on every day, or a resumed study would read
# other tokens than it began with. The day is the one that Llama 3's templates fall back to.
TODAY = datetime(2024, 7, 26)
MAX_STRFTIME_CHARACTERS = 200

# By whether the result is about as long as what goes in, or may be as long as its parts multiplied.
# fmt: off
LINEAR_METHODS = {
    "capitalize", "casefold", "copy", "count", "endswith", "find", "get", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "items",
    "keys", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit",
    "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "values",
}
LINEAR_FILTERS = {
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape",
    "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse",
    "safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper", "wordcount",
}
GROWING_FILTERS = {"batch", "center", "format", "indent", "join", "replace", "round", "slice", "tojson", "truncate"}
# fmt: on


class Refusal(Exception):
    """The template cannot render this conversation; another one it may."""


class _Limit(Exception):
    """The template went beyond what a chat template may use."""


class ChatTemplate:
    """A tokenizer's template, compiled once.

    Raises:
        ModelError: no template of several is named ``default``, or it is too long or no valid template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._place = str(tokenizer.name_or_path or "tokenizer")
        self._variables: dict[str, Any] = dict(tokenizer.special_tokens_map)
        source = _source(tokenizer.chat_template, self._place)
        self._environment = _Sandbox()
        try:
            self._template = self._environment.compiled(source)
        except TemplateSyntaxError as error:
            raise self._broken(f"is not valid: {error.message} (line {error.lineno})") from None
        except (RecursionError, MemoryError, SyntaxError, TemplateError) as error:
            raise self._broken(f"cannot be compiled: {str(error) or type(error).__name__}") from None

    def render(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool) -> str:
        """The conversation as text, as ``tokenizer.apply_chat_template(…, tokenize=False)`` gives it.

        Raises:
            Refusal: the template rejects the conversation, or fails on it.
            ModelError: the template tries what it may not, or wants too much time or memory.
        """
        size = sum(len(text) for message in messages for text in message.values())
        variables = {**self._variables, "tools": None, "documents": None, "add_generation_prompt": generation_prompt}
        variables["messages"] = [dict(message) for message in messages]
        self._environment.start(BUDGET + BUDGET_PER_CHARACTER * size)
        try:
            return "".join(self._template.generate(variables))
        except _Limit as error:
            raise self._broken(str(error)) from None
        except SecurityError as error:
            raise self._broken(f"is not safe: {error}") from None
        except (RecursionError, MemoryError):
            raise self._broken("calls itself too deeply or needs too much memory") from None
        except Exception as error:  # whatever a template raises
            raise Refusal(str(error) or type(error).__name__) from None

    def _broken(self, what: str) -> ModelError:
        return ModelError(f"the chat template {what}", where=self._place, fix="set another chat_template in the tokenizer")


def _source(template: str | dict[str, str] | None, place: str) -> str:
    if isinstance(template, dict):
        if "default" not in template:
            names = ", ".join(map(repr, sorted(template)))
            raise ModelError(f"none of the chat templates {names} is 'default'", where=place, fix="name one so")
        template = template["default"]
    assert template is not None, "asked for only where there is one"
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        what = f"the chat template has {len(template)} characters, more than {MAX_TEMPLATE_CHARACTERS}"
        raise ModelError(what, where=place, fix="set another chat_template in the tokenizer")
    return template


def _size(value: object, most: float) -> int:
    """Characters and elements of a value with everything inside, counted as often as they occur, or more than ``most``."""
    total = 0
    stack = [value]
    while stack and total <= most:
        item = stack.pop()
        if isinstance(item, (str, bytes)):
            total += 1 + len(item)
        elif isinstance(item, int):
            total += 1 + item.bit_length() // 8
        elif isinstance(item, dict):
            total += 1 + 2 * ITEM * len(item)
            if total <= most:
                stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            total += 1 + ITEM * len(item)
            if total <= most:
                stack += item
        elif isinstance(item, Namespace) and item is not value:
            raise SecurityError("a namespace lies within another value")
        else:
            total += 1
    return total


def _weight(argument: object, most: float) -> int:
    """How much an argument may lengthen a result: a number's value, the size of everything else."""
    return abs(argument) if isinstance(argument, int) else _size(argument, most)


class _Sandbox(ImmutableSandboxedEnvironment):
    """``transformers``' environment with a budget and a clock behind every operation."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, loopcontrols],
            optimized=False,  # constants are worked out while the clock runs
            finalize=self._shown,
        )
        self._left = 0
        self._deadline = 0.0
        known = {name: self.filters[name] for name in (*LINEAR_FILTERS, *GROWING_FILTERS)}
        self.filters = {name: self._metered(name, function) for name, function in known.items()}
        self.filters["tojson"] = self._metered("tojson", _to_json)
        self.tests = {name: self._ticking(function) for name, function in self.tests.items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "range": _range,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def compiled(self, source: str) -> Template:
        """The template with the hooks written into its loops, literals, comparisons and outputs."""
        self.start(BUDGET)
        tree = _Hooks(self).visit(self.parse(source))
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def start(self, budget: int) -> None:
        """Begin one rendering."""
        self._left = budget
        self._deadline = time.thread_time() + MAX_SECONDS

    def tick(self) -> bool:
        if time.thread_time() > self._deadline:
            raise _Limit(f"takes more than {MAX_SECONDS:g} seconds for one conversation")
        return True

    def spend(self, units: int) -> None:
        self.tick()
        self._left -= units
        if self._left < 0:
            raise _Limit("makes far more text than the conversation holds")

    def settled(self, value: Any) -> Any:
        """The value, paid for; what would be computed lazily is computed now."""
        if isinstance(value, (str, bytes, int, list, tuple, dict, set, frozenset)):
            self.spend(_size(value, self._left))
            return value
        if isinstance(value, (Iterator, KeysView, ValuesView, ItemsView)):
            items = []
            lazy: Iterable[Any] = value
            for item in lazy:
                self.spend(ITEM + _size(item, self._left))
                items.append(item)
            return items
        return value

    def concatenated(self, *parts: Any) -> str:
        return "".join(self._text(part) for part in parts)

    @pass_context
    def _shown(self, context: Context, value: Any) -> str:
        return self._text(value)

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            self._must_afford(_size(value, self._left))
        text = str(value)
        self.spend(len(text))
        return text

    def _must_afford(self, units: int) -> None:
        self.spend(units)
        self._left += units  # only asked: what comes of it is paid for

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            # Some filters are handed the context or the environment first.
            values = args[1:] if hasattr(function, "jinja_pass_arg") else args
            self._measure_growth(name, values[0] if values else "", (*values[1:], *kwargs.values()), name in LINEAR_FILTERS)
            return self.settled(function(*args, **kwargs))

        return metered

    def _ticking(self, function: Any) -> Callable[..., Any]:
        @functools.wraps(function)
        def ticking(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            return function(*args, **kwargs)

        return ticking

    def _measure_growth(self, name: str, subject: Any, arguments: Sequence[Any], linear: bool) -> None:
        """Refuse a filter or method whose result would be too long, before it is made."""
        if name in ("format", "format_map"):
            _check_format(subject)
        total = _size(subject, self._left)
        if name == "replace" and isinstance(subject, str) and len(arguments) > 1 and isinstance(arguments[0], str):
            total += subject.count(arguments[0]) * _size(arguments[1], self._left)
        elif linear:
            total += sum(_size(argument, self._left) for argument in arguments)
        else:
            total = (total + 1) * (1 + sum(_weight(argument, self._left) for argument in arguments))
        self._must_afford(total)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if owner is self:  # a hook; the keywords are jinja2's own notes on loops and blocks
            return function(*args)
        if isinstance(owner, (str, bytes, int, float, list, tuple, dict, set, frozenset)):
            name = str(getattr(function, "__name__", ""))
            self._measure_growth(name, owner, (*args, *kwargs.values()), name in LINEAR_METHODS)
        self.tick()
        return self.settled(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = _size(left, self._left), _size(right, self._left)
        if operator == "**" or (operator == "*" and not (isinstance(left, int) and isinstance(right, int))):
            # A power has at most the bits of its base, times the exponent.
            number = right if isinstance(right, int) else left
            units = sum(sizes) if not isinstance(number, int) else sum(sizes) * max(1, abs(number))
        elif operator == "%" and isinstance(left, (str, bytes)):
            _check_percent(left)
            units = (sizes[0] + 1) * (sizes[1] + 1)
        else:
            units = sum(sizes)
        if isinstance(left, int) and isinstance(right, int) and 8 * units > MAX_BITS:
            raise _Limit(f"computes with integers of more than {MAX_BITS} bits")
        self.spend(units)
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.tick()
        value = super().getitem(obj, argument)
        return self.settled(value) if isinstance(argument, slice) else value

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.tick()
        return super().getattr(obj, attribute)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"it asks for {attribute!r} of a {type(obj).__name__}")


class _Hooks(NodeTransformer):
    """Writes a call of the sandbox where jinja2 itself would run on without asking it."""

    def __init__(self, environment: _Sandbox) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("tick", node), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(self._call("tick", node), node.test, lineno=node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        return nodes.And(self._call("tick", node), node, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("concatenated", node, *node.nodes)

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return self._call("settled", node, node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._call("settled", node, node) if node.ctx == "load" else node

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:
        self.generic_visit(node)
        literal = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        spend = self._call("spend", node, nodes.Const(literal, lineno=node.lineno))
        return [nodes.ExprStmt(spend, lineno=node.lineno), node]

    def _call(self, name: str, place: nodes.Node, *args: nodes.Expr) -> nodes.Call:
        hook = nodes.EnvironmentAttribute(name, lineno=place.lineno)
        return nodes.Call(hook, list(args), [], None, None, lineno=place.lineno, environment=self._environment)


class _GenerationBlock(Extension):
    """``{% generation %}…{% endgeneration %}``, which marks what the assistant says, is its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _Dict:
    """``dict`` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace that holds neither internal names nor namespaces."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that ``namespace(self=…)`` works
        self, values = args[0], dict(*args[1:], **kwargs)
        Namespace.__init__(self)
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_") or isinstance(value, Namespace):
            raise SecurityError(f"it stores a {type(value).__name__} under {name!r} of a namespace")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > MAX_STRFTIME_CHARACTERS:
        raise _Limit("asks for the date in too long a format")
    return TODAY.strftime(form)


def _range(*args: int) -> range:
    numbers = range(*args)
    # len() cannot count beyond the machine's word.
    if (numbers[-1] - numbers[0]) // numbers.step >= MAX_RANGE if numbers else False:
        raise _Limit(f"asks for a range of more than {MAX_RANGE} numbers")
    return numbers


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_format(form: Any) -> None:
    """Refuse widths of a ``str.format`` that are large or come from an argument."""
    for _, _, width, _ in Formatter().parse(str(form)):
        if width and ("{" in width or re.search(rf"\d{{{MAX_PADDING_DIGITS}}}", width)):
            raise _Limit("pads a text to a width that it does not bound")


def _check_percent(form: str | bytes) -> None:
    text = form.decode("latin-1") if isinstance(form, bytes) else form
    if re.search(rf"%(\([^)]*\))?[-+ #0]*[\d.]*(\*|\d{{{MAX_PADDING_DIGITS}}})", text):
        raise _Limit("pads a text to a width that it does not bound")
