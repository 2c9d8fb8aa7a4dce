"""Chat templates in a sandbox: whatever a template tries, rendering ends soon, in little memory, in one line."""

import time
import tracemalloc

import pytest

import lorascope.data.chat
from lorascope.data.chat import MAX_TEMPLATE_CHARACTERS, ChatTemplate, Refusal
from lorascope.errors import ModelError

HOSTILE = {
    "long range": "{% for i in range(10**9) %}x{% endfor %}",
    "range beyond a machine word": "{% for i in range(10**30) %}x{% endfor %}",
    "nested ranges": "{% for i in range(10**5) %}{% for j in range(10**5) %}x{% endfor %}{% endfor %}",
    "nested loops without output": "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for i in range(10**5) %}{% for j in range(10**5) if false %}{% endfor %}{% endfor %}",
    "nested loops over literals": "{% set l = [1, 2, 3, 4] * 5000 %}"
    + "{% for a in l %}" * 3 + "{% endfor %}" * 3,
    "long literal in a loop": "{% macro m() %}{% for i in range(10**5) %}"
    + "x" * 60_000
    + "{% endfor %}{% endmacro %}{{ m() }}",
    "repetition": '{{ "a" * 10**10 }}',
    "repetition from the left": '{{ 10**10 * "a" }}',
    "repeated list": "{{ ([0] * 10**10) | length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "tower of powers": "{% set n = namespace(x=10) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubled sum": '{% set n = namespace(x="aa") %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}',
    "doubled concatenation": '{% set n = namespace(x="aa") %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}',
    "doubled block": "{% set x = 'aa' %}" + "{% set y %}{{ x }}{{ x }}{% endset %}{% set x = y %}" * 99 + "{{ x }}",
    "doubled list": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "doubled lists compared": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}"
    "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "doubled mapping": "{% set n = namespace(x={}) %}{% for i in range(99) %}"
    "{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}{{ n.x | tojson }}",
    "nested namespaces": "{% set n = namespace() %}{% set n.x = namespace(y=[n]) %}",
    "comparisons in a loop": "{% set l = range(10**5) | list %}{% for i in l %}{{ '' if -1 in l }}{% endfor %}",
    "padding filter": '{{ "a" | center(10**10) }}',
    "padding method": '{{ "a".ljust(10**10) }}',
    "zero padding": '{{ "a".zfill(10**10) }}',
    "padding by tabs": '{{ ("\t" * 1000).expandtabs(10**7) }}',
    "padding by a format": '{{ "{:1000000000}".format("a") }}',
    "padding by an argument": '{{ "{:{}}".format("a", 10**10) }}',
    "padding by a mapping": '{{ "{x:1000000000}".format_map(dict(x=1)) }}',
    "padding by per cent": '{{ "%1000000000d" % 1 }}',
    "padding by a star": '{{ "%*d" % (10**10, 1) }}',
    "padding by the format filter": '{{ "%1000000000d" | format(1) }}',
    "indentation": '{{ ("\n" * 100000) | indent(10**5, blank=true) }}',
    "replacement": '{{ ("a" * 10**5).replace("a", "b" * 10**5) }}',
    "replacement of nothing": '{{ ("a" * 10**5) | replace("", "b" * 10**5) }}',
    "join": '{{ ("b" * 10**5).join("a" * 10**5) | length }}',
    "join filter": '{{ ("a" * 10**5) | join("b" * 10**5) | length }}',
    "translation": '{{ ("a" * 10**5).translate({97: "b" * 10**5}) | length }}',
    "bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    "batches": "{{ [1] | batch(10**10, 0) | list }}",
    "slices": "{{ [1] | slice(10**10) | list }}",
    "rounding": "{{ 1.5 | round(10**10, 'ceil') }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "branching blocks": "{% block a %}{% endblock %}"
    + "{% block b1 %}{{ self.a() }}{% endblock %}"
    + "".join(f"{{% block b{i} %}}{{{{ self.b{i - 1}() ~ self.b{i - 1}() }}}}{{% endblock %}}" for i in range(2, 99)),
    "lorem ipsum": "{{ lipsum(10**9) }}",
    "date format": "{{ strftime_now('%Y' * 10**5) }}",
    "class": "{{ ''.__class__ }}",
    "class by an item": "{{ ''['__class__'].__mro__ }}",
    "class by a filter": "{{ '' | attr('__class__') }}",
    "class by a format": "{{ '{0.__class__}'.format('') }}",
    "class by map": "{{ [''] | map(attribute='__class__') | list }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "changing the messages": "{{ messages.append(1) }}",
    "another file": "{% include '/etc/passwd' %}",
}  # fmt: skip
MESSAGES = [{"role": "user", "content": "hi"}]


def rendered(tokenizer, template, messages=MESSAGES):
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer).render(messages, generation_prompt=True)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_soon_in_one_line(chat, name, monkeypatch):
    monkeypatch.setattr(lorascope.data.chat, "MAX_SECONDS", 0.2)
    started = time.thread_time()
    with pytest.raises((ModelError, Refusal)) as caught:
        rendered(chat, HOSTILE[name])
    assert time.thread_time() - started < 30
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["doubled block", "doubled list", "repetition", "replacement", "join", "doubled concatenation"]
)
def test_a_hostile_template_ends_in_little_memory(chat, name):
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            rendered(chat, HOSTILE[name])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100e6


def test_limits_name_the_tokenizer_and_what_to_do(chat):
    chat.name_or_path = "some/model"
    with pytest.raises(ModelError, match=r"^some/model: the chat template is not safe: .*'__class__' of a str; set another"):
        rendered(chat, HOSTILE["class"])
    with pytest.raises(ModelError, match=r"some/model: the chat template asks for a range of more than 100000 numbers"):
        rendered(chat, HOSTILE["long range"])
    with pytest.raises(ModelError, match=r"some/model: the chat template takes more than 1 seconds"):
        rendered(chat, HOSTILE["nested loops without output"])


def test_a_template_that_is_none_is_a_model_error_at_once(chat):
    for template, message in {
        "{% for %}": "is not valid: .* \\(line 1\\)",
        "{{ x | urlize }}": "No filter named 'urlize'",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}": "cannot be compiled",
        "x" * (MAX_TEMPLATE_CHARACTERS + 1): "has 65537 characters, more than 65536",
        "{% for m in messages %}" * 30 + "{% endfor %}" * 30: "cannot be compiled",
    }.items():
        chat.chat_template = template
        with pytest.raises(ModelError, match=message):
            ChatTemplate(chat)
    chat.chat_template = {"tool_use": "x", "rag": "y"}
    with pytest.raises(ModelError, match="none of the chat templates 'rag', 'tool_use' is 'default'"):
        ChatTemplate(chat)


def test_a_refusal_gives_the_templates_own_words(chat):
    with pytest.raises(Refusal, match="roles must alternate"):
        rendered(chat, "{{ raise_exception('roles must alternate') }}")


def test_each_rendering_has_a_budget_of_its_own(chat):
    chat.chat_template = "{% for i in range(300) %}{{ 'x' * 4000 }}{% endfor %}"
    template = ChatTemplate(chat)
    assert {len(template.render(MESSAGES, generation_prompt=False)) for _ in range(4)} == {1_200_000}


def test_a_long_conversation_has_a_budget_to_match(chat):
    messages = [{"role": "user", "content": "ab " * 100_000}, {"role": "assistant", "content": "c" * 100_000}] * 10
    text = rendered(chat, chat.chat_template, messages)
    assert len(text) == 4_000_000 + 10 * len("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n") + 22


def test_a_template_that_asks_for_the_date_is_told_the_same_one_every_day(chat):
    assert rendered(chat, "{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"
