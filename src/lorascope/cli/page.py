"""The page that ``lorascope data --html`` writes: one file, no script, nothing fetched, light or dark. Floor: cli."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lorascope import __version__
from lorascope.cli.console import visible

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #667; --line: #d6dae0; --soft: #f4f6f8;
  --given: #eef0f3; --given2: #e0e4ea; --learned: #b9ecc4; --learned2: #93dda4; --mark: #f7dd8f; --bad: #b3261e;
  --warn: #8a5a00; --bar: #4a7fd4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --paper: #15181c; --faint: #99a2ad; --line: #343a42;
  --soft: #1c2025; --given: #24292f; --given2: #2e343c; --learned: #1d5a2e; --learned2: #27733c; --mark: #6d5812;
  --bad: #ff8a80; --warn: #e8b84a; --bar: #6c9ff0; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 62rem; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.faint { color: var(--faint); } .place { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--faint); } td.number, th.number { text-align: right; }
.error { color: var(--bad); font-weight: 600; } .warning { color: var(--warn); } .allowed { color: var(--faint); }
.verdict { border-left: 4px solid var(--bar); padding: .4rem .8rem; background: var(--soft); margin: 1rem 0; }
.verdict.failed { border-color: var(--bad); }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 2px .6rem; align-items: center;
  font-variant-numeric: tabular-nums; font-size: .9rem; }
.bars .range { text-align: right; color: var(--faint); } .bars .bar { background: var(--bar); height: .85rem;
  border-radius: 0 3px 3px 0; min-width: 1px; } .bars .none { visibility: hidden; }
.example { border: 1px solid var(--line); border-radius: 6px; margin: .8rem 0; }
.example header { padding: .4rem .8rem; border-bottom: 1px solid var(--line); background: var(--soft);
  border-radius: 6px 6px 0 0; font-size: .9rem; overflow-wrap: anywhere; }
.tokens { padding: .6rem .8rem; font: 13.5px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.t { padding: .15em 0; border-radius: 2px; background: var(--given); box-decoration-break: clone;
  -webkit-box-decoration-break: clone; }
.t.odd { background: var(--given2); } .t.learned { background: var(--learned); }
.t.learned.odd { background: var(--learned2); }
.t.special { outline: 1.5px solid var(--mark); outline-offset: -1.5px; background: var(--mark); }
.t.special.learned { background: linear-gradient(var(--learned2) 60%, var(--mark) 60%); }
.cut { color: var(--bad); font-weight: 600; padding: 0 .3em; }
.legend span { margin-right: .6rem; } .legend .t { padding: .1rem .4rem; margin: 0; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ task }} – data</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ task }}</h1>
<div class="faint">{{ shape }} · {{ task_type }}{% if labels %} · labels {{ labels | join(", ") }}{% endif %}
 · max_length {{ max_length }} · Lorascope {{ version }}</div>
{% if findings is defined %}
<div class="verdict{{ '' if passed else ' failed' }}">
{%- if not findings %}Nothing found.
{%- elif passed %}No error that is not allowed.
{%- else %}These data stop a study: see the errors below.{% endif %}
{%- if allowed %} Allowed: {{ allowed | join(", ") }}.{% endif %}</div>
{% endif %}
{% if tokens != "checked" %}<p class="faint">Tokens are {{ tokens }}.</p>{% endif %}
<h2>Splits</h2>
{% for split, units in counts.items() %}<p class="faint">{{ split }} holds
{% for unit, count in units.items() %}{{ "{:,}".format(count) }} {{ unit }}{{ ", " if not loop.last }}{% endfor %}.</p>
{% endfor %}
<div class="scroll"><table>
<tr><th>split</th>{% for name in columns.values() %}<th class="number">{{ name }}</th>{% endfor %}</tr>
{% for split in splits %}<tr><td>{{ split.split }}</td>
{% for key in columns %}<td class="number">{{ "–" if split[key] is none else "{:,}".format(split[key]) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if findings is defined and findings %}
<h2>Findings</h2>
<div class="scroll"><table>
<tr><th></th><th>kind</th><th>split</th><th>finding</th></tr>
{% for finding in findings %}
{% set word = "allowed" if finding.allowed and finding.severity == "error" else finding.severity %}
<tr><td class="{{ word }}">{{ word }}</td><td>{{ finding.kind }}</td><td>{{ finding.split }}</td>
<td>{{ finding.summary }}
{%- for place in finding.places %}<div class="faint place">{{ place }}</div>{% endfor %}
{%- if finding.places and finding.count > finding.places | length %}<div class="faint">…</div>{% endif %}</td></tr>
{% endfor %}</table></div>
{% elif notices and findings is not defined %}
<h2>Notices</h2>
<ul>{% for notice in notices %}<li>{{ notice.kind }}: {{ notice.message }}</li>{% endfor %}</ul>
{% endif %}
{% for split in splits if split.lengths %}{% set most = split.lengths | map(attribute=2) | max %}
<h2>Tokens an example, {{ split.split }}</h2>
<div class="bars">{% for low, high, count in split.lengths %}
<span class="range">{{ low }}–{{ high }}</span>
<span class="bar{{ '' if count else ' none' }}" style="width:{{ '%.2f' % (100 * count / most) }}%"></span>
<span>{{ "{:,}".format(count) }}</span>{% endfor %}
</div>
{% endfor %}
{% if examples %}
<h2>Examples</h2>
<p class="legend"><span class="t">given</span><span class="t learned">learned</span><span class="t special">special</span>
<span class="cut">✂ tokens cut away</span><span class="faint">each shade is one token</span></p>
{% for example in examples %}
<section class="example"><header><strong>{{ example.split }}</strong> {{ example.id }}
{% if example.label is not none %} · label <strong>{{ example.label }}</strong>{% endif %}
<span class="faint">· {{ example.where }}</span></header>
<div class="tokens">{% for token in example.tokens -%}
{% if loop.index0 == example.num_input %}
→ {% endif -%}
{% if token.num_cut %}<span class="cut">✂ {{ "{:,}".format(token.num_cut) }} cut</span>{% endif -%}
<span class="t{{ ' odd' if loop.index0 % 2 }}{{ ' learned' if token.is_target }}{{ ' special' if token.is_special }}">
{{- token.shown -}}
</span>
{%- endfor -%}
{% if example.num_cut_after %}<span class="cut">✂ {{ "{:,}".format(example.num_cut_after) }} cut</span>{% endif %}</div>
</section>
{% endfor %}{% endif %}
</body>
</html>
"""

_COLUMNS = {
    "num_records": "records",
    "num_examples": "examples",
    "num_tokens": "tokens",
    "num_target_tokens": "targets",
    "num_repeated_targets": "repeated targets",
    "median_tokens": "median",
    "longest_tokens": "longest",
}


def data_page(document: Mapping[str, Any]) -> str:
    """The document of ``preview`` or ``audit`` as a page."""
    shown = dict(document)
    shown["examples"] = [
        example | {"tokens": [token | {"shown": visible(token["text"])} for token in example["tokens"]]}
        for example in document.get("examples", [])
    ]
    columns = {key: name for key, name in _COLUMNS.items() if any(split[key] is not None for split in document["splits"])}
    # Autoescaped: whatever the data hold, it is text here.
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_PAGE).render(**shown, columns=columns, style=Markup(_STYLE), version=__version__)
